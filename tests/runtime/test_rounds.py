"""What measured rounds tell of a deadline whose rule remembers: slow rounds end those after them.

The rounds are drawn independently here, so that all that makes them come together is the rule.
"""

from __future__ import annotations

import numpy as np
import pytest

from mate_edge.decide.rounds import design_effect, ended_shares
from mate_edge.runtime.deadline import LatencyTable, MissBudget, SlowDown, time_left
from mate_edge.runtime.fingerprint import Fingerprint
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.replay import FORGOTTEN, HICCUP, ended_by_one, exits_at_least

HERE = Fingerprint(engine="e", cpu="c", cpus=1, power_mode=None, gpu_clocks_mhz=None, versions={})


def measured(segments_ms: np.ndarray) -> Latencies:
    """Make the record of rounds of segments that take `segments_ms`, [K, m], and 0.03 ms more."""
    return Latencies(
        bundle_id="0" * 64,
        fingerprint=HERE,
        segments_ms=tuple(map(tuple, segments_ms.tolist())),
        rest_ms=(0.03,) * segments_ms.shape[1],
        created="2026-11-29T20:00:00+00:00",
    )


def draw(rng: np.random.Generator, m: int, hiccups: float = 0.002) -> np.ndarray:
    """Draw two segments of 1 ms, [2, m], of which a share takes ten times as long."""
    usual = rng.normal(1, 0.001, (2, m))
    return np.where(rng.random((2, m)) < hiccups, 10 * usual, usual)


def test_one_slow_segment_ends_the_rounds_after_it_until_it_is_forgotten() -> None:
    steady = np.ones((2, 200))
    steady[0, 100] = 10
    max_ms = 2.03 + 0.5 * HICCUP  # there is no time for half of what one adds to the factor
    exits = np.array(exits_at_least(measured(steady), max_ms))
    (ended,) = np.nonzero(exits == 1)
    assert ended[0] == 100
    assert np.array_equal(ended, np.arange(100, 100 + len(ended)))
    assert 2 < len(ended) < FORGOTTEN
    assert abs(ended_by_one(measured(steady), max_ms) - len(ended)) <= 1
    assert ended_by_one(measured(steady), 2.03 + 2 * HICCUP) == 1, "there is time for all of it"


def ended(segments_ms: np.ndarray, max_ms: float, leave_at: np.ndarray) -> np.ndarray:
    """Return the exit at which the rule ends each round, [m]; K where it does not.

    A round's image leaves at `leave_at`, [m], unless it is ended before: then its deeper segments
    do not run, and the rule does not hear of them.
    """
    num_segments, m = segments_ms.shape
    table = LatencyTable.from_samples(segments_ms.tolist(), [0.03] * m)
    slow_down, careful, found = SlowDown(), MissBudget(), np.full(m, num_segments)
    for i in range(m):
        for k in range(1, leave_at[i] + 1):
            ms, since_ms = segments_ms[k - 1, i], 0.03 + segments_ms[:k, i].sum()
            if not time_left(table, slow_down, careful, k, ms, since_ms, max_ms):
                found[i] = k
                break
    return found


def test_no_image_is_ended_earlier_than_counted_wherever_those_before_it_left() -> None:
    rng, earlier = np.random.default_rng(0), 0
    for _ in range(20):
        drawn = rng.normal(1, 0.001, (3, 400))
        drawn[0, ::40] = rng.uniform(2, 4)
        drawn[1:] *= np.where(rng.random((2, 400)) < 0.005, 3, 1)
        # in some of eight rounds one after another, which whoever leaves at exit 1 hears in a row
        drawn[0, 201:209] *= np.where(rng.random(8) < 0.7, rng.uniform(1.6, 5, 8), 1)
        max_ms = 3.03 + rng.choice([0.03, 0.5])
        counted = np.array(exits_at_least(measured(drawn), max_ms))
        nobody = ended(drawn, max_ms, np.full(400, 3))
        assert (counted <= nobody).all()
        for deep in (0.1, 0.5):
            leave_at = np.where(rng.random(400) < deep, 3, rng.integers(1, 3, 400))
            found = ended(drawn, max_ms, leave_at)
            assert (counted <= found).all()
            earlier += (found < nobody).sum()
    assert earlier > 20, "else a replay in which nobody leaves would do"


def test_slow_segments_that_images_of_different_exits_heard_count_as_heard_in_a_row() -> None:
    drawn = np.ones((3, 400))  # so many that the quantiles are of usual rounds
    drawn[:, 50], drawn[:, 51] = (3, 1, 1), (3, 3, 1)
    leave_at = np.full(400, 3)
    leave_at[50:52] = 1, 2  # hears 3, 3 and 3, and takes the device for three times slower
    assert ended(drawn, 4.4, leave_at)[52] == 2
    assert ended(drawn, 4.4, np.full(400, 3))[52] == 3
    assert exits_at_least(measured(drawn), 4.4)[52] == 2


def test_independent_rounds_count_as_many_as_they_are_and_blocks_as_so_many_blocks() -> None:
    rng = np.random.default_rng(0)
    effects = [design_effect(1 + (rng.random(2500) > 0.1), 2) for _ in range(200)]
    assert 1 <= np.mean(effects) < 1.2
    together = np.repeat(1 + (rng.random(250) > 0.1), 10)
    assert design_effect(together, 2) == pytest.approx(10, rel=0.4)
    for rounds in ([1], [2], [1, 2], [2] * 100):
        assert design_effect(np.array(rounds), 2) == 1
    assert ended_shares(together, 2, 0.05, effect=10) == pytest.approx(
        ended_shares(together[::10], 2, 0.05), abs=0.01
    )
    assert ended_shares(np.array([2, 2]), 2, 0.05, effect=10)[0] == pytest.approx(0.95), (
        "one at least"
    )


def test_the_bound_holds_as_often_as_said_though_slow_rounds_come_together() -> None:
    rng, chance, max_ms = np.random.default_rng(0), 0.05, 2.1
    naive = broken = 0
    for _ in range(100):
        drawn = draw(rng, 1000)
        found = measured(drawn)
        rounds = np.array(exits_at_least(found, max_ms))
        effect = max(ended_by_one(found, max_ms), design_effect(rounds, 2))
        # those to come, by nearly the same table: no slow segment reaches its quantiles
        ahead = measured(np.concatenate([drawn, draw(rng, 2000)], axis=1))
        share = (np.array(exits_at_least(ahead, max_ms))[1000:] == 1).mean()
        naive += ended_shares(rounds, 2, chance)[0] < share
        broken += ended_shares(rounds, 2, chance, effect)[0] < share
    assert broken / 100 <= chance
    assert naive / 100 > 3 * chance, "else the rule's memory would not matter here"
