"""Which exits pay: closed forms, and what merging does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.runtime.bench.paying import Paying, judge_exits


def judged(took_ms: list[float], unsplit_ms: float, shares: list[float]) -> Paying:
    found = judge_exits(took_ms, unsplit_ms, shares)
    assert found is not None
    return found


def test_an_exit_saves_the_next_segment_for_who_leaves_and_costs_its_head_for_all() -> None:
    # two segments of 5 ms, of which 1 ms is the head: without exits it takes 9 ms
    found = judged([5.0, 5.0], 9.0, [0.4, 0.6])
    assert found.saved_ms == pytest.approx([0.4 * 5 - 1])
    assert found.saved_ms == pytest.approx([9 - (5 + 0.6 * 5)])
    assert found.keep == (1, 2)


def test_an_exit_that_nobody_takes_does_not_pay() -> None:
    found = judged([4.0, 4.0, 4.0], 10.0, [0.6, 0.0, 0.4])
    # without exit 1 its images would leave at exit 2, after 7 ms
    assert found.saved_ms[0] == pytest.approx((7 + 0.4 * 4) - (4 + 0.4 * 7))
    assert found.saved_ms[1] == pytest.approx(-0.4 * 1)  # its head, for who reaches it
    assert found.keep == (1, 3)


def test_when_no_exit_pays_the_last_one_is_left() -> None:
    found = judged([4.0, 4.0, 4.0], 9.0, [0.1, 0.1, 0.8])
    assert max(found.saved_ms) < 0
    assert found.keep == (3,)


def test_an_exit_that_pays_only_without_its_neighbour_is_kept() -> None:
    found = judge_exits([3.0, 1.0, 6.5], 8.5, [0.5, 0.05, 0.45])  # a head takes 1 ms
    first_alone, second_alone = 3 + 0.5 * 6.5, 3 + 0.45 * 6.5
    assert second_alone < first_alone < 3 + 0.5 * 1 + 0.45 * 6.5
    assert found.keep == (2, 3)
    assert found.saved_ms[0] == pytest.approx(second_alone - first_alone)
    assert found.saved_ms[1] == pytest.approx(first_alone - second_alone)


def test_exits_that_together_cost_more_than_noise_are_not_all_kept() -> None:
    # each early head takes 0.3 ms of 10, and nobody leaves: one is noise of half a ms, two are not
    found = judge_exits([3.0, 3.3, 4.3], 10.0, [0.0, 0.0, 1.0], noise_ms=0.5)
    assert found is not None
    assert found.saved_ms == pytest.approx([-0.3, -0.3])
    assert len(found.keep) == 2
    found = judge_exits([3.0, 3.3, 4.3], 10.0, [0.0, 0.0, 1.0], noise_ms=0.7)
    assert found is not None
    assert found.keep == (1, 2, 3)


def test_a_network_of_one_exit_has_nothing_to_merge() -> None:
    found = judged([5.0], 5.0, [1.0])
    assert (found.saved_ms, found.keep) == ((), (1,))


def test_of_more_exits_than_can_be_tried_none_is_judged() -> None:
    assert judge_exits([1.0] * 17, 17.0, [0.0] * 16 + [1.0]) is None
    assert judge_exits([1.0] * 8, 8.0, [0.0] * 7 + [1.0]) is not None


networks = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0.01, 10), min_size=k, max_size=k),
        st.lists(st.floats(0.01, 1), min_size=k, max_size=k),
        st.floats(0.5, 1.5),
    )
)


@given(networks)
def test_exactly_those_exits_are_kept_that_save_something(
    drawn: tuple[list[float], list[float], float],
) -> None:
    took, weights, overhead = drawn
    found = judged(took, sum(took) / overhead, [w / sum(weights) for w in weights])
    assert found.keep[-1] == len(took)
    for k, saved in enumerate(found.saved_ms, start=1):
        assert saved >= -1e-9 if k in found.keep else saved <= 1e-9
