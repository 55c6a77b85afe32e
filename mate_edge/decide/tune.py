"""Choose thresholds by plain search on validation outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import Confidence, Logits, softmax

NEVER = 2.0  # a threshold that no probability reaches
GRID = 64
MAX_DROPS = {"fast": 0.02, "balanced": 0.005, "accurate": 0.0}
"""The default operating points: how far below the last exit each may be, as a share of samples."""


def search_thresholds(
    logits: Logits,
    labels: NDArray[np.int64],
    temperatures: tuple[float, ...],
    cumulative_flops: tuple[int, ...],
    max_drop: float,
) -> Confidence:
    """Find the cheapest confidence policy that is at most `max_drop` below the last exit.

    First the best threshold that all exits share, then coordinate descent, one exit at a time,
    until no exit's threshold can be moved with profit. Candidates lie halfway between neighbouring
    confidences, so that a rounding error of the engine cannot flip a decision seen here.

    Args:
        logits: float32 [n, K, C] of the validation images.
        labels: int64 [n].
        temperatures: one an exit.
        cumulative_flops: of each exit, with all segments before it.
        max_drop: in [0, 1], a share of the n samples.
    """
    num_exits = logits.shape[1]
    confidence = np.stack(
        [softmax(logits[:, k], temperatures[k]).max(axis=-1) for k in range(num_exits)], axis=1
    )
    right = logits.argmax(axis=-1) == labels[:, None]
    flops = np.asarray(cumulative_flops, np.float64)
    needed = right[:, -1].sum() - max_drop * len(labels) - 1e-9

    def cost(thresholds: list[float]) -> float:
        """Mean FLOPs, or infinity when too many answers are wrong."""
        leave = confidence >= np.asarray([*thresholds, 0.0], np.float32)
        taken = leave.argmax(axis=1)
        if right[np.arange(len(right)), taken].sum() < needed:
            return float("inf")
        return float(flops[taken].mean())

    grids = [_halfway(confidence[:, k]) for k in range(num_exits - 1)]
    best = [NEVER] * (num_exits - 1)
    lowest = cost(best)
    for shared in _halfway(confidence[:, :-1].ravel()):
        if cost([shared] * (num_exits - 1)) < lowest:
            best = [shared] * (num_exits - 1)
            lowest = cost(best)
    improved = True
    while improved:
        improved = False
        for k, grid in enumerate(grids):
            for threshold in grid:
                candidate = [*best[:k], threshold, *best[k + 1 :]]
                if (found := cost(candidate)) < lowest:
                    best, lowest, improved = candidate, found, True
    return Confidence(tuple(best), temperatures)


def _halfway(confidences: NDArray[np.float32]) -> list[float]:
    """Return at most `GRID` thresholds between neighbouring quantiles, the highest first, and 0."""
    values = np.unique(confidences.astype(np.float64))
    between = (values[1:] + values[:-1]) / 2
    if len(between) > GRID:
        between = between[np.linspace(0, len(between) - 1, GRID).round().astype(int)]
    return [*(float(threshold) for threshold in between[::-1]), 0.0]
