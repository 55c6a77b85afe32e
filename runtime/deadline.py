"""The deadline: may one more segment run, given how long segments take on this device?

The first segment is mandatory, each further one optional (imprecise computation). The table of
latencies is fixed. Two things move: one slow-down factor, for all segments alike (a window for each
segment would starve, since a segment that no longer runs is never measured again), and a budget of
misses, which says whether a careful or a bold quantile of the table counts, or no segment follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mate_edge.errors import UsageError

MISS_SHARE = 0.01
"""The share of deadlines that may be missed, beyond those that the first exit alone misses."""

BOLD_SHARE = 0.05
"""How often a segment may take longer than its bold quantile."""

MOST_CREDIT = 2.0  # misses: a long quiet time must not pay for a burst of them
MOST_ALLOWED = 5.0
"""Misses: with fewer, those that being bold costs would often be followed by a stop."""

SLOW_RATIO = 1.5
LARGEST_RATIO = 2.0
MEMORY = 0.9


@dataclass(frozen=True)
class LatencyTable:
    """What each segment and the rest of a prediction took on this device, in ms.

    Attributes:
        median_ms: one a segment.
        finish_ms: a high quantile, or the maximum when there are few samples, of each segment
            together with its part of what the same round spent outside of its segments: what it may
            take to answer from there. (The sum of two quantiles would count one hiccup twice: on a
            busy machine that doubles it.)
        bold_ms: the same with a lower quantile, which a segment exceeds with `BOLD_SHARE`.
        samples: n.
        exact: False when n is too small for the quantile asked for, so that maxima stand in.
    """

    median_ms: tuple[float, ...]
    finish_ms: tuple[float, ...]
    bold_ms: tuple[float, ...]
    samples: int
    exact: bool

    @property
    def spread(self) -> float:
        """How many times its median a segment may take, the one that varies most."""
        return max(q / m for q, m in zip(self.finish_ms, self.median_ms, strict=True))

    @property
    def first_exit_ms(self) -> float:
        """What an answer from exit 1 may take, once the image is decoded and preprocessed."""
        return self.finish_ms[0]

    @staticmethod
    def from_samples(
        segments_ms: Sequence[Sequence[float]], rest_ms: Sequence[float]
    ) -> LatencyTable:
        """Make the table of n rounds; `segments_ms[k]` are segment k + 1's, each n long.

        The miss share bounds a whole prediction, so each of the K - 1 optional segments gets its
        part a' of it, and Q is the ceil((n + 1)(1 - a'))-th smallest sample, which a new one
        exceeds with probability a' at most.
        """
        num_segments, n = len(segments_ms), len(rest_ms)

        def rank(share: float) -> int:
            return math.ceil((n + 1) * (1 - share))

        careful = rank(MISS_SHARE / max(num_segments - 1, 1))
        bold = min(rank(BOLD_SHARE), careful)
        finish = [sorted(row) for row in _finish_ms(segments_ms, rest_ms)]
        return LatencyTable(
            median_ms=tuple(sorted(samples)[n // 2] for samples in segments_ms),
            finish_ms=tuple(samples[min(careful, n) - 1] for samples in finish),
            bold_ms=tuple(samples[min(bold, n) - 1] for samples in finish),
            samples=n,
            exact=careful <= n,
        )


def _finish_ms(
    segments_ms: Sequence[Sequence[float]], rest_ms: Sequence[float]
) -> list[list[float]]:
    """Return each segment's times with what came after it in the same round, [K][n].

    That is a K-th of the usual rest, since the gaps after the segments are alike. What is beyond
    the usual is one hiccup in one of the gaps: it is segment k's in every K-th round.
    """
    num_segments, usual = len(segments_ms), sorted(rest_ms)[len(rest_ms) // 2]

    def finish(ms: float, rest: float, hit: bool) -> float:
        return ms + min(rest, usual) / num_segments + (max(rest - usual, 0.0) if hit else 0.0)

    return [
        [
            finish(ms, rest, i % num_segments == k)
            for i, (ms, rest) in enumerate(zip(samples, rest_ms, strict=True))
        ]
        for k, samples in enumerate(segments_ms)
    ]


def rounds_needed(num_segments: int) -> int:
    """Return the fewest rounds of which `LatencyTable.from_samples` needs no maximum."""
    optional = max(num_segments - 1, 1)
    return math.ceil(optional / MISS_SHARE) - 1


class SlowDown:
    """How much slower the device is now than when its table was measured; never below 1."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._slow: list[float] = []

    def observe(self, ratio: float) -> None:
        """Take in one segment's observed time over its median.

        A running mean forgets slowly, so that one hiccup changes little; three slow segments in a
        row are a change, and their median is adopted at once.
        """
        self.factor = max(1.0, MEMORY * self.factor + (1 - MEMORY) * min(ratio, LARGEST_RATIO))
        if ratio <= SLOW_RATIO:
            self._slow.clear()
            return
        self._slow.append(ratio)
        if len(self._slow) == 3:
            self.factor = sorted(self._slow)[1]
            self._slow.clear()


class MissBudget:
    """How many deadlines may still be missed: as an error budget, earned slowly and spent at once.

    A high quantile for each segment bounds the misses of the worst deadline, one that leaves just
    this quantile's time to each image; nearly all others leave more, and then it stops too early.
    So while misses are below their share the rule is bold. Each deadline earns half of
    `MISS_SHARE` (the other half is for what the careful quantiles let through), each miss beyond
    exit 1 costs one. Of T deadlines T MISS_SHARE / 2 at most are missed for being bold, whatever
    the device does, and the first requests of a process are answered carefully.

    Even careful quantiles bound nothing on a device that no longer is as it was measured. So there
    is an allowance for all misses beyond exit 1, of which each deadline earns `MISS_SHARE`. Once it
    is used up exit 1 answers alone: of T deadlines T MISS_SHARE + `MOST_ALLOWED` at most are missed
    for going on, whatever the device does. What was certified together with its deadline neither
    spends it nor is ended by it: there the answers were promised, and not how many are in time.

    Attributes:
        credit: how many misses being bold may cost, from 0 to `MOST_CREDIT`.
        allowed: how many misses going on may cost, from 0 to `MOST_ALLOWED`.
        ended: how many requests it alone has kept from going on.
    """

    def __init__(self) -> None:
        self.credit, self.allowed = 0.0, MOST_ALLOWED
        self.ended = 0

    @property
    def bold(self) -> bool:
        """Whether one more miss is paid for."""
        return self.credit >= 1

    @property
    def used_up(self) -> bool:
        """Whether not even one more miss is allowed, so that exit 1 answers alone."""
        return self.allowed < 1

    def settle(self, missed: bool, certified: bool = False) -> None:
        """Take in a request that had a deadline, and whether it was missed beyond exit 1."""
        self.credit = max(min(self.credit + MISS_SHARE / 2, MOST_CREDIT) - missed, 0.0)
        if not certified:
            self.allowed = max(min(self.allowed + MISS_SHARE, MOST_ALLOWED) - missed, 0.0)


def may_continue(
    table: LatencyTable,
    factor: float,
    next_segment: int,
    elapsed_ms: float,
    max_ms: float,
    bold: bool = False,
) -> bool:
    """Say whether segment `next_segment` (from 1) can run and still answer within `max_ms`."""
    finish_ms = table.bold_ms if bold else table.finish_ms
    return elapsed_ms + factor * finish_ms[next_segment - 1] <= max_ms


def check_reachable(
    table: LatencyTable,
    max_ms: float,
    strict: bool,
    say: Callable[[str], object],
    frame_ms: float = 0.0,
) -> None:
    """Say it when the first exit alone may take longer than the deadline.

    Args:
        table: of this device.
        max_ms: the deadline.
        strict: make it an error.
        say: told so otherwise; the exit answers all the same.
        frame_ms: what decoding and preprocessing take.

    Raises:
        UsageError: it may, and `strict`.
    """
    needed = frame_ms + table.first_exit_ms
    if needed <= max_ms:
        return
    before = f", {frame_ms:.2f} ms of it before the network" if frame_ms else ""
    short = f"{max_ms:g} ms is less than the {needed:.2f} ms that exit 1 may need here{before}"
    if strict:
        raise UsageError(f"{short}: allow more, or do without --strict")
    say(f"{short}: exit 1 answers all the same, marked as missed when it is late")


def time_left(
    table: LatencyTable,
    slow_down: SlowDown,
    budget: MissBudget,
    k: int,
    segment_ms: float,
    elapsed_ms: float,
    max_ms: float | None,
    free: bool = False,
) -> bool:
    """Take in what segment k has just taken, and say whether segment k + 1 may run.

    The runtime asks this after each segment, and so does the simulation of a deadline. What is
    `free` the budget does not end: it leaves here anyway, or was certified with the deadline.
    """
    slow_down.observe(segment_ms / table.median_ms[k - 1])
    if max_ms is None or k == len(table.median_ms):
        return True
    if not may_continue(table, slow_down.factor, k + 1, elapsed_ms, max_ms, budget.bold):
        return False
    if budget.used_up and not free:
        budget.ended += 1
        return False
    return True


def check_max_ms(max_ms: float | None) -> None:
    """Refuse a deadline that is no positive number.

    Raises:
        UsageError: with the value.
    """
    if max_ms is not None and not (0 < max_ms < math.inf):
        raise UsageError(f"the deadline must be a positive number of ms, not {max_ms}")
