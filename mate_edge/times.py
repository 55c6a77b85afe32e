"""When something was, and how long it took: percentiles, and how many samples they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone

import msgspec

SURE = 0.99
"""A percentile is stated when the largest sample lies above it with this probability."""


def now_utc() -> str:
    """Return the time, as files hold it: ISO 8601, in whole seconds of UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """What n samples say, in ms; a percentile that n is too small for is None."""

    samples: int
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float

    @staticmethod
    def of(samples_ms: Sequence[float]) -> Times:
        """Sum up one sample or more."""
        ordered, n = sorted(samples_ms), len(samples_ms)

        def percentile(share: float) -> float | None:
            return ordered[math.ceil(share * n) - 1] if n >= samples_needed(share) else None

        return Times(
            samples=n,
            median_ms=ordered[(n - 1) // 2],
            p90_ms=percentile(0.9),
            p99_ms=percentile(0.99),
            max_ms=ordered[-1],
        )


def samples_needed(share: float) -> int:
    """Return the fewest samples for a percentile: 44 for the 90th, 459 for the 99th.

    All of n samples lie below the percentile with probability share^n, which must be 1 - `SURE` at
    most.
    """
    return math.ceil(math.log(1 - SURE) / math.log(share))
