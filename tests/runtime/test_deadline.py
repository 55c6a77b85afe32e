"""The deadline rule: quantiles, the slow-down factor, and when to go on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.errors import UsageError
from mate_edge.runtime.deadline import (
    MISS_SHARE,
    MOST_ALLOWED,
    LatencyTable,
    MissBudget,
    SlowDown,
    check_max_ms,
    check_reachable,
    may_continue,
    rounds_needed,
    time_left,
)
from mate_edge.runtime.fingerprint import Fingerprint
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.replay import exits_at_least, exits_in_time


def test_the_quantile_is_the_order_statistic_of_the_spec() -> None:
    samples = list(np.random.default_rng(0).permutation(np.arange(1.0, 1000.0)))
    table = LatencyTable.from_samples([samples] * 3, [0.3] * 999)
    # two optional segments share 1 %: ceil(1000 * 0.995) = 995th smallest of 999
    assert table.median_ms == (500.0,) * 3
    # a third of what a round spends outside of three segments comes after each
    assert table.finish_ms == pytest.approx((995.1,) * 3)
    assert table.bold_ms == pytest.approx((950.1,) * 3)
    assert (table.samples, table.exact) == (999, True)


def test_a_hiccup_outside_of_the_segments_is_in_one_of_the_gaps() -> None:
    rest = [0.3] * 150 + [9.0] * 149
    table = LatencyTable.from_samples([[1.0] * 299] * 3, rest)
    assert table.finish_ms == pytest.approx((9.8,) * 3)
    rare = [0.3] * 298 + [9.0]
    table = LatencyTable.from_samples([[1.0] * 299] * 3, rare)
    assert sorted(table.finish_ms) == pytest.approx([1.1, 1.1, 9.8])


def test_too_few_samples_give_the_maximum_and_say_so() -> None:
    table = LatencyTable.from_samples([[1.0, 3.0, 2.0]] * 2, [0.1, 0.2, 0.3])
    assert table.finish_ms == pytest.approx((3.1, 3.1))  # of one round, not the sum of two maxima
    assert table.bold_ms == table.finish_ms
    assert not table.exact


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 8])
def test_rounds_needed_is_the_smallest_n_without_a_maximum(segments: int) -> None:
    n = rounds_needed(segments)
    assert LatencyTable.from_samples([[1.0] * n] * segments, [1.0] * n).exact
    fewer = [1.0] * (n - 1)
    assert not LatencyTable.from_samples([fewer] * segments, fewer).exact


def test_a_new_sample_exceeds_the_quantile_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(2000):
        samples = rng.exponential(size=300)
        table = LatencyTable.from_samples([list(samples)] * 2, [0.0] * 300)
        exceeded += rng.exponential() > table.finish_ms[1]
    assert exceeded / 2000 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 2000)


TABLE = LatencyTable((0.8, 1.5, 3.0), (1.5, 2.5, 4.5), (1.2, 2.2, 4.2), 999, True)


def test_it_goes_on_exactly_when_the_next_segment_still_fits() -> None:
    assert may_continue(TABLE, 1.0, 2, elapsed_ms=2.5, max_ms=5.0)
    assert not may_continue(TABLE, 1.0, 2, elapsed_ms=2.5001, max_ms=5.0)
    assert not may_continue(TABLE, 1.2, 2, elapsed_ms=2.5, max_ms=5.0)
    assert may_continue(TABLE, 2.0, 3, elapsed_ms=1.0, max_ms=10.0)


def test_bold_is_to_take_the_lower_quantile() -> None:
    assert may_continue(TABLE, 1.0, 2, elapsed_ms=2.8, max_ms=5.0, bold=True)
    assert not may_continue(TABLE, 1.0, 2, elapsed_ms=2.8001, max_ms=5.0, bold=True)
    assert not may_continue(TABLE, 1.0, 2, elapsed_ms=2.8, max_ms=5.0, bold=False)


def test_the_first_deadlines_are_met_carefully() -> None:
    budget = MissBudget()
    for _ in range(round(2 / MISS_SHARE) - 1):
        assert not budget.bold
        budget.settle(missed=False)
    budget.settle(missed=False)
    assert budget.bold
    budget.settle(missed=True)
    assert not budget.bold


@given(missed=st.lists(st.booleans(), max_size=2000), quiet=st.integers(0, 2000))
def test_being_bold_costs_half_of_the_share_at_most(missed: list[bool], quiet: int) -> None:
    budget, bold_misses = MissBudget(), 0
    outcomes = [False] * quiet + missed  # a long quiet time pays for no burst
    for number, miss in enumerate(outcomes, start=1):
        bold_misses += budget.bold and miss
        budget.settle(miss)
        assert bold_misses <= number * MISS_SHARE / 2
        if number > quiet:
            assert bold_misses <= 2 + (number - quiet) * MISS_SHARE / 2


@given(hurt=st.lists(st.booleans(), max_size=3000))
def test_going_on_costs_the_share_and_few_misses_more_whatever_the_device_does(
    hurt: list[bool],
) -> None:
    budget, missed = MissBudget(), 0
    for number, late in enumerate(hurt, start=1):  # each going on that is so is late
        goes_on = time_left(TABLE, SlowDown(), budget, 1, 0.8, 0.8, max_ms=100.0)
        assert time_left(TABLE, SlowDown(), budget, 1, 0.8, 0.8, 100.0, free=True)
        missed += goes_on and late
        budget.settle(goes_on and late)
        assert missed <= number * MISS_SHARE + MOST_ALLOWED


def test_what_is_used_up_is_earned_again() -> None:
    budget = MissBudget()
    for _ in range(round(MOST_ALLOWED)):
        assert not budget.used_up
        budget.settle(missed=True)
    assert budget.used_up
    for _ in range(round(1 / MISS_SHARE)):
        budget.settle(missed=False)
    assert not budget.used_up
    budget.settle(missed=True, certified=True)
    assert not budget.used_up, "nobody else pays for what was certified"
    budget.settle(missed=True)
    assert budget.used_up


def test_what_the_budget_alone_ended_is_counted() -> None:
    budget = MissBudget()
    for _ in range(round(MOST_ALLOWED)):
        budget.settle(missed=True)
    for max_ms, free in ((1.0, False), (1.0, True), (100.0, True)):  # no time, or free to go on
        assert time_left(TABLE, SlowDown(), budget, 1, 0.8, 0.8, max_ms, free) == (max_ms == 100)
    assert budget.ended == 0
    assert not time_left(TABLE, SlowDown(), budget, 1, 0.8, 0.8, 100.0)
    assert budget.ended == 1


def test_a_deadline_below_what_exit_1_needs_is_said_or_refused() -> None:
    said: list[str] = []
    check_reachable(TABLE, 1.5, strict=True, say=said.append)
    check_reachable(TABLE, 1.5, strict=False, say=said.append)
    assert not said
    check_reachable(TABLE, 1.5, strict=False, say=said.append, frame_ms=0.25)
    assert "1.5 ms is less than the 1.75 ms that exit 1 may need" in said[0]
    assert "0.25 ms of it before the network" in said[0]
    with pytest.raises(UsageError, match="1.4 ms is less than the 1.50 ms"):
        check_reachable(TABLE, 1.4, strict=True, say=said.append)


@given(ratios=st.lists(st.floats(0.01, 1000.0), max_size=60))
def test_the_factor_stays_between_one_and_the_largest_ratio(ratios: list[float]) -> None:
    slow_down = SlowDown()
    for ratio in ratios:
        slow_down.observe(ratio)
        assert 1.0 <= slow_down.factor <= max(1.0, *ratios)


def test_one_hiccup_changes_little_and_three_slow_segments_are_believed() -> None:
    slow_down = SlowDown()
    slow_down.observe(50.0)
    assert slow_down.factor == pytest.approx(1.1)
    slow_down.observe(1.0)
    slow_down.observe(3.0)
    slow_down.observe(2.0)
    assert slow_down.factor < 1.5
    slow_down.observe(2.5)
    assert slow_down.factor == 2.5


def test_the_factor_recovers_when_the_device_does() -> None:
    slow_down = SlowDown()
    for _ in range(3):
        slow_down.observe(4.0)
    assert slow_down.factor == 4.0
    for _ in range(60):
        slow_down.observe(1.0)
    assert slow_down.factor == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("max_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_deadline_that_is_no_positive_number_is_refused(max_ms: float) -> None:
    with pytest.raises(UsageError, match="deadline"):
        check_max_ms(max_ms)
    check_max_ms(None)
    check_max_ms(0.1)


def test_a_careful_replay_never_goes_deeper_than_the_rule_that_earns_boldness() -> None:
    rng = np.random.default_rng(0)
    rounds = [list(ms * rng.lognormal(0, 0.2, 1000)) for ms in (1.0, 2.0, 4.0)]
    measured = Latencies(
        bundle_id="b",
        fingerprint=Fingerprint(
            engine="e", cpu="c", cpus=1, power_mode=None, gpu_clocks_mhz=None, versions={}
        ),
        segments_ms=tuple(map(tuple, rounds)),
        rest_ms=(0.1,) * 1000,
        created="now",
    )
    careful = exits_at_least(measured, 8.0)
    bold = exits_in_time(measured, 8.0)
    assert all(shallow <= deep for shallow, deep in zip(careful, bold, strict=True))
    assert sum(careful) < sum(bold)
    assert careful[:200] == bold[:200]
