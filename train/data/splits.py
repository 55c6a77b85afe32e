"""Which images go where: the same ones for every run, whatever its seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20240421
"""Fixed, so that every run trains, validates and tests on the same images whatever its seed."""

FEWEST = 6
"""Of fewer images no tenth is split off: it is every tenth image from the sixth on."""


def split_off(labels: NDArray[np.int64], share: float = 0.1) -> NDArray[np.bool_]:
    """Choose `share` of the samples, the same share of each class: bool [N].

    The only sample of a class is never chosen: what is left must show every class.
    """
    by_class = _shuffled_by_class(labels)
    step = round(1 / share)
    chosen = np.zeros(len(labels), np.bool_)
    chosen[by_class[step // 2 :: step]] = True
    chosen[np.bincount(labels)[labels] == 1] = False
    return chosen


def choose_some(labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Choose `count` of the samples, the same share of each class, one at least: bool [N].

    A class of n samples gets its seats as a party of n votes would (Sainte-Laguë, after one for
    each), so a larger `count` only adds to what a smaller one chooses.

    Args:
        labels: int64 [N].
        count: from the number of classes to N.
    """
    by_class = _shuffled_by_class(labels)
    sizes = np.bincount(labels)
    own = sizes[labels[by_class]]
    ranks = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[by_class]]
    turn = np.where(ranks == 0, 0.0, (ranks + 0.5) / own)
    chosen = np.zeros(len(labels), np.bool_)
    chosen[by_class[np.argsort(turn, kind="stable")[:count]]] = True
    return chosen


def _shuffled_by_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all indices, class by class, shuffled within each."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class: NDArray[np.int64] = order[np.argsort(labels[order], kind="stable")]
    return by_class
