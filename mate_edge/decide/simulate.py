"""Replay a policy on cached logits: what the runtime would do, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import Policy, decide
from mate_edge.decide.softmax import Logits
from mate_edge.errors import UsageError


@dataclass(frozen=True)
class Outcome:
    """What a policy did with n samples.

    Attributes:
        exits: int64 [n], from 1 to K.
        predictions: int64 [n], the class indices answered.
        confidences: float32 [n], the largest probability at the exit taken.
    """

    exits: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        """Return the share of right answers."""
        return float(np.mean(self.predictions == labels))

    def mean_cost(self, costs: Sequence[float]) -> float:
        """Return the mean cost of a sample, in FLOPs or in ms.

        Args:
            costs: of each exit, with all segments before it.
        """
        return float(np.asarray(costs, np.float64)[self.exits - 1].mean())

    def exit_shares(self, num_exits: int) -> tuple[float, ...]:
        """Return the share of samples that left at each exit."""
        counts = np.bincount(self.exits - 1, minlength=num_exits)
        return tuple(float(share) for share in counts / max(len(self.exits), 1))


def simulate(policy: Policy, logits: Logits, deepest: NDArray[np.int64] | None = None) -> Outcome:
    """Apply `policy` to cached logits, exit by exit as the runtime does.

    Args:
        policy: asked after each exit.
        logits: float32 [n, K, C].
        deepest: int64 [n], the exit from 1 to K at which a deadline ends each sample; None: K.

    Raises:
        UsageError: a logit is no number, or the policy returned something else than
            `Policy.decide` says.
    """
    n, num_exits, _ = logits.shape
    wrong = np.argwhere(~np.isfinite(logits))
    if len(wrong):
        sample, exit_, _ = wrong[0]
        raise UsageError(
            f"logits must be finite: sample {sample} has {logits[tuple(wrong[0])]} at exit "
            f"{exit_ + 1}"
        )
    exits = np.full(n, num_exits)
    predictions = np.zeros(n, np.int64)
    confidences = np.zeros(n, np.float32)
    rows = np.arange(n)
    for k in range(1, num_exits + 1):
        leave, probabilities = decide(policy, logits[rows, :k])
        if k == num_exits:
            leave = np.ones(len(rows), np.bool_)
        elif deepest is not None:
            leave = leave | (deepest[rows] <= k)
        left = rows[leave]
        exits[left] = k
        predictions[left] = probabilities[leave].argmax(axis=-1)
        confidences[left] = probabilities[leave].max(axis=-1)
        rows = rows[~leave]
    return Outcome(exits, predictions, confidences)
