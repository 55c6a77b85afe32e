"""What a predictor has done so far: counts alone, so that a million predictions take no memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mate_edge.decide.drift import (
    FEWEST,
    FINE,
    Drift,
    compare,
    count_confidences,
    fine_bin,
)
from mate_edge.decide.policy import decide
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.prediction import REASONS, HaltedBy

if TYPE_CHECKING:
    from mate_edge.bundle import Bundle
    from mate_edge.decide.policy import Policy
    from mate_edge.runtime.policy import Chosen
    from mate_edge.runtime.prediction import Prediction


@dataclass(frozen=True)
class Stats:
    """Since the predictor was made, or its stats were reset.

    Attributes:
        predictions: how many.
        exit_shares: the share that each exit answered.
        by_halted: how many left at each exit for each reason: a deadline or a slower device moves
            these and not `drift`.
        misses: answers after their deadline.
        mean_ms: of `Prediction.elapsed_ms`.
        drift: of exit 1's confidence against that of the images which the policy in use was tuned
            on, the validation images mostly; None with fewer than 100 images under it.
    """

    predictions: int
    exit_shares: tuple[float, ...]
    by_halted: dict[HaltedBy, tuple[int, ...]]
    misses: int
    mean_ms: float
    drift: Drift | None


class Tally:
    """Counts predictions, in about half a us each."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._reference: dict[str, tuple[Policy, Sequence[int]]] = {}
        self.reset()

    def add(self, prediction: Prediction, confidence: float | None = None) -> None:
        """Count a prediction, and how sure exit 1 was of the image; None if by another policy."""
        if confidence is not None:
            self.fine[fine_bin(confidence)] += 1
        self.left[prediction.halted_by][prediction.exit - 1] += 1
        self.misses += prediction.deadline_missed
        self.total_ms += prediction.elapsed_ms

    @staticmethod
    def joined(tallies: Sequence[Tally]) -> Tally:
        """Return the sum of what clones counted; they may go on counting in other threads."""
        whole = Tally(tallies[0].bundle)
        whole._reference = tallies[0]._reference  # reading it again takes long
        for tally in tallies:
            for reason, counts in tally.left.items():
                whole.left[reason] = [
                    a + b for a, b in zip(whole.left[reason], counts, strict=True)
                ]
            whole.misses += tally.misses
            whole.total_ms += tally.total_ms
            whole.fine = [a + b for a, b in zip(whole.fine, tally.fine, strict=True)]
        return whole

    def reset(self) -> None:
        """Count anew."""
        exits = len(self.bundle.manifest.exits)
        self.left: dict[HaltedBy, list[int]] = {reason: [0] * exits for reason in REASONS}
        self.misses, self.total_ms = 0, 0.0
        self.forget_confidences()

    def forget_confidences(self) -> None:
        """Begin the comparison with calibration anew: another policy has another temperature."""
        self.fine = [0] * FINE

    def stats(self, chosen: Chosen) -> Stats:
        """Sum up; `chosen` is the policy that the confidences are of.

        Raises:
            BundleError: `calibration.npz` is missing or damaged.
        """
        by_halted = {reason: tuple(left) for reason, left in self.left.items()}
        counts = np.sum(list(by_halted.values()), axis=0)  # another thread may go on counting
        n = int(counts.sum())
        return Stats(
            predictions=n,
            exit_shares=tuple(float(count) for count in counts / max(n, 1)),
            by_halted=by_halted,
            misses=self.misses,
            mean_ms=self.total_ms / max(n, 1),
            drift=self._drift(chosen),
        )

    def _drift(self, chosen: Chosen) -> Drift | None:
        if sum(self.fine) < FEWEST:
            return None
        if chosen.confidences:
            return compare(chosen.confidences, self.fine)
        known, policy = self._reference.get("calibration"), chosen.policy
        if known is None or known[0] is not policy:
            logits, _ = read_calibration(self.bundle)
            confidences = decide(policy, logits[:, :1])[1].max(axis=-1)
            known = policy, count_confidences(confidences)
            self._reference["calibration"] = known
        return compare(known[1], self.fine)
