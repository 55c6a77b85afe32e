"""How deep a deadline lets images go: what m measured rounds say of all rounds to come.

An image meets a round by chance. What is known of the rounds is a sample, too, as the images are:
a guarantee rests on bounds of their shares, not on the shares that were measured.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.risk import upper_share

ROUNDS_SEED = 1


def design_effect(rounds: NDArray[np.int64], num_exits: int) -> float:
    """Return how many of these rounds tell as much as one of independent rounds; at least 1.

    Slow rounds come together: the variance of the shares of blocks of successive rounds over what
    it would be if rounds were independent (Kish, "Survey Sampling", 1965, for clusters), the
    largest of any exit.

    Args:
        rounds: int64 [m], as in `ended_shares`, in the order in which they were measured.
        num_exits: K.
    """
    length = math.isqrt(len(rounds))
    blocks = rounds[: length * length].reshape(length, length)
    effect = 1.0
    for k in range(1, num_exits):
        share = float((blocks <= k).mean())
        if length > 1 and 0 < share < 1:
            variance = float((blocks <= k).mean(axis=1).var(ddof=1))
            effect = max(effect, length * variance / (share * (1 - share)))
    return effect


def ended_shares(
    rounds: NDArray[np.int64], num_exits: int, chance: float | None = None, effect: float = 1.0
) -> list[float]:
    """Return which share of rounds a deadline ends at exit k or before, for k from 1 to K - 1.

    Args:
        rounds: int64 [m], the exit from 1 to K to which the deadline lets each round go.
        num_exits: K.
        chance: None returns the shares measured; else upper bounds, all of which hold with
            probability `1 - chance`: `upper_share` of each at `chance / (K - 1)`.
        effect: how many rounds tell as much as one, by which the bounds count fewer (Korn and
            Graubard, "Confidence intervals for proportions with small expected number of positive
            counts", Survey Methodology 24, 1998).
    """
    m = len(rounds)
    counts = [int((rounds <= k).sum()) for k in range(1, num_exits)]
    if chance is None:
        return [count / m for count in counts]
    told = max(int(m / effect), 1)
    return [upper_share(math.ceil(count / effect), told, chance / len(counts)) for count in counts]


def draw_exits(ended: list[float], n: int) -> NDArray[np.int64]:
    """Draw how deep each of n images may go, int64 [n], from `ended_shares`.

    The same draw every time, and of larger shares one that is nowhere deeper.
    """
    chances = np.random.default_rng(ROUNDS_SEED).random(n)
    passed: NDArray[np.int64] = (chances[:, None] >= np.asarray(ended)).sum(axis=1)
    return passed + 1
