"""What a deadline would have done with the rounds that were measured on a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from mate_edge.runtime.deadline import (
    LARGEST_RATIO,
    MEMORY,
    SLOW_RATIO,
    LatencyTable,
    MissBudget,
    SlowDown,
    time_left,
)
from mate_edge.runtime.latencies import Latencies

HICCUP = (1 - MEMORY) * (LARGEST_RATIO - 1)
"""What one slow segment adds to the slow-down factor, at most."""

FORGOTTEN = 100
"""Rounds after which nothing is left of it, even where each runs one segment: 0.9^100."""


def exits_in_time(measured: Latencies, max_ms: float) -> list[int]:
    """Return the exit, from 1 to K, to which a deadline lets each measured round go.

    As the runtime would have done, one round after another, when no policy leaves early. All that
    a round spent outside of its segments counts before its first border.

    Args:
        measured: of this device.
        max_ms: the deadline.
    """
    table, slow_down, budget = _table(measured), SlowDown(), MissBudget()
    exits = []
    for i in range(measured.rounds):
        k, elapsed_ms = _replay(measured, table, max_ms, i, slow_down, budget)
        budget.settle(k > 1 and elapsed_ms > max_ms)
        exits.append(k)
    return exits


def exits_at_least(measured: Latencies, max_ms: float) -> list[int]:
    """Return the exit that an image reaches by a deadline in each measured round, at least.

    This is what a guarantee rests on. It is never bold, like the first rounds of a process, and its
    budget is never used up, as that ends nothing that was certified together with the deadline. And
    it does not matter where the policy let the images of the rounds before leave: the slow-down
    factor hears only the segments that run, so each round meets a factor that no choice of exits
    leaves a larger one than.

    Args:
        measured: of this device.
        max_ms: the deadline.
    """
    return _at_least(measured, _table(measured), max_ms, range(measured.rounds), 1.0)


def ended_by_one(measured: Latencies, max_ms: float) -> int:
    """Return how many rounds a deadline ends early because one segment was slow, at most.

    That one, and those after it that the slow-down factor's memory ends: what m rounds tell of a
    device that is slow now and then is what m over this number of independent rounds would.

    Args:
        measured: of this device.
        max_ms: the deadline.
    """
    table, most = _table(measured), 0
    for first in range(0, measured.rounds, FORGOTTEN):
        part = range(first, min(first + FORGOTTEN, measured.rounds))
        usual, after = (
            _at_least(measured, table, max_ms, part, factor) for factor in (1.0, 1 + HICCUP)
        )
        most = max(most, sum(k < other for k, other in zip(after, usual, strict=True)))
    return 1 + most


def _table(measured: Latencies) -> LatencyTable:
    return LatencyTable.from_samples(measured.segments_ms, measured.rest_ms)


def _at_least(
    measured: Latencies, table: LatencyTable, max_ms: float, rounds: range, factor: float
) -> list[int]:
    """Return the exits of some rounds, see `exits_at_least`, from a slow-down factor on."""
    careful, worst, exits = MissBudget(), WorstSlowDown(), []
    worst.factor = factor
    for i in rounds:
        exits.append(_replay(measured, table, max_ms, i, worst.copy(), careful)[0])
        leaving, heard = [], worst.copy()  # by an image that leaves at exit 1, 2, ...
        for segment_ms, usual in zip(measured.segments_ms, table.median_ms, strict=True):
            heard.observe(segment_ms[i] / usual)
            leaving.append(heard.copy())
        worst = WorstSlowDown.of(leaving)
    return exits


def _replay(
    measured: Latencies,
    table: LatencyTable,
    max_ms: float,
    i: int,
    slow_down: SlowDown,
    budget: MissBudget,
) -> tuple[int, float]:
    """Return the exit that round i reaches, and when it is there in ms."""
    before = (measured.rest_ms, measured.decode_ms, measured.preprocess_ms)
    elapsed_ms = sum(ms[i] for ms in before if ms)
    for k, segment_ms in enumerate(measured.segments_ms, start=1):
        elapsed_ms += segment_ms[i]
        if not time_left(table, slow_down, budget, k, segment_ms[i], elapsed_ms, max_ms):
            break
    return k, elapsed_ms


class WorstSlowDown(SlowDown):
    """A slow-down whose factor is not below that of any it stands for; see `exits_at_least`.

    Three slow segments in a row may have been heard by images of different exits. So it keeps the
    largest slow ratios that may have come in a row, also after some were adopted: the median of any
    three is the second largest at most.
    """

    def copy(self) -> WorstSlowDown:
        """Return another that knows the same."""
        twin = WorstSlowDown()
        twin.factor, twin._slow = self.factor, list(self._slow)
        return twin

    @staticmethod
    def of(several: Sequence[WorstSlowDown]) -> WorstSlowDown:
        """Return the one that stands for all of them."""
        worst = WorstSlowDown()
        worst.factor = max(one.factor for one in several)
        ranks = zip_longest(*(one._slow for one in several), fillvalue=0.0)
        worst._slow = [max(ratios) for ratios in ranks]
        return worst

    def observe(self, ratio: float) -> None:
        """See `SlowDown.observe`."""
        self.factor = max(1.0, MEMORY * self.factor + (1 - MEMORY) * min(ratio, LARGEST_RATIO))
        if ratio <= SLOW_RATIO:
            self._slow.clear()
            return
        self._slow = sorted([*self._slow, ratio], reverse=True)[:3]
        if len(self._slow) == 3:
            self.factor = max(self.factor, self._slow[1])
