"""A policy and a deadline certified together: one 0/1 loss, kept as often as promised."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import COSTS, EXITS, draw
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.calibrate import Calibration
from mate_edge.decide.policy import Confidence
from mate_edge.decide.risk import check_levels, learn_then_test, levels_of_images
from mate_edge.decide.rounds import draw_exits, ended_shares
from mate_edge.decide.simulate import simulate
from mate_edge.decide.tune import Search, losses, lost_on_the_way
from mate_edge.errors import UsageError

HURRIED = np.repeat([1, 2, 3], [2, 8, 90])
"""Rounds in which the deadline ends 2 % at exit 1 and 8 % at exit 2."""


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
        assert cost == pytest.approx(outcome.mean_cost(COSTS))
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
    ended = ended_shares(HURRIED, EXITS)
    assert ended == [0.02, 0.1]
    drawn = draw_exits(ended, 20_000)
    assert np.array_equal(drawn, draw_exits(ended, 20_000))
    shares = np.bincount(drawn, minlength=4)[1:] / 20_000
    np.testing.assert_allclose(shares, [0.02, 0.08, 0.9], atol=0.015)
    assert (draw_exits(ended_shares(HURRIED, EXITS, 0.05), 20_000) <= drawn).all()
    assert (draw_exits([0.0, 0.0], 100) == EXITS).all()
    assert (draw_exits([1.0, 1.0], 100) == 1).all()


@pytest.mark.parametrize(("m", "chance"), [(10, 0.2), (50, 0.05), (500, 0.1)])
def test_the_bounds_of_the_shares_hold_together_as_often_as_said(m: int, chance: float) -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        bounds = ended_shares(rng.choice(HURRIED, m), EXITS, chance)
        wrong += bounds[0] < 0.02 or bounds[1] < 0.1
    assert wrong / 1000 <= chance
    assert ended_shares(np.full(m, EXITS), EXITS, chance) == pytest.approx(
        [1 - (chance / 2) ** (1 / m)] * 2
    ), "closed form where no round was ended"


def test_a_thousand_calibrations_under_a_deadline_keep_their_promise_as_often_as_said() -> None:
    """Images and rounds are drawn anew; the risk of every step is known from a population."""
    rng = np.random.default_rng(3)
    epsilon, delta, n = 0.06, 0.1, 400
    risk, wrong, chance = levels_of_images(epsilon, delta)
    assert wrong is not None
    certified: dict[int, list[float]] = {20: [], 200: []}
    for _ in range(10):
        calibration = Calibration(*draw(rng, 2 * n), COSTS, rounds=HURRIED)
        path = calibration.search.path("worse")
        calibration.logits, calibration.labels = draw(rng, 4000)
        held = [calibration.held_back(np.full(4000, k)) for k in (1, 2, 3)]
        by_depth = np.array([[one.lost["worse"][one.taken(step)] for one in held] for step in path])
        risk_of = np.einsum("skn,k->s", by_depth, [0.02, 0.08, 0.9]) / 4000
        for m, risks in certified.items():
            for _ in range(100):
                images = rng.integers(0, 4000, n)
                bounds = ended_shares(rng.choice(HURRIED, m), EXITS, chance)
                lost = by_depth[:, draw_exits(bounds, n) - 1, images]
                if passed := learn_then_test(list(lost), risk, wrong):
                    risks.append(risk_of[passed - 1])
    for risks in certified.values():
        assert (np.array(risks) > epsilon).sum() / 1000 <= delta
    assert len(certified[200]) > 500
    assert max(certified[200]) > epsilon / 2, "the promise is not kept by never leaving early"


def test_what_is_lost_under_a_deadline_is_what_the_simulation_loses_at_least() -> None:
    calibration = Calibration(*draw(np.random.default_rng(5), 800), COSTS, rounds=HURRIED)
    held = calibration.held_back(calibration.deepest)
    for step in calibration.search.path("worse"):
        policy = calibration.search.policy(step)
        lost = held.lost["worse"][held.taken(step)]
        met = simulate(policy, calibration.logits, calibration.deepest).predictions
        assert lost[losses(met, calibration.logits, calibration.labels)["worse"]].all()


def test_few_rounds_certify_less_and_the_error_says_how_many_there_were() -> None:
    data = draw(np.random.default_rng(0), 2000)
    for m in (1, 5):
        with pytest.raises(UsageError, match=f"0 of {m} measured rounds.*bench --rounds"):
            Calibration(*data, COSTS, rounds=np.full(m, EXITS)).within_risk(0.05, 0.05)
    found = Calibration(*data, COSTS, rounds=np.full(5000, EXITS)).within_risk(0.05, 0.05)
    few = Calibration(*data, COSTS, rounds=np.full(200, EXITS)).within_risk(0.05, 0.05)
    assert found.guarantee is not None
    assert few.guarantee is not None
    assert (few.guarantee.rounds, found.guarantee.rounds) == (200, 5000)
    assert sum(few.policy.thresholds) >= sum(found.policy.thresholds)


def test_under_a_deadline_the_mean_risk_spends_a_tenth_on_the_rounds() -> None:
    assert levels_of_images(0.1, None) == pytest.approx((0.09, None, 0.01))
    data = draw(np.random.default_rng(0), 2000)
    found = Calibration(*data, COSTS, rounds=np.full(1000, EXITS)).within_risk(0.05, None)
    assert found.guarantee is not None
    assert found.guarantee.delta is None
    with pytest.raises(UsageError, match="under a deadline needs 45 samples"):
        check_levels(0.02417, None, 40, deadline=True)


def test_a_deadline_that_loses_too_much_by_itself_is_refused() -> None:
    data = draw(np.random.default_rng(0), 1000)
    always_late = np.ones(100, np.int64)
    with pytest.raises(UsageError, match=r"early: \d+ of 500 .* may end 500 .* a longer deadline"):
        Calibration(*data, COSTS, rounds=always_late).within_risk(0.05, 0.05)
    never_late = Calibration(*data, COSTS, rounds=np.full(5000, 3)).within_risk(0.05, 0.05)
    assert never_late.guarantee is not None
    assert (never_late.guarantee.halted or 0) < 5
    hurried = Calibration(*data, COSTS, rounds=np.repeat(HURRIED, 20)).within_risk(0.1, 0.05)
    assert hurried.guarantee is not None
    assert 0 < (hurried.guarantee.halted or 0) < 70
    assert hurried.outcome.exit_shares(3)[2] < 0.9
