"""What a report says, counted: every number of the page, and none of its words or pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.curves import Bin, budget_policies, calibration_error, reliability
from mate_edge.decide.policy import Policy
from mate_edge.decide.simulate import Outcome, simulate
from mate_edge.decide.softmax import softmax
from mate_edge.report.subject import Deadline, Subject

MOST_CLASSES = 100
MOST_CONFUSIONS = 12
CERTAIN = 1.96
"""Standard deviations on either side of a 95 % interval."""


@dataclass(frozen=True)
class ExitFigures:
    """One exit, were it to answer all images.

    Attributes:
        accuracy: top-1, in [0, 1].
        reach: how far its 95 % interval reaches, see `reach`.
        cumulative_flops: with all segments before it.
        temperature: that its logits are divided by.
        ece: expected calibration error without the temperature, in [0, 1].
        calibrated_ece: with it.
        bins: that `ece` is made of.
        calibrated_bins: that `calibrated_ece` is made of.
    """

    accuracy: float
    reach: float
    cumulative_flops: int
    temperature: float
    ece: float
    calibrated_ece: float
    bins: tuple[Bin, ...]
    calibrated_bins: tuple[Bin, ...]


@dataclass(frozen=True)
class PointFigures:
    """One operating point.

    Attributes:
        accuracy: top-1, in [0, 1].
        drop: how far below the last exit it is; negative: above.
        drop_half: half the width of the drop's 95 % interval, the images paired.
        mean_flops: of an image.
        saved: the share of FLOPs that it spares beside `Figures.whole_flops`; negative: it costs.
        mean_ms: of an image, each exit at its median on this device; None: not measured.
        exit_shares: of the images that leave at each exit.
        lost: the share that is wrong where the last exit is right.
        mended: the share that is right where the last exit is wrong.
    """

    accuracy: float
    drop: float
    drop_half: float
    mean_flops: float
    saved: float
    mean_ms: float | None
    exit_shares: tuple[float, ...]
    lost: float
    mended: float


@dataclass(frozen=True)
class CurvePoint:
    """A point of the curve that confidence thresholds can reach."""

    mean_flops: float
    mean_ms: float | None
    accuracy: float


@dataclass(frozen=True)
class ClassFigures:
    """One class.

    Attributes:
        images: how many there are.
        exit_accuracy: the share of them that each exit answers rightly.
        exit_shares: where they leave at the judged operating point.
        accuracy: of that point.
    """

    images: int
    exit_accuracy: tuple[float, ...]
    exit_shares: tuple[float, ...]
    accuracy: float


@dataclass(frozen=True)
class DeadlineFigures:
    """What a policy does under one deadline, on average over images and measured rounds.

    Attributes:
        max_ms: the deadline.
        exit_shares: of all images, answered in time at each exit.
        late: the share that is answered too late.
        accuracy: the share that is answered rightly and in time.
    """

    max_ms: float
    exit_shares: tuple[float, ...]
    late: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """A class that is taken for another.

    Attributes:
        label: the true one.
        answer: the one answered.
        images: by each exit.
    """

    label: int
    answer: int
    images: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """All that is counted.

    Attributes:
        images: how many the figures are counted on.
        exits: one an exit.
        points: by name.
        curve: rising in FLOPs.
        whole_flops: of the network that one would use without exits.
        ceiling: how many times fewer FLOPs the first exit needs than that.
        ensemble: the accuracy of the mean of all exits' logits.
        overthinking: the share that some exit answers rightly and the last one wrongly.
        classes: one a class.
        confusions: int64 [K, C, C]: images of class row that exit k takes for class column; empty
            beyond `MOST_CLASSES`.
        frequent: the confusions that happen most, all exits together.
        deadlines: by policy, `deepest` and the judged point; empty: this device was not measured.
    """

    images: int
    exits: tuple[ExitFigures, ...]
    points: dict[str, PointFigures]
    curve: tuple[CurvePoint, ...]
    whole_flops: int
    ceiling: float
    ensemble: float
    overthinking: float
    classes: tuple[ClassFigures, ...]
    confusions: NDArray[np.int64]
    frequent: tuple[Confusion, ...]
    deadlines: dict[str, tuple[DeadlineFigures, ...]]

    @property
    def num_exits(self) -> int:
        """The number K of exits."""
        return len(self.exits)


def count_figures(subject: Subject) -> Figures:
    """Count everything that a report of `subject` says."""
    logits, labels = subject.logits, subject.labels
    n, num_exits, num_classes = logits.shape
    answers = logits.argmax(axis=-1)
    right = answers == labels[:, None]
    flops = [cost.cumulative_flops for cost in subject.costs]
    exit_ms = subject.times.exit_ms if subject.times is not None else None
    whole = subject.unsplit_flops or flops[-1]

    outcomes = {name: simulate(point.policy, logits) for name, point in subject.points.items()}
    points = {
        name: _point(found, right[:, -1], labels, flops, whole, exit_ms)
        for name, found in outcomes.items()
    }
    curve = []
    if num_exits > 1:
        for policy in budget_policies(logits, subject.temperatures):
            found = simulate(policy, logits)
            curve.append(
                CurvePoint(
                    mean_flops=found.mean_cost(flops),
                    mean_ms=None if exit_ms is None else found.mean_cost(exit_ms),
                    accuracy=found.accuracy(labels),
                )
            )
    shown = num_classes if num_classes <= MOST_CLASSES else 0
    confusions = np.zeros((num_exits, shown, shown), np.int64)
    for k in range(num_exits if shown else 0):
        np.add.at(confusions[k], (labels, answers[:, k]), 1)
    judged = outcomes[subject.judged]
    return Figures(
        images=n,
        exits=tuple(_exit(subject, k, float(right[:, k].mean())) for k in range(num_exits)),
        points=points,
        curve=tuple(sorted(curve, key=lambda point: point.mean_flops)),
        whole_flops=whole,
        ceiling=whole / flops[0],
        ensemble=float((logits.mean(axis=1).argmax(axis=-1) == labels).mean()),
        overthinking=float((right.any(axis=1) & ~right[:, -1]).mean()),
        classes=tuple(_class(labels == c, right, judged, labels) for c in range(num_classes)),
        confusions=confusions,
        frequent=_frequent(answers, labels, num_classes),
        deadlines=_deadlines(subject),
    )


def reach(share: float, n: int) -> float:
    """Return how far the limits of a share's 95 % interval lie from it, the farther one.

    The interval is Wilson's, whose centre lies nearer to 1/2 than the share, and which is never
    empty: "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    n, square = max(n, 1), CERTAIN**2
    variance = max(share * (1 - share), 0.0) / n + square / (2 * n) ** 2
    half = CERTAIN * math.sqrt(variance) / (1 + square / n)
    centre = (share + square / (2 * n)) / (1 + square / n)
    return half + abs(centre - share)


def _exit(subject: Subject, k: int, accuracy: float) -> ExitFigures:
    plain = reliability(softmax(subject.logits[:, k]), subject.labels)
    scaled = reliability(softmax(subject.logits[:, k], subject.temperatures[k]), subject.labels)
    return ExitFigures(
        accuracy=accuracy,
        reach=reach(accuracy, len(subject.labels)),
        cumulative_flops=subject.costs[k].cumulative_flops,
        temperature=subject.temperatures[k],
        ece=calibration_error(plain),
        calibrated_ece=calibration_error(scaled),
        bins=plain,
        calibrated_bins=scaled,
    )


def _point(
    outcome: Outcome,
    last_right: NDArray[np.bool_],
    labels: NDArray[np.int64],
    flops: list[int],
    whole: int,
    exit_ms: tuple[float, ...] | None,
) -> PointFigures:
    right = outcome.predictions == labels
    lost, mended = float((last_right & ~right).mean()), float((right & ~last_right).mean())
    drop, n = lost - mended, len(labels)
    changed = lost + mended
    if (outcome.exits < len(flops)).any():  # few that show no difference do not say there is none
        changed = (n * changed + 0.5) / (n + 1)
    mean_flops = outcome.mean_cost(flops)
    return PointFigures(
        accuracy=float(right.mean()),
        drop=drop,
        drop_half=CERTAIN * math.sqrt(max(changed - drop**2, 0.0) / n),
        mean_flops=mean_flops,
        saved=1 - mean_flops / whole,
        mean_ms=None if exit_ms is None else outcome.mean_cost(exit_ms),
        exit_shares=outcome.exit_shares(len(flops)),
        lost=lost,
        mended=mended,
    )


def _class(
    chosen: NDArray[np.bool_],
    right: NDArray[np.bool_],
    judged: Outcome,
    labels: NDArray[np.int64],
) -> ClassFigures:
    """Count one class; one without images has accuracies and shares of 0."""
    n, num_exits = int(chosen.sum()), right.shape[1]
    if n == 0:
        return ClassFigures(0, (0.0,) * num_exits, (0.0,) * num_exits, 0.0)
    left = np.bincount(judged.exits[chosen] - 1, minlength=num_exits) / n
    return ClassFigures(
        images=n,
        exit_accuracy=tuple(float(share) for share in right[chosen].mean(axis=0)),
        exit_shares=tuple(float(share) for share in left),
        accuracy=float((judged.predictions == labels)[chosen].mean()),
    )


def _frequent(
    answers: NDArray[np.intp], labels: NDArray[np.int64], num_classes: int
) -> tuple[Confusion, ...]:
    """Count wrong pairs of class and answer, by the few that occur: C squared may be too many."""
    pairs = labels[:, None] * num_classes + answers
    wrong = answers != labels[:, None]
    kinds, counts = np.unique(pairs[wrong], return_counts=True)
    found = []
    for kind in kinds[np.argsort(-counts, kind="stable")][:MOST_CONFUSIONS].tolist():
        label, answer = divmod(kind, num_classes)
        images = tuple(int(count) for count in (pairs == kind).sum(axis=0))
        found.append(Confusion(label, answer, images))
    return tuple(found)


def _deadlines(subject: Subject) -> dict[str, tuple[DeadlineFigures, ...]]:
    if subject.times is None or not subject.times.deadlines:
        return {}
    judged = {subject.judged: subject.points[subject.judged].policy}
    found = {"deepest": _Reaching(None, subject)}
    found |= {name: _Reaching(policy, subject) for name, policy in judged.items()}
    return {
        name: tuple(policy.under(deadline) for deadline in subject.times.deadlines)
        for name, policy in found.items()
    }


class _Reaching:
    """A policy, replayed once for each exit that a deadline may end it at.

    Images and rounds are independent, so the mean over both is a sum over endings.

    Args:
        policy: None for the one that never leaves early.
        subject: its logits and labels.
    """

    def __init__(self, policy: Policy | None, subject: Subject) -> None:
        n, self.num_exits, _ = subject.logits.shape
        self.exits, self.right = [], []
        answers = subject.logits.argmax(axis=-1)
        for k in range(1, self.num_exits + 1):
            deepest = np.full(n, k)
            if policy is None:
                exits, predictions = deepest, answers[:, k - 1]
            else:
                outcome = simulate(policy, subject.logits, deepest)
                exits, predictions = outcome.exits, outcome.predictions
            self.exits.append(exits)
            self.right.append(predictions == subject.labels)

    def under(self, deadline: Deadline) -> DeadlineFigures:
        """Count answers and right answers in time."""
        shares, accuracy = np.zeros(self.num_exits), 0.0
        for ending in deadline.endings:
            exits, right = self.exits[ending.allowed - 1], self.right[ending.allowed - 1]
            timely = exits <= ending.in_time
            counts = np.bincount(exits[timely] - 1, minlength=self.num_exits)
            shares += ending.share * counts / len(exits)
            accuracy += ending.share * float((right & timely).mean())
        return DeadlineFigures(
            max_ms=deadline.max_ms,
            exit_shares=tuple(float(share) for share in shares),
            late=max(0.0, 1 - float(shares.sum())),
            accuracy=accuracy,
        )
