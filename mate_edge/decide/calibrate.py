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
from mate_edge.decide.policy import Logits, Thresholds
from mate_edge.decide.risk import check_levels, conformal_risk_control, learn_then_test
from mate_edge.decide.simulate import Outcome, simulate
from mate_edge.decide.temperature import fit_temperature
from mate_edge.decide.tune import Flags, Labels, Loss, Search, losses, lost_on_the_way
from mate_edge.errors import UsageError

HALVING_SEED = 0
ROUNDS_SEED = 1


@dataclass(frozen=True)
class Calibrated:
    """A policy, with what it did on the certification half.

    Attributes:
        policy: the thresholds that were chosen.
        outcome: on the certification half.
        labels: int64 [n], its labels.
        last_accuracy: the last exit's there.
        halted: how many of them a deadline ended before the policy.
        guarantee: None when nothing is promised.
    """

    policy: Thresholds
    outcome: Outcome
    labels: Labels
    last_accuracy: float
    halted: int
    guarantee: Guarantee | None = None

    @property
    def accuracy(self) -> float:
        """The policy's, on the certification half."""
        return self.outcome.accuracy(self.labels)


def halve(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the search half and of the certification half, the same every time."""
    order = np.random.default_rng(HALVING_SEED).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def draw_rounds(rounds: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Draw one of the rounds for each of n samples, the same ones every time."""
    return np.asarray(rounds)[np.random.default_rng(ROUNDS_SEED).integers(0, len(rounds), n)]


class Calibration:
    """The two halves, ready for any goal.

    Args:
        logits: float32 [n, K, C] of validation images.
        labels: int64 [n].
        costs: of each exit with all segments before it, in FLOPs or ms.
        kind: a name in `THRESHOLDS`.
        rounds: int64 [m], the exit from 1 to K to which a deadline lets each of m measured rounds
            go. Each sample meets one of them, drawn by a fixed seed, apart from all others: so
            samples stay independent, and one sample's loss 0 or 1, as the binomial needs.

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
    ) -> None:
        if len(labels) < 2:
            raise UsageError(f"thresholds need validation samples, here are {len(labels)}")
        search, certify = halve(len(labels))
        self.logits, self.labels = logits[certify], labels[certify]
        deepest = None if rounds is None else draw_rounds(rounds, len(labels))
        self.deepest = None if deepest is None else deepest[certify]
        self.temperatures = tuple(
            fit_temperature(logits[search, k], labels[search]) for k in range(logits.shape[1])
        )
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
        """
        found = self.search.cheapest(max_drop)
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
                f"a budget of {budget:g} {unit} is below what exit 1 alone costs, {lowest:.4g}: "
                "allow more"
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
        check_levels(epsilon, delta, len(self.labels))
        policies = [self.search.policy(thresholds) for thresholds in self.search.path(loss)]
        lost = [self.lost(policy, loss) for policy in policies]
        if delta is None:
            passed = conformal_risk_control(lost, epsilon)
        else:
            passed = learn_then_test(lost, epsilon, delta)
        if not passed:  # an ensemble, or a deadline, can lose an answer that leaves nowhere early
            n, ended, longer = len(self.labels), "", ""
            if self.deepest is not None:
                early = int((self.deepest < self.logits.shape[1]).sum())
                ended = f", and the deadline ends {early} before the last exit"
                longer = " or a longer deadline"
            raise UsageError(
                f"--max-risk {epsilon:g} cannot be certified even when the policy lets no image "
                f"leave early: {int(lost[0].sum())} of {n} answers are lost{ended}; allow more "
                f"risk{longer}"
            )
        guarantee = Guarantee(
            loss=loss,
            epsilon=epsilon,
            delta=delta,
            n=len(self.labels),
            losses=int(lost[passed - 1].sum()),
        )
        return self._calibrated(policies[passed - 1], guarantee)

    def lost(self, policy: Thresholds, loss: Loss) -> Flags:
        """Return which samples of the certification half have the loss, bool [n].

        With rounds of a deadline, see `lost_on_the_way`.
        """
        outcome = simulate(policy, self.logits)
        if self.deepest is None:
            return losses(outcome.predictions, self.logits, self.labels)[loss]
        answers = np.stack(
            [
                policy.answer(self.logits[:, : k + 1]).argmax(axis=-1)
                for k in range(self.logits.shape[1])
            ],
            axis=1,
        )
        lost = lost_on_the_way(losses(answers, self.logits, self.labels)[loss], self.deepest)
        taken: Flags = lost[np.arange(len(lost)), outcome.exits - 1]
        return taken

    def _calibrated(self, policy: Thresholds, guarantee: Guarantee | None = None) -> Calibrated:
        last = self.logits[:, -1].argmax(axis=-1)
        outcome = simulate(policy, self.logits, self.deepest)
        wished = simulate(policy, self.logits).exits
        return Calibrated(
            policy=policy,
            outcome=outcome,
            labels=self.labels,
            last_accuracy=float((last == self.labels).mean()),
            halted=int((outcome.exits < wished).sum()),
            guarantee=guarantee,
        )
