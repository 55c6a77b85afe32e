"""Drift: closed forms, and how often it cries wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.drift import (
    FEWEST,
    FINE,
    LARGE,
    chi_square,
    compare,
    count_confidences,
    fine_bin,
)


def draw(rng: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """Draw confidences as a network gives them: most of them near 1."""
    return (1 / (1 + np.exp(-rng.normal(3 - shift, 2, n)))).clip(0.1, 1).astype(np.float32)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_fine_bins_are_in_order_and_none_lies_outside(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    assert 0 <= fine_bin(low) <= fine_bin(high) < FINE


def test_the_index_is_its_closed_form() -> None:
    reference, counts = [0] * FINE, [0] * FINE
    reference[10], reference[20] = 500, 500
    counts[10], counts[20] = 200, 800
    shares = [(200.5 / 1001, 0.5), (800.5 / 1001, 0.5)]
    found = compare(reference, counts)
    assert found is not None
    assert found.psi == pytest.approx(sum((a - e) * math.log(a / e) for a, e in shares))
    assert found.samples == 1000
    assert found.warns
    same = compare(reference, reference)
    assert same is not None
    assert (same.psi, same.limit, same.warns) == (0, LARGE, False)


@pytest.mark.parametrize(
    ("freedom", "truth"), [(1, 10.828), (4, 18.467), (9, 27.877)]
)  # tables of the chi-square distribution, 0.999
def test_the_quantile_agrees_with_the_tables(freedom: int, truth: float) -> None:
    assert chi_square(freedom, 3.0902) == pytest.approx(truth, rel=0.035)


@pytest.mark.parametrize("n", [FEWEST, 300, 5000])
@pytest.mark.parametrize("m", [150, 3000])
def test_images_like_those_of_calibration_warn_less_than_once_in_a_hundred(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        found = compare(count_confidences(draw(rng, m)), count_confidences(draw(rng, n)))
        assert found is not None
        alarms += found.warns
    assert alarms <= 4


@pytest.mark.parametrize("n", [FEWEST, 1000])
def test_confidence_that_has_shifted_warns(n: int) -> None:
    rng = np.random.default_rng(0)
    reference = count_confidences(draw(rng, 3000))
    for _ in range(20):
        found = compare(reference, count_confidences(draw(rng, n, shift=2)))
        assert found is not None
        assert found.warns


def test_thirty_images_say_nothing_and_neither_does_a_network_with_one_confidence() -> None:
    rng = np.random.default_rng(0)
    reference = count_confidences(draw(rng, 3000))
    assert compare(reference, count_confidences(draw(rng, 30, shift=4))) is None
    sure = count_confidences(np.ones(500, np.float32))
    assert compare(sure, reference) is None
