"""Guarantees for thresholds: walk an ordered path, stop before the risk is too high.

`learn_then_test` bounds the risk itself with high probability, `conformal_risk_control` only its
mean over calibration sets. Both hold for images like those that they were calibrated on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import UsageError

SMALLEST_RISK = 1e-9
"""Below it even a path without a single loss would take billions of samples."""


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p), 0 < p < 1."""
    if k >= n:
        return 1.0
    if k < 0:
        return 0.0
    numbers = np.arange(1, k + 1, dtype=np.float64)
    ratios = np.log((n - numbers + 1) / numbers) + math.log(p) - math.log1p(-p)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(ratios)])
    largest = float(logs.max())
    return min(1.0, math.exp(largest) * float(np.exp(logs - largest).sum()))


@lru_cache(maxsize=1024)
def upper_share(k: int, n: int, delta: float) -> float:
    """Return the share that k of n draws are below with probability 1 - delta, 0 < delta < 1.

    The largest p with P(Binomial(n, p) <= k) > delta (Clopper and Pearson, Biometrika 26, 1934).
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if binomial_cdf(k, n, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def levels_of_images(epsilon: float, delta: float | None) -> tuple[float, float | None, float]:
    """Split the levels of a policy and a deadline between the images and the measured rounds.

    Each may mislead: half of delta is for either. A mean risk has no delta; a tenth of epsilon is
    the chance of rounds that mislead, in which all may be lost.

    Returns:
        Epsilon and delta for the images, and the chance allowed that the rounds mislead.
    """
    if delta is None:
        return 0.9 * epsilon, None, 0.1 * epsilon
    return epsilon, delta / 2, delta / 2


def samples_needed(epsilon: float, delta: float) -> int:
    """Return the smallest n with which a path without a single loss can be certified."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon) - 1e-12)


def learn_then_test(losses: Sequence[NDArray[np.bool_]], epsilon: float, delta: float) -> int:
    """Return how far along a path the risk is certified: P(risk <= epsilon) >= 1 - delta.

    Fixed-sequence testing: each step is tested at level delta, with the exact binomial p-value, as
    long as all before it passed. Angelopoulos et al., "Learn then Test", arXiv:2110.01052;
    for early exits Jazbec et al., arXiv:2405.20915.

    Args:
        losses: of each step of the path, from conservative to aggressive, bool [n]: 0/1 losses of
            samples that chose neither the path nor its order.
        epsilon: the risk allowed, in (0, 1).
        delta: the chance allowed of being wrong about it, in (0, 1).

    Returns:
        The number of leading steps that passed; 0 when not even the first did.
    """
    for passed, loss in enumerate(losses):
        if binomial_cdf(int(loss.sum()), len(loss), epsilon) > delta:
            return passed
    return len(losses)


def conformal_risk_control(losses: Sequence[NDArray[np.bool_]], epsilon: float) -> int:
    """Return how far along a path the mean risk over calibration sets is at most epsilon.

    Angelopoulos et al., "Conformal Risk Control", arXiv:2208.02814. A sample's loss is taken to be
    the largest so far, since the method needs losses that never fall along the path.

    Args:
        losses: as in `learn_then_test`.
        epsilon: the mean risk allowed, in (0, 1).

    Returns:
        The number of leading steps that are allowed; 0 when not even the first is.
    """
    worst: NDArray[np.bool_] | None = None
    for passed, loss in enumerate(losses):
        worst = loss if worst is None else worst | loss
        if (int(worst.sum()) + 1) / (len(worst) + 1) > epsilon:
            return passed
    return len(losses)


def check_levels(
    epsilon: float, delta: float | None, n: int | None, deadline: bool = False
) -> None:
    """Refuse levels that make no sense, and samples too few for them.

    Args:
        epsilon: the risk.
        delta: the chance of being wrong about it; None for `conformal_risk_control`.
        n: the samples to certify with; None when they are not known yet.
        deadline: whether the images have their part of the levels only; see `levels_of_images`.

    Raises:
        UsageError: with the values, or with the smallest n.
    """
    for name, level in (("--max-risk", epsilon), ("--delta", delta)):
        if level is not None and not 0 < level < 1:
            raise UsageError(
                f"{name} must lie between 0 and 1, not {level:g}: 0.01 or 1% is one per cent"
            )
    if delta is not None and delta < SMALLEST_RISK:
        raise UsageError(f"--delta must be {SMALLEST_RISK:g} or more, not {delta:g}")
    if epsilon < SMALLEST_RISK:
        raise UsageError(
            f"--max-risk must be {SMALLEST_RISK:g} or more, not {epsilon:g}: no number of "
            "images certifies less, so allow more"
        )
    risk, wrong = levels_of_images(epsilon, delta)[:2] if deadline else (epsilon, delta)
    needed = math.ceil(1 / risk - 1e-12) - 1 if wrong is None else samples_needed(risk, wrong)
    if n is not None and n < needed:
        chance = "" if delta is None else f" and --delta {delta:g}"
        under = " under a deadline" if deadline else ""
        raise UsageError(
            f"--max-risk {epsilon:g}{chance}{under} needs {needed} samples to certify with, "
            f"here are {n}, half of the labelled images: allow more risk, or bring more images: "
            "tune --images DIR"
        )
