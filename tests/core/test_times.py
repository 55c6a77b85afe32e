"""Percentiles, and the samples that they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.times import Times, samples_needed


def test_a_percentile_needs_enough_samples_for_one_to_lie_above_it() -> None:
    assert samples_needed(0.9) == 44
    assert samples_needed(0.99) == 459
    for share in (0.5, 0.9, 0.99, 0.999):
        assert share ** samples_needed(share) <= 0.01 < share ** (samples_needed(share) - 1)


@pytest.mark.parametrize(
    ("n", "p90", "p99"),
    [(1, None, None), (43, None, None), (44, 40.0, None), (458, 413.0, None), (459, 414.0, 455.0)],
)
def test_percentiles_are_stated_only_where_there_are_enough(
    n: int, p90: float | None, p99: float | None
) -> None:
    found = Times.of([float(ms) for ms in range(n, 0, -1)])
    assert (found.samples, found.p90_ms, found.p99_ms, found.max_ms) == (n, p90, p99, n)
    assert found.median_ms == (n + 1) // 2


@given(st.integers(0, 2**32), st.integers(459, 600))
def test_percentiles_rise_and_are_samples(seed: int, n: int) -> None:
    samples: list[float] = np.random.default_rng(seed).exponential(size=n).tolist()
    found = Times.of(samples)
    assert found.p90_ms is not None
    assert found.p99_ms is not None
    assert found.median_ms <= found.p90_ms <= found.p99_ms <= found.max_ms == max(samples)
    assert {found.median_ms, found.p90_ms, found.p99_ms} <= set(samples)
