"""Choose thresholds on cached logits: a plain search, and a path to certify along."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import NEVER, THRESHOLDS, Thresholds
from mate_edge.decide.softmax import Labels, Logits

FEW_SAMPLES = 200
"""Fewer are said to be few: half of their differences are chance, or more."""
MANY_SAMPLES = 1000
"""Where none of so many is lost, a tenth of a per cent may be."""
GRID = 64
STEPS = 40
"""How many searches the path of `search_path` is made of, at most."""

ROUNDING = 1e-12
"""A drop that is exactly what is allowed may be computed so much larger."""

MAX_DROPS = {"fast": 0.02, "balanced": 0.005, "accurate": 0.0}
"""The default operating points: how far below the last exit each may be, as a share of samples."""

Flags = NDArray[np.bool_]
Taken = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The samples and the exit that each takes, from 0: an index into arrays [n, K]."""
Loss = Literal["worse", "differs"]
"""`worse`: wrong where the last exit is right; `differs`: another answer than the last exit's."""


class Search:
    """Threshold vectors on cached logits: what each costs, and how many samples it wins or loses.

    Candidates lie halfway between neighbouring scores, so that a rounding error of the engine
    cannot flip a decision seen here.

    Args:
        logits: float32 [n, K, C].
        labels: int64 [n].
        temperatures: one an exit.
        costs: of each exit with all segments before it, in FLOPs or ms.
        kind: a name in `THRESHOLDS`.
        deepest: int64 [n], the exit from 1 to K at which a deadline ends each sample; None: K.

    Attributes:
        right: bool [n, K], whether a sample that the policy lets go at each exit is answered
            rightly: there, or where the deadline ended it before.
        last_right: bool [n], whether the last exit, all by itself, answers rightly.
        lost: of each `Loss`, bool [n, K], whether it has that; see `lost_on_the_way`.
    """

    def __init__(
        self,
        logits: Logits,
        labels: Labels,
        temperatures: tuple[float, ...],
        costs: Sequence[float],
        kind: str = "confidence",
        deepest: NDArray[np.int64] | None = None,
    ) -> None:
        n, num_exits, _ = logits.shape
        self.kind, self.temperatures = THRESHOLDS[kind], temperatures
        self.never = [NEVER] * (num_exits - 1)
        policy = self.policy(self.never)
        probabilities = [policy.answer(logits[:, : k + 1]) for k in range(num_exits)]
        self.scores = np.stack([policy.score(found) for found in probabilities], axis=1)
        answers = np.stack([found.argmax(axis=-1) for found in probabilities], axis=1)
        self.costs = np.asarray(costs, np.float64)
        if deepest is None:
            deepest = np.full(n, num_exits)
        taken = np.minimum(np.arange(num_exits), deepest[:, None] - 1)
        self.rows = np.arange(n)
        self.spent = self.costs[taken]
        self.right = (answers == labels[:, None])[self.rows[:, None], taken]
        self.last_right: Flags = logits[:, -1].argmax(axis=-1) == labels
        self.lost = {
            name: lost_on_the_way(flags, deepest)
            for name, flags in losses(answers, logits, labels).items()
        }
        self.grids = [_halfway(self.scores[:, k]) for k in range(num_exits - 1)]

    def policy(self, thresholds: Sequence[float]) -> Thresholds:
        """Return the policy with these thresholds."""
        return self.kind(tuple(thresholds), self.temperatures)

    def taken(self, thresholds: Sequence[float]) -> Taken:
        """Return the exits at which the policy with these thresholds lets the samples go."""
        leave = self.scores >= np.asarray([*thresholds, 0.0], np.float32)
        return self.rows, leave.argmax(axis=1)

    def cost(self, taken: Taken) -> float:
        """Return the mean cost."""
        return float(self.spent[taken].mean())

    def outcome(self, thresholds: Sequence[float], values: Flags) -> tuple[float, int]:
        """Return the mean cost, and how many of the exits taken have a flag in `values` [n, K]."""
        taken = self.taken(thresholds)
        return self.cost(taken), int(values[taken].sum())

    def best(
        self, badness: Callable[[Taken], float], start: Sequence[float] | None = None
    ) -> list[float]:
        """Return the thresholds with the least badness.

        Coordinate descent, one exit at a time, until no exit's threshold can be moved with profit.

        Args:
            badness: of the exits taken; infinity for what is not allowed.
            start: thresholds to begin at; when None, the best threshold that all exits share.
        """
        best = list(self.never if start is None else start)
        lowest = badness(self.taken(best))
        if start is None:
            for shared in _halfway(self.scores[:, :-1].ravel()):
                candidate = [shared] * len(self.grids)
                if (found := badness(self.taken(candidate))) < lowest:
                    best, lowest = candidate, found
        improved = True
        while improved:
            improved = False
            for k, grid in enumerate(self.grids):
                for threshold in grid:
                    candidate = [*best[:k], threshold, *best[k + 1 :]]
                    if (found := badness(self.taken(candidate))) < lowest:
                        best, lowest, improved = candidate, found, True
        return best

    def cheapest(self, max_drop: float) -> list[float] | None:
        """Return the cheapest thresholds that are at most `max_drop` below the last exit.

        None: there are none, since an ensemble of all exits may be worse than the last of them.

        One standard error of the difference, paired by sample, is added to it: the best of many
        on these samples is a little worse on others.

        Args:
            max_drop: in [0, 1], a share of the samples.
        """

        def badness(taken: Taken) -> float:
            return self.cost(taken) if self.drop(taken) <= max_drop + ROUNDING else math.inf

        found = self.best(badness)
        return found if badness(self.taken(found)) < math.inf else None

    def drop(self, taken: Taken) -> float:
        """Return how far below the last exit these are, a share of samples, one error included.

        That few samples show no difference does not say that there is none: half of a difference
        is added, as Jeffreys' prior for a share does, unless none is lost of `MANY_SAMPLES`, or
        nothing leaves early.
        """
        difference = self.last_right.astype(np.int8) - self.right[taken]
        n, lost, won = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
        mean = (lost - won) / n
        if lost == 0 and (n >= MANY_SAMPLES or (taken[1] == len(self.costs) - 1).all()):
            return mean
        variance = max((lost + won + 0.5) / (n + 1) - mean**2, 0.0)
        return mean + math.sqrt(variance / n)

    def most_accurate(self, budget: float) -> list[float] | None:
        """Return the most accurate thresholds of mean cost `budget` at most; None: too little.

        Of equally accurate ones the cheapest.
        """
        all_first = [0.0] * len(self.grids)
        budget *= 1 + ROUNDING  # of the mean's sum
        if self.cost(self.taken(all_first)) > budget:
            return None
        share = 1 / (2 * self.costs[-1])

        def badness(taken: Taken) -> float:
            cost = self.cost(taken)
            return share * cost - int(self.right[taken].sum()) if cost <= budget else math.inf

        found = [self.best(badness, start) for start in (None, all_first)]
        return min(found, key=lambda thresholds: badness(self.taken(thresholds)))

    def path(self, loss: Loss) -> list[list[float]]:
        """Return threshold vectors from conservative to aggressive, each cheaper than the last.

        The first never leaves early. Each next one is the cheapest with at most so many losses
        more than that, a number that rises in `STEPS` steps, finely at first.
        """
        lost = self.lost[loss]
        path, (cost, fewest) = [self.never], self.outcome(self.never, lost)
        most = max(self.outcome([0.0] * len(self.grids), lost)[1] - fewest, 0)
        for more in np.unique(np.geomspace(1, most + 1, STEPS).round() - 1):
            found = self.best(self._at_most(fewest + float(more), lost), path[-1])
            if (here := self.outcome(found, lost)[0]) < cost:
                path.append(found)
                cost = here
        return path

    def _at_most(self, allowed: float, lost: Flags) -> Callable[[Taken], float]:
        return lambda taken: self.cost(taken) if lost[taken].sum() <= allowed else math.inf


def losses(answers: NDArray[np.intp], logits: Logits, labels: Labels) -> dict[Loss, Flags]:
    """Return which answers [n] or [n, K] have which `Loss`, given logits [n, K, C], labels [n]."""
    last = logits[:, -1].argmax(axis=-1)
    if answers.ndim == 2:
        last, labels = last[:, None], labels[:, None]
    return {"worse": (answers != labels) & (last == labels), "differs": answers != last}


def lost_on_the_way(flags: Flags, deepest: NDArray[np.int64]) -> Flags:
    """Return whether a sample loses anywhere between a deadline's exit and the policy's.

    A deadline that ends a sample at exit d may on another day, or when it is longer, end it at any
    exit from d to that of the policy: a sample is lost when one of these answers is. So one 0/1
    loss covers the deadline, every longer one, and none.

    Args:
        flags: bool [n, K], whether each exit's answer has the loss.
        deepest: int64 [n], the exit d from 1 to K at which the deadline ends each sample.

    Returns:
        bool [n, K], by the exit that the policy takes.
    """
    numbers = np.arange(1, flags.shape[1] + 1)
    after: Flags = np.logical_or.accumulate(flags & (numbers >= deepest[:, None]), axis=1)
    return np.where(numbers < deepest[:, None], flags, after)


def search_thresholds(
    logits: Logits,
    labels: Labels,
    temperatures: tuple[float, ...],
    cumulative_flops: tuple[int, ...],
    max_drop: float,
) -> Thresholds:
    """Find the cheapest confidence policy that is at most `max_drop` below the last exit.

    One standard error is added to the drop, see `Search.cheapest`.

    Args:
        logits: float32 [n, K, C] of the validation images.
        labels: int64 [n].
        temperatures: one an exit.
        cumulative_flops: of each exit, with all segments before it.
        max_drop: in [0, 1], a share of the n samples.
    """
    search = Search(logits, labels, temperatures, cumulative_flops)
    found = search.cheapest(max_drop)
    assert found is not None, "this policy is the last exit when nothing leaves early"
    return search.policy(found)


def _halfway(scores: NDArray[np.float32]) -> list[float]:
    """Return at most `GRID` thresholds between neighbouring quantiles, the highest first, and 0."""
    values = np.unique(scores.astype(np.float64))
    between = (values[1:] + values[:-1]) / 2
    if len(between) > GRID:
        between = between[np.linspace(0, len(between) - 1, GRID).round().astype(int)]
    return [*(float(threshold) for threshold in between[::-1]), 0.0]
