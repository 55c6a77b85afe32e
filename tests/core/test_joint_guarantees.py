"""A policy and a deadline certified together: one 0/1 loss, kept as often as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.calibrate import Calibration, draw_rounds
from mate_edge.decide.policy import Confidence
from mate_edge.decide.risk import learn_then_test
from mate_edge.decide.simulate import simulate
from mate_edge.decide.tune import Search, losses, lost_on_the_way
from mate_edge.errors import UsageError

EXITS, CLASSES = 3, 4
COSTS = (1.0, 2.0, 3.0)
HURRIED = np.repeat([1, 2, 3], [2, 8, 90])
"""Rounds in which the deadline ends 2 % at exit 1 and 8 % at exit 2."""


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits of three exits, each surer and better than the last, that err independently."""
    labels = rng.integers(0, CLASSES, n)
    logits = rng.normal(0, 1, (n, EXITS, CLASSES))
    logits += np.array([1.6, 2.0, 2.4])[:, None] * np.eye(CLASSES)[labels][:, None]
    return (2 * logits).astype(np.float32), labels


def test_a_deadline_ends_a_sample_where_the_policy_would_have_gone_on() -> None:
    logits, _ = draw(np.random.default_rng(0), 200)
    policy = Confidence((0.9, 0.9), (1.0,) * 3)
    deepest = np.random.default_rng(1).integers(1, 4, 200)
    free, hurried = simulate(policy, logits), simulate(policy, logits, deepest)
    assert np.array_equal(hurried.exits, np.minimum(free.exits, deepest))
    answers = logits.argmax(-1)[np.arange(200), hurried.exits - 1]
    assert np.array_equal(hurried.predictions, answers)


def test_the_search_counts_what_the_simulation_does_under_the_deadline() -> None:
    logits, labels = draw(np.random.default_rng(0), 300)
    deepest = np.random.default_rng(1).integers(1, 4, 300)
    search = Search(logits, labels, (1.0,) * 3, COSTS, "margin", deepest)
    for thresholds in ([0.2, 0.3], [0.7, 0.5], [2.0, 2.0]):
        outcome = simulate(search.policy(thresholds), logits, deepest)
        cost, right = search.outcome(thresholds, search.right)
        assert cost == pytest.approx(outcome.mean_flops(COSTS))
        assert right == (outcome.predictions == labels).sum()


@given(seed=st.integers(0, 500))
def test_a_sample_that_is_kept_is_kept_under_every_longer_deadline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = draw(rng, 60)
    policy = Confidence((0.8, 0.8), (1.0,) * 3)
    deepest = rng.integers(1, 4, 60)
    longer = np.maximum(deepest, rng.integers(1, 4, 60))
    flags = losses(logits.argmax(-1), logits, labels)["worse"]
    free = simulate(policy, logits).exits
    lost = lost_on_the_way(flags, deepest)[np.arange(60), free - 1]
    for allowed in (deepest, longer, np.full(60, EXITS)):
        answered = simulate(policy, logits, allowed).predictions
        assert lost[losses(answered, logits, labels)["worse"]].all()
    assert not lost[~flags.any(axis=1)].any()


def test_each_sample_meets_one_round_the_same_one_every_time() -> None:
    drawn = draw_rounds(HURRIED, 20_000)
    assert np.array_equal(drawn, draw_rounds(HURRIED, 20_000))
    shares = np.bincount(drawn, minlength=4)[1:] / 20_000
    np.testing.assert_allclose(shares, [0.02, 0.08, 0.9], atol=0.015)


def test_a_thousand_calibrations_under_a_deadline_keep_their_promise_as_often_as_said() -> None:
    """The risk of every step, over images and rounds, is known from a large population."""
    rng = np.random.default_rng(3)
    epsilon, delta, n = 0.06, 0.1, 400
    broken, risks = 0, []
    for _ in range(10):
        calibration = Calibration(*draw(rng, 2 * n), COSTS, rounds=HURRIED)
        policies = [calibration.search.policy(step) for step in calibration.search.path("worse")]
        calibration.logits, calibration.labels = draw(rng, 4000)
        calibration.deepest = rng.choice(HURRIED, 4000)
        lost = np.stack([calibration.lost(policy, "worse") for policy in policies])
        met = np.stack(
            [
                losses(
                    simulate(policy, calibration.logits, calibration.deepest).predictions,
                    calibration.logits,
                    calibration.labels,
                )["worse"]
                for policy in policies
            ]
        ).mean(axis=1)
        assert (lost.mean(axis=1) >= met).all()
        assert met[0] > 0.01, "the deadline alone loses answers"
        for _ in range(100):
            seen = lost[:, rng.integers(0, lost.shape[1], n)]
            if passed := learn_then_test(list(seen), epsilon, delta):
                risks.append(met[passed - 1])
                broken += lost[passed - 1].mean() > epsilon
    assert broken / 1000 <= delta
    assert len(risks) > 500
    assert max(risks) > epsilon / 2, "the promise is not kept by never leaving early"


def test_a_deadline_that_loses_too_much_by_itself_is_refused() -> None:
    data = draw(np.random.default_rng(0), 1000)
    always_late = np.ones(100, np.int64)
    with pytest.raises(UsageError, match=r"early: \d+ of 500 .* ends 500 .* a longer deadline"):
        Calibration(*data, COSTS, rounds=always_late).within_risk(0.05, 0.05)
    never_late = Calibration(*data, COSTS, rounds=np.full(100, 3)).within_risk(0.05, 0.05)
    free = Calibration(*data, COSTS).within_risk(0.05, 0.05)
    assert never_late.policy == free.policy
    assert never_late.halted == 0
    hurried = Calibration(*data, COSTS, rounds=HURRIED).within_risk(0.1, 0.05)
    assert 0 < hurried.halted < 50
    assert hurried.outcome.exit_shares(3)[2] < 0.9
