"""How deep a deadline lets images go: what m measured rounds say of all rounds to come.

An image meets a round by chance. What is known of the rounds is a sample, too, as the images are:
a guarantee rests on bounds of their shares, not on the shares that were measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.risk import upper_share

ROUNDS_SEED = 1


def ended_shares(
    rounds: NDArray[np.int64], num_exits: int, chance: float | None = None
) -> list[float]:
    """Return which share of rounds a deadline ends at exit k or before, for k from 1 to K - 1.

    Args:
        rounds: int64 [m], the exit from 1 to K to which the deadline lets each round go.
        num_exits: K.
        chance: None returns the shares measured; else upper bounds, all of which hold with
            probability `1 - chance`: `upper_share` of each at `chance / (K - 1)`.
    """
    m = len(rounds)
    counts = [int((rounds <= k).sum()) for k in range(1, num_exits)]
    if chance is None:
        return [count / m for count in counts]
    return [upper_share(count, m, chance / len(counts)) for count in counts]


def draw_exits(ended: list[float], n: int) -> NDArray[np.int64]:
    """Draw how deep each of n images may go, int64 [n], from `ended_shares`.

    The same draw every time, and of larger shares one that is nowhere deeper.
    """
    chances = np.random.default_rng(ROUNDS_SEED).random(n)
    passed: NDArray[np.int64] = (chances[:, None] >= np.asarray(ended)).sum(axis=1)
    return passed + 1
