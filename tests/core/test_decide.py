"""Policies, temperatures and thresholds: closed forms and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.policy import Confidence, Deepest, make_policy
from mate_edge.decide.simulate import Outcome, simulate
from mate_edge.decide.softmax import softmax
from mate_edge.decide.temperature import HIGHEST, fit_temperature
from mate_edge.decide.tune import search_thresholds
from mate_edge.errors import UsageError

ONES = (1.0, 1.0, 1.0)


def draw_logits(seed: int, n: int = 50, k: int = 3, c: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, k, c)).astype(np.float32)


def test_softmax_is_the_closed_form() -> None:
    logits = np.array([[1.0, 2.0, 4.0], [1000.0, 1000.0, -1000.0]], np.float32)
    expected = np.exp([0.5, 1.0, 2.0]) / np.exp([0.5, 1.0, 2.0]).sum()
    np.testing.assert_allclose(softmax(logits, 2.0)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(softmax(logits, 2.0)[1], [0.5, 0.5, 0.0])


def test_confidence_leaves_at_the_threshold_and_not_below() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1]], [[0.4, 0.35, 0.25]]], np.float32))
    leave, probabilities = Confidence((0.6, 0.6), ONES).decide(logits)
    assert leave.tolist() == [True, False]
    np.testing.assert_allclose(probabilities, np.exp(logits[:, 0]), rtol=1e-5)
    exactly = float(probabilities.max(axis=1)[0])
    assert Confidence((exactly, 1.0), ONES).decide(logits)[0].tolist() == [True, False]


def test_each_exit_has_its_own_temperature_and_threshold() -> None:
    logits = np.zeros((1, 2, 2), np.float32)
    logits[0, 1, 0] = 2.0
    policy = Confidence((2.0, 0.7), (1.0, 4.0, 1.0))
    leave, probabilities = policy.decide(logits)
    np.testing.assert_allclose(probabilities[0, 0], 1 / (1 + np.exp(-0.5)), rtol=1e-6)
    assert not leave[0]


@given(seed=st.integers(0, 1000), threshold=st.floats(0, 1))
def test_a_sample_is_decided_by_itself(seed: int, threshold: float) -> None:
    logits = draw_logits(seed)
    policy = Confidence((threshold, threshold), ONES)
    together, _ = policy.decide(logits[:, :2])
    alone = [policy.decide(logits[i : i + 1, :2])[0][0] for i in range(len(logits))]
    assert together.tolist() == alone


@given(seed=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_threshold_never_leaves_later(seed: int, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    logits = draw_logits(seed)
    sooner = simulate(Confidence((low, low), ONES), logits).exits
    later = simulate(Confidence((high, high), ONES), logits).exits
    assert (sooner <= later).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_simulation_refuses_logits_that_are_no_numbers(value: float) -> None:
    logits = np.zeros((5, 2, 3), np.float32)
    logits[3, 1, 2] = value
    with pytest.raises(UsageError, match=f"finite: sample 3 has {value} at exit 2"):
        simulate(Deepest((1.0, 1.0)), logits)


def test_simulation_takes_the_first_exit_at_threshold_zero_and_the_last_at_never() -> None:
    logits = draw_logits(1)
    first = simulate(Confidence((0.0, 0.0), ONES), logits)
    assert (first.exits == 1).all()
    assert np.array_equal(first.predictions, logits[:, 0].argmax(axis=1))
    for policy in (Confidence((2.0, 2.0), ONES), Deepest(ONES)):
        last = simulate(policy, logits)
        assert (last.exits == 3).all()
        assert np.array_equal(last.predictions, logits[:, 2].argmax(axis=1))


def test_outcome_counts_shares_and_flops() -> None:
    logits = np.zeros((4, 2, 2), np.float32)
    logits[:3, 0, 0] = 9.0
    outcome = simulate(Confidence((0.9,), (1.0, 1.0)), logits)
    assert outcome.exits.tolist() == [1, 1, 1, 2]
    assert outcome.exit_shares(2) == (0.75, 0.25)
    assert outcome.mean_cost((100, 300)) == 150
    assert outcome.accuracy(np.zeros(4, np.int64)) == 1.0


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (20_000, 5)).astype(np.float32)
    chances = softmax(honest).cumsum(axis=1)
    labels = (rng.random((20_000, 1)) > chances).sum(axis=1)
    found = fit_temperature(honest * np.float32(true_temperature), labels)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_no_mistakes_of_few_do_not_make_certain_and_noise_pushes_to_the_bound() -> None:
    sure = np.eye(4, dtype=np.float32)
    as_one_in_five_were_noise = 0.85  # e^(1/T) / (e^(1/T) + 3)
    found = fit_temperature(sure, np.arange(4))
    assert found == pytest.approx(1 / np.log(3 * 0.85 / 0.15), rel=1e-5)
    assert softmax(sure, found).max() == pytest.approx(as_one_in_five_were_noise, rel=1e-5)
    assert fit_temperature(np.repeat(sure, 10_000, axis=0), np.arange(4).repeat(10_000)) < 0.09
    assert fit_temperature(sure, (np.arange(4) + 1) % 4) == pytest.approx(HIGHEST, rel=1e-3)


def careful_drop(found: Outcome, logits: np.ndarray, labels: np.ndarray) -> float:
    """How far the policy is below the last exit, and a standard error more.

    Half a difference is added, unless none is lost where nothing leaves early.
    """
    n = len(labels)
    last = (logits[:, -1].argmax(axis=1) == labels).astype(float)
    behind = last - (found.predictions == labels)
    if not (behind > 0).any() and (found.exits == logits.shape[1]).all():
        return float(behind.mean())
    differ = (np.abs(behind).sum() + 0.5) / (n + 1)
    return float(behind.mean() + np.sqrt(max(differ - behind.mean() ** 2, 0) / n))


@pytest.mark.parametrize("max_drop", [0.0, 0.02, 0.1])
@given(seed=st.integers(0, 50))
def test_the_search_keeps_its_bound_and_saves_flops(max_drop: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = draw_logits(seed, n=200)
    labels = logits[:, 2].argmax(axis=1)
    labels[rng.random(200) < 0.1] = 0
    flops = (10, 20, 30)
    outcome = simulate(search_thresholds(logits, labels, ONES, flops, max_drop), logits)
    assert careful_drop(outcome, logits, labels) <= max_drop + 1e-9
    shared = [Confidence((t, t), ONES) for t in (0.0, 0.5, 0.7, 0.9, 0.97)]
    allowed = [
        found.mean_cost(flops)
        for found in (simulate(policy, logits) for policy in shared)
        if careful_drop(found, logits, labels) <= max_drop
    ]
    assert outcome.mean_cost(flops) <= min([30.0, *allowed]) + 0.5


@pytest.mark.parametrize("n", [12, 50, 200])
def test_few_samples_are_no_proof_that_nothing_is_lost(n: int) -> None:
    """Where the last exit is better by 8 points, points that may lose nothing lose little."""
    lost = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 5, n + 2000)
        logits = rng.normal(0, 1, (n + 2000, 2, 5)).astype(np.float32)
        easy = rng.normal(0, 1, n + 2000)
        for k, height in enumerate((3, 4)):
            logits[np.arange(n + 2000), k, labels] += height + easy
        policy = search_thresholds(logits[:n], labels[:n], (1.0, 1.0), (1, 2), 0.0)
        outcome, last = simulate(policy, logits[n:]), logits[n:, 1].argmax(axis=1)
        lost.append((last == labels[n:]).mean() - outcome.accuracy(labels[n:]))
    assert np.mean(lost) < 0.005


def test_with_two_exits_the_search_finds_what_trying_every_threshold_finds() -> None:
    logits = draw_logits(5, n=40, k=2)
    logits[:, 1] += logits[:, 0]
    labels = logits[:, 1].argmax(axis=1)
    ones = (1.0, 1.0)
    confidences = softmax(logits[:, 0]).max(axis=1)
    candidates = [float(c) for c in confidences] + [2.0]
    outcomes = [simulate(Confidence((t,), ones), logits) for t in candidates]
    costs = [o.mean_cost((1, 2)) for o in outcomes if careful_drop(o, logits, labels) <= 0.1]
    found = simulate(search_thresholds(logits, labels, ones, (1, 2), 0.1), logits)
    assert found.mean_cost((1, 2)) == min(costs) < 2


def test_what_is_promised_holds_on_samples_that_were_not_searched() -> None:
    # an exit that is right less often than the last one: what seems best on some samples is luck
    drops = []
    for seed in range(60):
        logits = draw_logits(seed, n=4000, k=2)
        logits[:, 1] += logits[:, 0]
        noise = np.random.default_rng(seed).normal(0, 2, logits[:, 1].shape)
        labels = (logits[:, 1] + noise).argmax(axis=1)
        seen, new = slice(0, 1000), slice(1000, None)
        policy = search_thresholds(logits[seen], labels[seen], (1.0, 1.0), (1, 2), 0.01)
        found = simulate(policy, logits[new])
        assert found.mean_cost((1, 2)) < 2
        last = (logits[new, 1].argmax(axis=1) == labels[new]).mean()
        drops.append(last - found.accuracy(labels[new]))
    assert np.mean(drops) <= 0.01


@pytest.mark.parametrize(
    ("n", "max_drop", "early"), [(4, 0.0, 0), (4, 0.2, 4), (996, 0.0, 0), (1000, 0.0, 1000)]
)
def test_of_an_easy_data_set_many_samples_leave_and_few_prove_nothing(
    n: int, max_drop: float, early: int
) -> None:
    logits = np.repeat(np.eye(4, dtype=np.float32)[:, None] * 50, 3, axis=1).repeat(n // 4, axis=0)
    labels = np.arange(4).repeat(n // 4)
    policy = search_thresholds(logits, labels, (0.05,) * 3, (1, 2, 3), max_drop)
    assert (simulate(policy, logits).exits == 1).sum() == early


def test_a_single_exit_needs_no_search() -> None:
    logits = draw_logits(0, k=1)
    policy = search_thresholds(logits, logits[:, 0].argmax(axis=1), (1.0,), (5,), 0.0)
    assert policy == Confidence((), (1.0,))
    assert (simulate(policy, logits).exits == 1).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("confidance", {}),
        ("confidence", {"thresholds": [0.5]}),
        ("confidence", {"thresholds": [0.5], "temperatures": [1.0]}),
        ("confidence", {"thresholds": [-0.5], "temperatures": [1.0, 1.0]}),
        ("confidence", {"thresholds": [0.5], "temperatures": [1.0, 0.0]}),
        ("confidence", {"thresholds": "high", "temperatures": [1.0, 1.0]}),
    ],
)
def test_a_policy_that_makes_no_sense_is_a_clear_error(
    name: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match="policy"):
        make_policy(name, parameters)


def test_policies_are_made_by_name() -> None:
    parameters = {"thresholds": [0.5, 0.6], "temperatures": [1.0, 1.0, 1.0]}
    assert make_policy("confidence", parameters) == Confidence((0.5, 0.6), ONES)
    assert make_policy("deepest", {"temperatures": [1.0, 1.0, 1.0]}) == Deepest(ONES)
    assert not Deepest(ONES).decide(draw_logits(0)[:, :2])[0].any()
