"""From validation logits to an operating point, and what is guaranteed of it.

The samples are halved by a fixed seed. The search half fits the temperatures and chooses the
thresholds; the certification half says how good they are, on samples that did not choose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Guarantee
from mate_edge.decide.policy import Thresholds
from mate_edge.decide.risk import (
    check_levels,
    conformal_risk_control,
    learn_then_test,
    levels_of_images,
)
from mate_edge.decide.rounds import draw_exits, ended_shares
from mate_edge.decide.simulate import Outcome, simulate
from mate_edge.decide.softmax import Labels, Logits
from mate_edge.decide.temperature import fit_temperatures
from mate_edge.decide.tune import Loss, Search
from mate_edge.errors import UsageError

HALVING_SEED = 0


@dataclass(frozen=True)
class Calibrated:
    """A policy, with what it did on the certification half.

    Attributes:
        policy: the thresholds that were chosen.
        outcome: on the certification half.
        labels: int64 [n], its labels.
        last_accuracy: the last exit's there.
        guarantee: None when nothing is promised.
    """

    policy: Thresholds
    outcome: Outcome
    labels: Labels
    last_accuracy: float
    guarantee: Guarantee | None = None

    @property
    def accuracy(self) -> float:
        """The policy's, on the certification half."""
        return self.outcome.accuracy(self.labels)


def halve(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the search half and of the certification half, the same every time."""
    order = np.random.default_rng(HALVING_SEED).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


class Calibration:
    """The two halves, ready for any goal.

    Args:
        logits: float32 [n, K, C] of validation images.
        labels: int64 [n].
        costs: of each exit with all segments before it, in FLOPs or ms.
        kind: a name in `THRESHOLDS`.
        rounds: int64 [m], the exit from 1 to K to which a deadline lets each of m measured rounds
            go. Each sample meets one, drawn by a fixed seed from the shares that were measured,
            and for a guarantee from bounds of them: so samples stay independent, and one sample's
            loss 0 or 1, as the binomial needs.
        effect: how many of these rounds tell as much as one of independent rounds would.

    Raises:
        UsageError: fewer than two samples.
    """

    def __init__(
        self,
        logits: Logits,
        labels: Labels,
        costs: Sequence[float],
        kind: str = "confidence",
        rounds: NDArray[np.int64] | None = None,
        effect: float = 1.0,
    ) -> None:
        if len(labels) < 2:
            raise UsageError(
                f"thresholds need validation images, here are {len(labels)}: tune --images DIR "
                "takes others"
            )
        search, certify = halve(len(labels))
        self._num_samples, self._num_exits = logits.shape[:2]
        self._kind = kind
        self.logits, self.labels = logits[certify], labels[certify]
        self.rounds, self.effect = rounds, effect
        self._certify = certify
        deepest = None if rounds is None else self._met_by(None)
        self.deepest = None if deepest is None else deepest[certify]
        self.temperatures = fit_temperatures(logits[search], labels[search])
        self.search = Search(
            logits[search],
            labels[search],
            self.temperatures,
            costs,
            kind,
            None if deepest is None else deepest[search],
        )

    def within_drop(self, max_drop: float) -> Calibrated:
        """Return the cheapest policy at most `max_drop` below the last exit on the search half.

        One standard error is added to the drop, see `Search.cheapest`.

        Args:
            max_drop: in [0, 1], a share of the samples.

        Raises:
            UsageError: none is, as it can be with an ensemble.
        """
        found = self.search.cheapest(max_drop)
        if found is None:
            drop = self.search.drop(self.search.taken(self.search.never))
            raise UsageError(
                f"no thresholds are at most {100 * max_drop:g} points below the last exit: an "
                f"ensemble that lets no image leave early is {100 * drop:.2f} below it, a standard "
                "error included: allow more, or take another policy"
            )
        return self._calibrated(self.search.policy(found))

    def within_budget(self, budget: float, unit: str) -> Calibrated:
        """Return the most accurate policy of mean cost `budget` at most on the search half.

        Args:
            budget: in the unit of the costs.
            unit: its name, for the message.

        Raises:
            UsageError: the first exit alone costs more.
        """
        found = self.search.most_accurate(budget)
        if found is None:
            lowest = self.search.costs[0]
            raise UsageError(
                f"a budget of {budget:.10g} {unit} is below what exit 1 alone costs, "
                f"{lowest:.10g}: allow more"
            )
        return self._calibrated(self.search.policy(found))

    def within_risk(self, epsilon: float, delta: float | None, loss: Loss = "worse") -> Calibrated:
        """Return the cheapest policy on the search half's path whose risk is certified.

        Args:
            epsilon: the risk allowed, in (0, 1).
            delta: the chance allowed of being wrong about it; None bounds the mean risk only.
            loss: see `Guarantee`.

        Raises:
            UsageError: levels that make no sense, or too few samples for them.
        """
        check_levels(epsilon, delta, len(self.labels), self.rounds is not None)
        risk, wrong, deepest = epsilon, delta, None
        if self.rounds is not None:
            risk, wrong, chance = levels_of_images(epsilon, delta)
            deepest = self._met_by(chance)[self._certify]
        path, held = self.search.path(loss), self.held_back(deepest)
        lost = [held.lost[loss][held.taken(thresholds)] for thresholds in path]
        if wrong is None:
            passed = conformal_risk_control(lost, risk)
        else:
            passed = learn_then_test(lost, risk, wrong)
        if not passed:  # an ensemble, or a deadline, can lose an answer that leaves nowhere early
            raise UsageError(
                f"--max-risk {epsilon:g} cannot be certified even when the policy lets no image "
                f"leave early: {int(lost[0].sum())} of {len(self.labels)} answers are lost"
                f"{self._ended(deepest)}"
            )
        policy, halted = self.search.policy(path[passed - 1]), None
        if deepest is not None:
            halted = int((simulate(policy, self.logits).exits > deepest).sum())
        guarantee = Guarantee(
            loss=loss,
            epsilon=epsilon,
            delta=delta,
            n=len(self.labels),
            losses=int(lost[passed - 1].sum()),
            halted=halted,
            rounds=None if self.rounds is None else len(self.rounds),
            effect=self.effect,
        )
        return self._calibrated(policy, guarantee)

    def held_back(self, deepest: NDArray[np.int64] | None = None) -> Search:
        """Return the certification half, to count on it what thresholds lose.

        Args:
            deepest: int64 [n], where a deadline ends each sample; see `lost_on_the_way`.
        """
        costs = list(self.search.costs)
        return Search(self.logits, self.labels, self.temperatures, costs, self._kind, deepest)

    def _met_by(self, chance: float | None) -> NDArray[np.int64]:
        """Return how deep each sample of both halves may go; see `ended_shares`."""
        assert self.rounds is not None
        ended = ended_shares(self.rounds, self._num_exits, chance, self.effect)
        return draw_exits(ended, self._num_samples)

    def _ended(self, deepest: NDArray[np.int64] | None) -> str:
        """Say what a deadline ends of the certification half, and what to do."""
        if deepest is None or self.rounds is None:
            return "; allow more risk"
        early = int((deepest < self.logits.shape[1]).sum())
        late, m = int((self.rounds < self.logits.shape[1]).sum()), len(self.rounds)
        tell = ""
        if self.effect > 1:  # slow rounds come together
            tell = f", which tell as much as {m / self.effect:.3g} independent ones"
        return (
            f", and the deadline may end {early} before the last exit, as it did {late} of "
            f"{m} measured rounds{tell}; allow more risk or a longer deadline, or measure "
            "more rounds: mate-edge bench --rounds N"
        )

    def _calibrated(self, policy: Thresholds, guarantee: Guarantee | None = None) -> Calibrated:
        last = self.logits[:, -1].argmax(axis=-1)
        return Calibrated(
            policy=policy,
            outcome=simulate(policy, self.logits, self.deepest),
            labels=self.labels,
            last_accuracy=float((last == self.labels).mean()),
            guarantee=guarantee,
        )
