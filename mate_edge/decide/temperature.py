"""Temperature scaling (Guo et al., arXiv:1706.04599): one number that calibrates an exit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.softmax import Logits, softmax

LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Return the T that minimises the negative log-likelihood of softmax(logits / T).

    The loss is convex in 1/T, with the derivative mean(E_p[z] - z_y): its root is found by
    bisection. One more sample, whose label is each class alike, is added (as in Platt's targets,
    1999): without it an exit that makes no mistake on these samples would be as good as certain of
    every other one too.

    Args:
        logits: float32 [n, C] of one exit.
        labels: int64 [n].

    Returns:
        T in [0.05, 20]; a bound when the data push past it.
    """
    n = len(labels)
    right = (n * logits[np.arange(n), labels] + logits.mean(axis=-1)) / (n + 1)
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(50):
        inverse = (low * high) ** 0.5
        expected = (softmax(logits, 1 / inverse) * logits).sum(axis=-1)
        if np.mean(expected - right, dtype=np.float64) > 0:
            high = inverse
        else:
            low = inverse
    return float(1 / (low * high) ** 0.5)


def fit_temperatures(logits: Logits, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """Return each exit's T, see `fit_temperature`, from logits, float32 [n, K, C]."""
    return tuple(fit_temperature(logits[:, k], labels) for k in range(logits.shape[1]))
