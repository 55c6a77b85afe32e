"""Guarantees: the binomial in closed form, and how often a certified risk is really kept."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from drawn import CLASSES, COSTS, draw
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.calibrate import Calibration, halve
from mate_edge.decide.policy import THRESHOLDS
from mate_edge.decide.risk import (
    binomial_cdf,
    check_levels,
    conformal_risk_control,
    learn_then_test,
    samples_needed,
)
from mate_edge.decide.simulate import simulate
from mate_edge.decide.tune import Loss
from mate_edge.errors import UsageError


@given(n=st.integers(1, 60), k=st.integers(-1, 61), p=st.floats(0.001, 0.999))
def test_the_binomial_is_its_closed_form(n: int, k: int, p: float) -> None:
    terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1)]
    assert binomial_cdf(k, n, p) == pytest.approx(sum(terms), abs=1e-9)


def test_the_binomial_of_many_samples_neither_overflows_nor_vanishes() -> None:
    assert binomial_cdf(500, 100_000, 0.005) == pytest.approx(0.5, abs=0.02)
    assert binomial_cdf(0, 100_000, 0.01) == pytest.approx(0.99**100_000, abs=1e-300)


def test_one_per_cent_at_five_per_cent_needs_299_samples() -> None:
    assert samples_needed(0.01, 0.05) == 299
    none = [np.zeros(299, np.bool_)]
    assert learn_then_test(none, 0.01, 0.05) == 1
    assert learn_then_test([loss[:-1] for loss in none], 0.01, 0.05) == 0


def test_testing_stops_at_the_first_failure_even_when_a_later_step_would_pass() -> None:
    good, bad = np.zeros(500, np.bool_), np.ones(500, np.bool_)
    assert learn_then_test([good, bad, good], 0.01, 0.05) == 1
    assert conformal_risk_control([good, bad, good], 0.01) == 1


@pytest.mark.parametrize(
    ("epsilon", "delta", "n", "message"),
    [
        (0.0, 0.05, 999, "--max-risk must lie between 0 and 1, not 0"),
        (1e-320, 0.05, None, "--max-risk must be 1e-09 or more, not 9.99989e-321"),
        (1e-320, None, 999, "--max-risk must be 1e-09 or more"),
        (1e-300, 0.05, 999, "--max-risk must be 1e-09 or more, not 1e-300"),
        (1e-9, 0.05, 999, "needs 2995732[0-9]{3} samples to certify with"),
        (0.01, 1.5, 999, "--delta must lie between 0 and 1, not 1.5"),
        (0.01, 0.05, 298, "needs 299 samples to certify with, here are 298"),
        (0.01, None, 98, "needs 99 samples to certify with, here are 98"),
    ],
)
def test_levels_that_make_no_sense_and_too_few_samples_are_refused(
    epsilon: float, delta: float | None, n: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_levels(epsilon, delta, n)


def test_the_halves_are_apart_complete_and_the_same_every_time() -> None:
    search, certify = halve(101)
    assert sorted([*search, *certify]) == list(range(101))
    assert np.array_equal(halve(101)[0], search)


@pytest.mark.parametrize("loss", ["worse", "differs"])
def test_a_thousand_calibrations_break_their_promise_no_more_often_than_delta(loss: Loss) -> None:
    """The risk of every step of a path is known from a large population."""
    rng = np.random.default_rng(1)
    epsilon, delta, n = 0.03, 0.1, 400
    tested, controlled = [], []  # the risks that were settled for
    for _ in range(10):
        calibration = Calibration(*draw(rng, 2 * n), COSTS)
        path = calibration.search.path(loss)
        calibration.logits, calibration.labels = draw(rng, 4000)
        held = calibration.held_back()
        losses = np.stack([held.lost[loss][held.taken(step)] for step in path])
        truth = losses.mean(axis=1)
        assert (calibration.logits[:, 0].argmax(1) == calibration.labels)[
            calibration.logits[:, 2].argmax(1) != calibration.labels
        ].any(), "there are mistakes that an early exit repairs"
        for _ in range(100):
            seen = list(losses[:, rng.integers(0, losses.shape[1], n)])
            tested.append(truth[learn_then_test(seen, epsilon, delta) - 1])
            controlled.append(truth[conformal_risk_control(seen, epsilon) - 1])
    for risks in (tested, controlled):
        assert np.mean(risks) <= epsilon
        assert max(risks) > epsilon / 4, "the promise is not kept by never leaving early"
    assert np.mean(np.array(tested) > epsilon) <= delta


def test_the_net_loss_which_is_not_0_or_1_would_break_the_promise() -> None:
    """What an early exit repairs makes up for what it loses, and varies as much again."""
    rng = np.random.default_rng(1)
    epsilon, delta, n = 0.03, 0.05, 400
    broken = 0
    for _ in range(10):
        calibration = Calibration(*draw(rng, 2 * n), COSTS)
        logits, labels = draw(rng, 4000)
        policies = map(calibration.search.policy, calibration.search.path("worse"))
        right = np.stack([simulate(one, logits).predictions == labels for one in policies])
        net = (logits[:, -1].argmax(axis=1) == labels).astype(int) - right
        for _ in range(100):
            lost = net[:, rng.integers(0, len(labels), n)].sum(axis=1)
            passes = [binomial_cdf(int(count), n, epsilon) <= delta for count in lost]
            last = (passes.index(False) if False in passes else len(passes)) - 1
            broken += last >= 0 and net[last].mean() > epsilon
    assert broken / 1000 > 3 * delta


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_every_goal_is_met_on_the_half_that_it_was_searched_on(kind: str) -> None:
    logits, labels = draw(np.random.default_rng(5), 2000)
    calibration = Calibration(logits, labels, COSTS, kind)
    search, _ = halve(len(labels))

    def on_search(policy: object) -> tuple[float, float]:
        outcome = simulate(policy, logits[search])  # type: ignore[arg-type]
        return outcome.mean_cost(COSTS), outcome.accuracy(labels[search])

    last = (logits[search, -1].argmax(axis=1) == labels[search]).mean()
    cost, accuracy = on_search(calibration.within_drop(0.01).policy)
    assert accuracy >= last - 0.01 - 1e-9
    assert cost < 3
    cost, accuracy = on_search(calibration.within_budget(1.5, "FLOPs").policy)
    assert cost <= 1.5
    assert accuracy > on_search(calibration.within_budget(1.0, "FLOPs").policy)[1]
    certified = calibration.within_risk(0.05, 0.1)
    assert certified.guarantee is not None
    assert certified.guarantee.n == 1000
    assert binomial_cdf(certified.guarantee.losses, 1000, 0.05) <= 0.1
    assert certified.outcome.mean_cost(COSTS) < 3


def test_the_path_goes_from_never_to_the_cheapest_and_each_step_is_cheaper() -> None:
    logits, labels = draw(np.random.default_rng(2), 1000)
    search = Calibration(logits, labels, COSTS).search
    found = [search.outcome(step, search.lost["worse"]) for step in search.path("worse")]
    costs = [cost for cost, _ in found]
    assert found[0] == (3.0, 0)
    assert all(later < earlier for earlier, later in pairwise(costs))
    assert costs[-1] < 1.2


def test_a_budget_below_the_first_exit_is_refused() -> None:
    calibration = Calibration(*draw(np.random.default_rng(0), 100), COSTS)
    with pytest.raises(
        UsageError, match=r"budget of 0\.5 FLOPs is below what exit 1 alone costs, 1"
    ):
        calibration.within_budget(0.5, "FLOPs")


def test_a_budget_of_just_what_the_first_exit_costs_is_met_though_a_mean_rounds() -> None:
    logits, labels = draw(np.random.default_rng(0), 14)
    for cost in (0.1, 0.3, 0.7, 1e6 / 3):
        found = Calibration(logits, labels, (cost, 2 * cost, 3 * cost)).within_budget(cost, "ms")
        assert found.outcome.mean_cost((cost, 2 * cost, 3 * cost)) == pytest.approx(cost)


def draw_alike(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits of two exits that give the same answers, right in 80 %, and of a last one, 90 %.

    Together the two are surer than the last one.
    """
    labels = rng.integers(0, CLASSES, n)

    def answer(share: float) -> np.ndarray:
        wrong = (labels + rng.integers(1, CLASSES, n)) % CLASSES
        return np.eye(CLASSES)[np.where(rng.random(n) < share, labels, wrong)]

    early = answer(0.8)
    return np.stack([early, early, answer(0.9)], axis=1).astype(np.float32), labels


@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("max_drop", [0.0, 0.01, 0.4])
def test_a_drop_is_from_the_last_exit_itself_whatever_all_of_them_say(
    kind: str, max_drop: float
) -> None:
    logits, labels = draw_alike(np.random.default_rng(0), 2000)
    search, _ = halve(len(labels))
    calibration = Calibration(logits, labels, COSTS, kind)
    last = (logits[search, -1].argmax(axis=1) == labels[search]).mean()
    if kind == "ensemble" and max_drop < 0.4:
        drop = 100 * (last - calibration.search.right[:, -1].mean())
        assert drop == pytest.approx(10, abs=3)
        with pytest.raises(UsageError, match=rf"at most {100 * max_drop:g} points below"):
            calibration.within_drop(max_drop)
        return
    found = simulate(calibration.within_drop(max_drop).policy, logits[search])
    assert found.accuracy(labels[search]) >= last - max_drop - 1e-9
