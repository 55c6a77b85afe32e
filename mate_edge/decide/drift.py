"""Drift of the data, without labels: does exit 1 still see the confidences of calibration?

Exit 1 sees every image, whatever the policy and the deadline. Its confidences are counted in fine
bins, which need no reference and no memory; only when somebody asks are they compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, sqrt

import numpy as np
from numpy.typing import NDArray

BINS = 10
FINE = 256
SMALLEST = 2.0**-14
"""Added to 1 - confidence, which may be 0: far above float32's steps there, which are 2^-24."""
SCALE = FINE / 14.0001

LARGE = 0.25
"""From here on a population stability index is called a large shift, by custom: Siddiqi, "Credit
Risk Scorecards", 2006 (below 0.1: none to speak of)."""
FEWEST = 100
"""Images below which nothing is said: ten in each bin."""
FALSE_ALARMS_Z = 3.0902
"""The normal quantile of 0.999: one comparison in a thousand may exceed the limit by chance."""


@dataclass(frozen=True)
class Drift:
    """How far the confidences of exit 1 have moved since calibration.

    Attributes:
        psi: the population stability index, 0 when nothing moved.
        limit: what it must exceed for a warning, see `compare`.
        samples: images compared.
    """

    psi: float
    limit: float
    samples: int

    @property
    def warns(self) -> bool:
        """Whether the shift is large and no accident."""
        return self.psi > self.limit


def fine_bin(confidence: float) -> int:
    """Return the bin of a confidence, at least 0: of equal width in log(1 - confidence).

    What rounding puts above 1 counts as 1.
    """
    return int(log2(1.0 - min(confidence, 1.0) + SMALLEST) * -SCALE)


def count_confidences(confidences: NDArray[np.float32]) -> list[int]:
    """Return how many of the confidences [m] lie in each of the `FINE` bins."""
    bins = [fine_bin(confidence) for confidence in confidences.tolist()]
    return [int(number) for number in np.bincount(bins, minlength=FINE)]


def compare(reference: Sequence[int], counts: Sequence[int]) -> Drift | None:
    """Compare the counts of fine bins with calibration's.

    The bins are joined into `BINS` groups that calibration fills about equally: a bin belongs where
    its middle sample does, so that one that holds nearly all leaves the others to themselves. With
    a single confidence the groups are that one and all others.
    PSI = sum (a - e) ln(a / e) over the groups' shares, half a sample added to each. When nothing
    moved, PSI is about (1/n + 1/m) times a chi-square variable of one degree less than groups
    (Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal of
    Risk Model Validation, 2020). The limit is the larger of `LARGE` and that variable's quantile of
    0.999: so a few hundred images warn of a shift only when chance is no explanation, and many
    thousands only when the shift is large.

    Args:
        reference: of the m calibration samples.
        counts: of n images.

    Returns:
        None with fewer than `FEWEST` of either.
    """
    m, n = sum(reference), sum(counts)
    if min(m, n) < FEWEST:
        return None
    held = np.asarray(reference)
    middle = (2 * np.cumsum(held) - held) * BINS // (2 * m)
    lowest = middle[held > 0][0]
    begins = np.maximum.accumulate(np.where(held > 0, middle, lowest))  # an empty bin: as below it
    groups = np.unique(begins, return_inverse=True)[1]
    if np.count_nonzero(held) == 1:
        groups = (held > 0).astype(np.intp)
    size = int(groups.max()) + 1
    filled = np.bincount(groups, weights=held, minlength=size)
    seen = np.bincount(groups, weights=counts, minlength=size)
    expected = (filled + 0.5) / (m + 0.5 * size)
    actual = (seen + 0.5) / (n + 0.5 * size)
    psi = float(((actual - expected) * np.log(actual / expected)).sum())
    by_chance = (1 / n + 1 / m) * chi_square(size - 1, FALSE_ALARMS_Z)
    return Drift(psi=psi, limit=max(LARGE, by_chance), samples=n)


def chi_square(freedom: int, z: float) -> float:
    """Return the chi-square quantile at the normal quantile z (Wilson and Hilferty, 1931)."""
    width = 2 / (9 * freedom)
    return freedom * (1 - width + z * sqrt(width)) ** 3
