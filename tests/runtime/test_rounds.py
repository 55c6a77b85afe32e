"""What measured rounds tell of a deadline whose rule remembers: slow rounds end those after them.

The rounds are drawn independently here, so that all that makes them come together is the rule.
"""

from __future__ import annotations

import numpy as np
import pytest

from mate_edge.decide.rounds import design_effect, ended_shares
from mate_edge.runtime.deadline import FORGOTTEN, HICCUP, ended_by_one, exits_in_time
from mate_edge.runtime.fingerprint import Fingerprint
from mate_edge.runtime.latencies import Latencies

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
    exits = np.array(exits_in_time(measured(steady), max_ms, careful=True))
    (ended,) = np.nonzero(exits == 1)
    assert ended[0] == 100
    assert np.array_equal(ended, np.arange(100, 100 + len(ended)))
    assert 2 < len(ended) < FORGOTTEN
    assert abs(ended_by_one(measured(steady), max_ms) - len(ended)) <= 1
    assert ended_by_one(measured(steady), 2.03 + 2 * HICCUP) == 1, "there is time for all of it"


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
        rounds = np.array(exits_in_time(found, max_ms, careful=True))
        effect = max(ended_by_one(found, max_ms), design_effect(rounds, 2))
        # those to come, by nearly the same table: no slow segment reaches its quantiles
        ahead = measured(np.concatenate([drawn, draw(rng, 2000)], axis=1))
        share = (np.array(exits_in_time(ahead, max_ms, careful=True))[1000:] == 1).mean()
        naive += ended_shares(rounds, 2, chance)[0] < share
        broken += ended_shares(rounds, 2, chance, effect)[0] < share
    assert broken / 100 <= chance
    assert naive / 100 > 3 * chance, "else the rule's memory would not matter here"
