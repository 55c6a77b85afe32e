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


def mixed(shares: dict[float, float], n: int) -> list[int]:
    """Count n confidences, of each the share that is said."""
    each = [np.full(round(share * n), confidence) for confidence, share in shares.items()]
    return count_confidences(np.concatenate(each).astype(np.float32))


@pytest.mark.parametrize(
    "usual",
    [
        {1.0: 0.89, 0.6: 0.11},
        {1.0: 0.92, 0.6: 0.08},
        {1.0: 0.999, 0.6: 0.001},
        {1.0: 1.0},
        {0.9: 1.0},
        {0.5: 0.05, 0.9: 0.92, 0.99: 0.03},
    ],
)
@pytest.mark.parametrize("n", [200, 5000])
def test_a_network_that_is_nearly_always_sure_warns_when_it_no_longer_is(
    usual: dict[float, float], n: int
) -> None:
    reference = mixed(usual, 3000)
    found = compare(reference, mixed({0.3: 1.0}, n))
    assert found is not None
    assert found.warns
    same = compare(reference, mixed(usual, 1000))
    assert same is not None
    assert not same.warns


@pytest.mark.parametrize("sure", [0.92, 0.995])
@pytest.mark.parametrize("n", [FEWEST, 1000])
@pytest.mark.parametrize("m", [150, 3000])
def test_a_network_that_is_nearly_always_sure_gives_no_more_false_alarms(
    sure: float, n: int, m: int
) -> None:
    rng, alarms = np.random.default_rng(0), 0

    def some(size: int) -> list[int]:
        return count_confidences(np.where(rng.random(size) < sure, 1, draw(rng, size)))

    for _ in range(400):
        found = compare(some(m), some(n))
        assert found is not None
        alarms += found.warns
    assert alarms <= 4


def test_thirty_images_say_nothing() -> None:
    rng = np.random.default_rng(0)
    reference = count_confidences(draw(rng, 3000))
    assert compare(reference, count_confidences(draw(rng, 30, shift=4))) is None


def test_float32s_steps_near_certainty_are_no_drift() -> None:
    """Calibration's confidences are float32, those of a running device floats: at 1 - 1e-8 too."""
    rng = np.random.default_rng(0)
    margins = rng.normal(18, 0.5, (2, 5000))
    reference = (1 / (1 + 9 * np.exp(-margins[0], dtype=np.float32))).astype(np.float32)
    seen = 1 / (1 + 9 * np.exp(-margins[1]))
    found = compare(count_confidences(reference), count_confidences(seen))
    assert found is not None
    assert found.psi < 0.01
