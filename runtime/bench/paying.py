"""Whether an exit pays: does it save more than its head, its border and its decision cost?

Splitting pays iff sum_k P(reach k) * segment_k < the unsplit network. So the exits worth keeping
are those with which that sum is the smallest; an exit left out merges its segment with the next,
and those who left there leave at the next exit. Some would go further still, so what an exit saves
is at least what is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

NOISE = 0.05
"""Of the unsplit network's time: what an exit saves or costs below that, another day may not."""
MOST_EXITS = 16
"""Beyond this there are too many choices of exits to try, and none is judged."""


@dataclass(frozen=True)
class Paying:
    """What the early exits bring.

    Attributes:
        saved_ms: [K - 1], of an image on average: the best network with the exit against the best
            one without it; 0 or less: it does not pay.
        keep: the exits worth keeping, from 1, always with the last one: those of the best network,
            and as many more as all together cost no more than noise.
    """

    saved_ms: tuple[float, ...]
    keep: tuple[int, ...]


def judge_exits(
    took_ms: Sequence[float], unsplit_ms: float, shares: Sequence[float], noise_ms: float = 0.0
) -> Paying | None:
    """Judge each early exit by what it takes and who leaves there.

    What a head, its border and its decision cost cannot be seen apart from its segment. All
    together they are what the segments take more than the unsplit network: each gets an equal part.

    Args:
        took_ms: [K], what each segment adds to a prediction, with its head and its decision.
        unsplit_ms: of a prediction by the network without early heads.
        shares: [K], of the images that leave at each exit.
        noise_ms: what exits cost below that is no reason to merge them.

    Returns:
        None for more exits than can be tried in every combination.
    """
    last = len(took_ms)
    if last > MOST_EXITS:
        return None
    head_ms = max(sum(took_ms) - unsplit_ms, 0.0) / max(last - 1, 1)
    cost = {
        keep: _mean_ms((*keep, last), took_ms, head_ms, shares)
        for count in range(last)
        for keep in combinations(range(1, last), count)
    }
    best = min(cost, key=lambda keep: (cost[keep], len(keep)))
    as_good = [
        keep for keep, ms in cost.items() if {*best} <= {*keep} and ms - cost[best] < noise_ms
    ]
    keep = max(as_good, key=lambda keep: (len(keep), -cost[keep]), default=best)
    saved = tuple(
        min(ms for keep, ms in cost.items() if exit_ not in keep)
        - min(ms for keep, ms in cost.items() if exit_ in keep)
        for exit_ in range(1, last)
    )
    return Paying(saved, (*keep, last))


def _mean_ms(
    keep: Sequence[int], took_ms: Sequence[float], head_ms: float, shares: Sequence[float]
) -> float:
    """Return what a prediction takes on average with these exits only, the last one among them."""
    total, reach, before = 0.0, 1.0, 0
    for exit_ in keep:
        total += reach * (sum(took_ms[before:exit_]) - head_ms * (exit_ - before - 1))
        reach -= sum(shares[before:exit_])
        before = exit_
    return total
