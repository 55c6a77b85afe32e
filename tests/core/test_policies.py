"""Every policy: closed forms, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.glance import LARGE, Glance, glance, is_clear
from mate_edge.decide.policy import (
    COLDEST,
    HOTTEST,
    NEVER,
    POLICIES,
    THRESHOLDS,
    Confidence,
    Deepest,
    Entropy,
    FixedExit,
    Margin,
    Patience,
    Policy,
    RunningEnsemble,
    make_policy,
)
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import softmax
from mate_edge.errors import UsageError

ONES = (1.0, 1.0, 1.0)
TEMPERATURES = (0.5, 1.0, 2.0)
SMALL = 1e-4  # more than a glance doubts of anything


def draw_logits(seed: int, n: int = 40, k: int = 3, c: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, k, c)).astype(np.float32)


def every_policy() -> dict[str, Policy]:
    parameters = {"patience": {"patience": 2}, "fixed-exit": {"exit": 2}, "deepest": {}}
    return {
        name: make_policy(
            name,
            {"temperatures": TEMPERATURES, **parameters.get(name, {"thresholds": (0.6, 0.6)})},
        )
        for name in POLICIES
    }


@pytest.mark.parametrize("name", POLICIES)
@given(seed=st.integers(0, 200))
def test_a_policy_decides_each_sample_by_itself_and_answers_with_probabilities(
    name: str, seed: int
) -> None:
    policy, logits = every_policy()[name], draw_logits(seed)
    for k in (1, 2, 3):
        leave, probabilities = policy.decide(logits[:, :k])
        assert leave.dtype == np.bool_
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        for i in (0, 7):
            alone, answer = policy.decide(logits[i : i + 1, :k])
            assert alone[0] == leave[i]
            np.testing.assert_allclose(answer[0], probabilities[i], rtol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_survives_being_written_and_read(name: str) -> None:
    policy = every_policy()[name]
    assert make_policy(name, asdict(policy)) == policy  # type: ignore[call-overload]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_score_is_one_for_certainty_and_lowest_for_a_uniform_answer(name: str) -> None:
    score = THRESHOLDS[name].score
    certain, uniform = np.eye(5, dtype=np.float32)[:1], np.full((1, 5), 0.2, np.float32)
    assert score(certain)[0] == pytest.approx(1)
    assert score(uniform)[0] == pytest.approx(0 if name in ("entropy", "margin") else 0.2, abs=1e-6)


@given(
    values=st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=32),
    temperature=st.floats(0.1, 10),
    threshold=st.floats(0, 1) | st.just(NEVER),
)
def test_a_glance_decides_as_the_policy_does_or_not_at_all(
    values: list[float], temperature: float, threshold: float
) -> None:
    policy = Confidence((threshold,), (temperature, temperature))
    logits = np.array([[values]], np.float32)
    for k in (1, 2):
        passed = np.repeat(logits, k, axis=1)
        (leaves,), (probabilities,) = policy.decide(passed)
        confidence, seen = probabilities.max(), look(policy, passed[:, -1], k)
        if seen is None:
            too_large = max(map(abs, values)) >= LARGE * temperature
            assert too_large or abs(confidence - threshold) < SMALL
            continue
        assert seen[0] == leaves
        check_glance(seen, probabilities)


def look(policy: Confidence | Deepest | FixedExit, logits: np.ndarray, k: int) -> Glance | None:
    """Return what a glance sees at exit k for a policy."""
    return glance(logits, policy.temperatures[k - 1], policy.least_confidences[k - 1])


def check_glance(seen: Glance, probabilities: np.ndarray) -> None:
    """Check what a glance says besides where a sample leaves."""
    _, confidence, doubt, relative = seen
    assert abs(confidence - probabilities.max()) <= doubt < SMALL
    assert np.abs(np.array(relative) * confidence - probabilities).max() <= doubt
    if is_clear(seen):
        assert relative.index(1.0) == probabilities.argmax()
    else:
        second, first = np.sort(probabilities)[-2:]
        assert first - second < SMALL


@given(
    values=st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=32),
    temperature=st.floats(0.1, 10),
    policy=st.sampled_from([Deepest, partial(FixedExit, 1), partial(FixedExit, 2)]),
)
def test_a_glance_knows_which_exit_is_fixed(
    values: list[float], temperature: float, policy: Callable[..., Deepest | FixedExit]
) -> None:
    fixed = policy((temperature, temperature))
    logits = np.array([[values]], np.float32)
    for k in (1, 2):
        (leaves,), (probabilities,) = fixed.decide(np.repeat(logits, k, axis=1))
        seen = look(fixed, logits[:, 0], k)
        if seen is None:
            assert max(map(abs, values)) >= LARGE * temperature
            continue
        assert seen[0] == leaves
        check_glance(seen, probabilities)


@given(
    values=st.lists(st.floats(-0.125, 0.125, width=32), min_size=10, max_size=10),
    temperature=st.floats(0.5, 5),
)
def test_a_glance_tells_confidences_apart_that_differ_by_a_millionth(
    values: list[float], temperature: float
) -> None:
    logits = np.array([values], np.float32)
    largest = float(softmax(logits, temperature).max())
    for threshold in (largest - 1e-6, largest + 1e-6):
        seen = glance(logits, temperature, threshold)
        assert seen is not None
        assert seen[0] == (largest > threshold)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_glance_at_what_is_no_number_tells_nothing(odd: float, place: int) -> None:
    logits = np.zeros((1, 3), np.float32)
    logits[0, place] = odd
    assert glance(logits, 1.0, 0.9) is None


def test_entropy_and_margin_are_their_closed_forms() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25, 0.0]], np.float32)
    assert Entropy.score(probabilities)[0] == pytest.approx(1 - 1.5 / 2)  # in bits, of log2(4) = 2
    assert Margin.score(probabilities)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("name", THRESHOLDS)
@given(seed=st.integers(0, 200), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_threshold_never_leaves_later(
    name: str, seed: int, low: float, high: float
) -> None:
    low, high = min(low, high), max(low, high)
    logits, kind = draw_logits(seed), THRESHOLDS[name]
    sooner = simulate(kind((low, low), TEMPERATURES), logits).exits
    later = simulate(kind((high, high), TEMPERATURES), logits).exits
    assert (sooner <= later).all()


def test_the_running_ensemble_is_the_geometric_mean_of_the_exits_passed() -> None:
    logits = draw_logits(3)
    policy = RunningEnsemble((0.6, 0.6), TEMPERATURES)
    single = Confidence((0.6, 0.6), TEMPERATURES)
    for one, other in zip(policy.decide(logits[:, :1]), single.decide(logits[:, :1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    each = np.stack([softmax(logits[:, k], TEMPERATURES[k]) for k in range(3)])
    product = each.prod(axis=0) ** (1 / 3)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(policy.decide(logits)[1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("patience", "answers", "exit_taken"),
    [
        (1, [0, 1, 2, 3], 1),
        (2, [0, 0, 1, 1], 2),
        (2, [0, 1, 1, 2], 3),
        (2, [0, 1, 0, 1], 4),
        (3, [2, 2, 2, 0], 3),
        (3, [0, 2, 2, 2], 4),
        (4, [1, 1, 1, 1], 4),
    ],
)
def test_patience_waits_for_equal_answers_in_a_row(
    patience: int, answers: list[int], exit_taken: int
) -> None:
    logits = 3 * np.eye(4, dtype=np.float32)[answers][None]
    outcome = simulate(Patience(patience, (1.0,) * 4), logits)
    assert outcome.exits.tolist() == [exit_taken]
    assert outcome.predictions.tolist() == [answers[exit_taken - 1]]


def test_a_fixed_exit_takes_that_exit_and_the_deepest_the_last() -> None:
    logits = draw_logits(0)
    for exit_ in (1, 2, 3):
        outcome = simulate(FixedExit(exit_, ONES), logits)
        assert (outcome.exits == exit_).all()
        assert np.array_equal(outcome.predictions, logits[:, exit_ - 1].argmax(axis=1))
    assert (simulate(Deepest(ONES), logits).exits == 3).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("margin", {"thresholds": [0.5], "temperatures": [1.0]}),
        ("entropy", {"thresholds": [float("nan")], "temperatures": [1.0, 1.0]}),
        ("confidence", {"thresholds": [80], "temperatures": [1.0, 1.0]}),
        ("patience", {"patience": 0, "temperatures": [1.0, 1.0]}),
        ("patience", {"patience": 3, "temperatures": [1.0, 1.0]}),
        ("patience", {"patience": 1, "temperatures": [1.0, float("inf")]}),
        ("fixed-exit", {"exit": 3, "temperatures": [1.0, 1.0]}),
        ("deepest", {"temperatures": []}),
        ("deepest", {"temperatures": [0.0]}),
        ("deepest", {"temperatures": [1e-50]}),
        ("deepest", {"temperatures": [1e12]}),
    ],
)
def test_parameters_that_make_no_sense_are_a_clear_error(
    name: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=f"policy {name}"):
        make_policy(name, parameters)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Confidence((-1.0, 0.5), ONES),
        lambda: Confidence((80.0, 60.0), ONES),
        lambda: Entropy((0.5, float("inf")), ONES),
        lambda: Margin((0.5,), ONES),
        lambda: Entropy((0.5, 0.5), (1.0, 1.0, 1e-50)),
        lambda: Patience(0, ONES),
        lambda: Patience(4, ONES),
        lambda: Patience(2.5, ONES),  # type: ignore[arg-type]
        lambda: Patience(None, ONES),  # type: ignore[arg-type]
        lambda: FixedExit(4, ONES),
        lambda: FixedExit("2", ONES),  # type: ignore[arg-type]
        lambda: FixedExit(True, ONES),
        lambda: Deepest((1.0, float("nan"))),
        lambda: Confidence((None, 0.5), ONES),  # type: ignore[arg-type]
        lambda: Margin((0.5, 0.5), 1.0),  # type: ignore[arg-type]
        lambda: Deepest(("warm", 1.0)),  # type: ignore[arg-type]
    ],
)
def test_a_policy_made_by_hand_is_checked_likewise(build: Callable[[], Policy]) -> None:
    with pytest.raises(UsageError, match="must|need 2 thresholds"):
        build()


def test_the_numbers_of_a_policy_may_be_numpys() -> None:
    numbers: Any = np.array([0.25, 0.5]), np.ones(3)
    assert Confidence(*numbers) == Confidence((0.25, 0.5), ONES)
    assert Deepest(numbers[1]) == Deepest(ONES)


@pytest.mark.parametrize("temperature", [COLDEST, HOTTEST])
def test_the_coldest_and_the_hottest_still_tell_classes_apart(temperature: float) -> None:
    policy = Deepest((temperature,))
    logits = np.array([[[-3.0, 7.0, 6.0]]], np.float32)
    _, (probabilities,) = policy.decide(logits)
    assert probabilities.argmax() == 1
    assert probabilities.sum() == pytest.approx(1)
