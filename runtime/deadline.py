"""The deadline: may one more segment run, given how long segments take on this device?

The first segment is mandatory, each further one optional (imprecise computation). The table of
latencies is fixed; only one slow-down factor moves, for all segments alike: a window for each
segment would starve, since a segment that no longer runs is never measured again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mate_edge.errors import UsageError
from mate_edge.runtime.latencies import Latencies

MISS_SHARE = 0.01
"""The share of deadlines that may be missed, beyond those that the first exit alone misses."""

SLOW_RATIO = 1.5
LARGEST_RATIO = 2.0
MEMORY = 0.9


@dataclass(frozen=True)
class LatencyTable:
    """What each segment and the rest of a prediction took on this device, in ms.

    Attributes:
        quantile_ms: one a segment; a high quantile, or the maximum when there are few samples.
        median_ms: one a segment.
        post_ms: the same quantile of what a whole prediction spends outside of its segments.
        samples: n.
        exact: False when n is too small for the quantile asked for, so that maxima stand in.
    """

    quantile_ms: tuple[float, ...]
    median_ms: tuple[float, ...]
    post_ms: float
    samples: int
    exact: bool

    @staticmethod
    def from_samples(
        segments_ms: Sequence[Sequence[float]], post_ms: Sequence[float]
    ) -> LatencyTable:
        """Make the table of n rounds; `segments_ms[k]` are segment k + 1's.

        The miss share bounds a whole prediction, so each of the K - 1 optional segments gets its
        part a' of it, and Q is the ceil((n + 1)(1 - a'))-th smallest sample, which a new one
        exceeds with probability a' at most.
        """
        optional = max(len(segments_ms) - 1, 1)
        n = min(len(samples) for samples in segments_ms)
        rank = math.ceil((n + 1) * (1 - MISS_SHARE / optional))

        def quantile(samples: Sequence[float]) -> float:
            return sorted(samples)[min(rank, n) - 1]

        return LatencyTable(
            quantile_ms=tuple(quantile(samples) for samples in segments_ms),
            median_ms=tuple(sorted(samples)[n // 2] for samples in segments_ms),
            post_ms=quantile(post_ms),
            samples=n,
            exact=rank <= n,
        )


def samples_needed(num_segments: int) -> int:
    """Return the smallest n for which `LatencyTable.from_samples` needs no maximum."""
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


def may_continue(
    table: LatencyTable, factor: float, next_segment: int, elapsed_ms: float, max_ms: float
) -> bool:
    """Say whether segment `next_segment` (from 1) can run and still answer within `max_ms`."""
    needed = table.quantile_ms[next_segment - 1] + table.post_ms
    return elapsed_ms + factor * needed <= max_ms


def time_left(
    table: LatencyTable,
    slow_down: SlowDown,
    k: int,
    segment_ms: float,
    elapsed_ms: float,
    max_ms: float | None,
) -> bool:
    """Take in what segment k has just taken, and say whether segment k + 1 may run.

    The runtime asks this after each segment, and so does the simulation of a deadline.
    """
    slow_down.observe(segment_ms / table.median_ms[k - 1])
    if max_ms is None or k == len(table.median_ms):
        return True
    return may_continue(table, slow_down.factor, k + 1, elapsed_ms, max_ms)


def exits_in_time(measured: Latencies, max_ms: float) -> list[int]:
    """Return the exit, from 1 to K, to which a deadline lets each measured round go.

    As the runtime would have done, one round after another, when no policy leaves early. All that
    a round spent outside of its segments counts before its first border: so it never goes deeper
    here than there.
    """
    table = LatencyTable.from_samples(measured.segments_ms, measured.rest_ms)
    slow_down = SlowDown()
    none = (0.0,) * measured.rounds
    outside = zip(
        measured.rest_ms, measured.decode_ms or none, measured.preprocess_ms or none, strict=True
    )
    exits = []
    for parts, segments in zip(outside, zip(*measured.segments_ms, strict=True), strict=True):
        elapsed_ms = sum(parts)
        for k, ms in enumerate(segments, start=1):
            elapsed_ms += ms
            if not time_left(table, slow_down, k, ms, elapsed_ms, max_ms):
                break
        exits.append(k)
    return exits


def check_max_ms(max_ms: float | None) -> None:
    """Refuse a deadline that is no positive number.

    Raises:
        UsageError: with the value.
    """
    if max_ms is not None and not (0 < max_ms < math.inf):
        raise UsageError(f"the deadline must be a positive number of ms, not {max_ms}")
