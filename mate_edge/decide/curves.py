"""What cached logits say of a multi-exit network: calibration, budgets, overthinking."""

from __future__ import annotations

import msgspec
import numpy as np

from mate_edge.decide.policy import NEVER, Confidence
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import Labels, Logits, log_softmax, softmax
from mate_edge.decide.temperature import fit_temperatures

BINS = 15
BUDGETS = 25


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """The samples whose confidence lies in one of `BINS` equal parts of (0, 1]."""

    confidence: float
    accuracy: float
    count: int


class ExitQuality(msgspec.Struct, frozen=True, kw_only=True):
    """One exit on the test split.

    Attributes:
        accuracy: top-1, in [0, 1].
        cumulative_flops: with all segments before it.
        temperature: fitted on the validation split.
        ece: expected calibration error, in [0, 1].
        calibrated_ece: after dividing the logits by the temperature.
        reliability: the bins that `ece` is made of; empty ones are left out.
        calibrated_reliability: those of `calibrated_ece`.
    """

    accuracy: float
    cumulative_flops: int
    temperature: float
    ece: float
    calibrated_ece: float
    reliability: tuple[Bin, ...]
    calibrated_reliability: tuple[Bin, ...]


class Budgeted(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the budgeted curve: what the test split costs and yields."""

    mean_flops: float
    accuracy: float
    thresholds: tuple[float, ...]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All that `evaluate_outputs` finds. Accuracies are of the test split, in [0, 1].

    Attributes:
        exits: the anytime curve is their accuracy over their cumulative FLOPs.
        mean_accuracy: over the exits.
        ensemble: the mean of all exits' logits.
        overthinking: see `overthinking`.
        area: see `area_under_accuracy`.
        budgeted: rising in mean FLOPs.
    """

    exits: tuple[ExitQuality, ...]
    mean_accuracy: float
    ensemble: float
    overthinking: float
    area: float
    budgeted: tuple[Budgeted, ...]


def evaluate_outputs(
    val_logits: Logits,
    val_labels: Labels,
    test_logits: Logits,
    test_labels: Labels,
    cumulative_flops: tuple[int, ...],
) -> Evaluation:
    """Evaluate a network from its logits, float32 [n, K, C], and labels, int64 [n].

    Temperatures and thresholds are chosen on the validation split, everything else is counted on
    the test split.
    """
    temperatures = fit_temperatures(val_logits, val_labels)
    correct = test_logits.argmax(axis=-1) == test_labels[:, None]
    accuracies = tuple(float(share) for share in correct.mean(axis=0))
    exits = []
    for k, temperature in enumerate(temperatures):
        plain = reliability(softmax(test_logits[:, k]), test_labels)
        calibrated = reliability(softmax(test_logits[:, k], temperature), test_labels)
        exits.append(
            ExitQuality(
                accuracy=accuracies[k],
                cumulative_flops=cumulative_flops[k],
                temperature=temperature,
                ece=calibration_error(plain),
                calibrated_ece=calibration_error(calibrated),
                reliability=plain,
                calibrated_reliability=calibrated,
            )
        )
    budgeted = []
    for policy in budget_policies(val_logits, temperatures):
        outcome = simulate(policy, test_logits)
        budgeted.append(
            Budgeted(
                mean_flops=outcome.mean_cost(cumulative_flops),
                accuracy=outcome.accuracy(test_labels),
                thresholds=policy.thresholds,
            )
        )
    return Evaluation(
        exits=tuple(exits),
        mean_accuracy=float(np.mean(accuracies)),
        ensemble=float((test_logits.mean(axis=1).argmax(axis=-1) == test_labels).mean()),
        overthinking=overthinking(test_logits, test_labels),
        area=area_under_accuracy(cumulative_flops, accuracies),
        budgeted=tuple(sorted(budgeted, key=lambda point: point.mean_flops)),
    )


def reliability(probabilities: Logits, labels: Labels) -> tuple[Bin, ...]:
    """Sort samples into `BINS` bins of confidence, the largest of probabilities [n, C]."""
    confidences = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    numbers = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return tuple(
        Bin(
            confidence=float(confidences[numbers == number].mean(dtype=np.float64)),
            accuracy=float(correct[numbers == number].mean()),
            count=int((numbers == number).sum()),
        )
        for number in np.unique(numbers)
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return the mean gap between confidence and accuracy, weighted by the bins' counts.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015;
    Guo et al., arXiv:1706.04599.
    """
    gaps = sum(found.count * abs(found.confidence - found.accuracy) for found in bins)
    return gaps / max(sum(found.count for found in bins), 1)


def overthinking(logits: Logits, labels: Labels) -> float:
    """Return the share of samples that some exit classifies rightly and the last one wrongly.

    Kaya et al., "Shallow-Deep Networks", ICML 2019, arXiv:1810.07052.
    """
    correct = logits.argmax(axis=-1) == labels[:, None]
    return float((correct.any(axis=1) & ~correct[:, -1]).mean())


def label_loss(logits: Logits, labels: Labels, temperature: float) -> float:
    """Return the mean of -log softmax(z / T)_y, in nats: one exit's loss on the labels.

    A proper score of all probabilities: it tells two exits apart with fewer samples than accuracy
    does, which only counts the largest.

    Args:
        logits: float32 [n, C].
        labels: int64 [n].
        temperature: T.
    """
    right = log_softmax(logits, temperature)[np.arange(len(labels)), labels]
    return -float(right.mean(dtype=np.float64))


def area_under_accuracy(cumulative_flops: tuple[int, ...], accuracies: tuple[float, ...]) -> float:
    """Return the mean accuracy over budgets from the first exit's FLOPs to the last one's.

    Between two exits accuracy is taken to rise linearly; equal accuracies give themselves.
    """
    if len(cumulative_flops) == 1:
        return accuracies[0]
    flops = np.asarray(cumulative_flops, np.float64)
    heights = np.asarray(accuracies, np.float64)
    area = ((heights[1:] + heights[:-1]) / 2 * np.diff(flops)).sum()
    return float(area / (flops[-1] - flops[0]))


def budget_policies(val_logits: Logits, temperatures: tuple[float, ...]) -> list[Confidence]:
    """Return policies from the cheapest to the dearest, by thresholds on validation logits.

    In each, the share of samples that leaves at exit k falls (or rises) geometrically with k, and
    the thresholds are the confidences that split the validation samples so. Huang et al.,
    "Multi-Scale Dense Networks", ICLR 2018, arXiv:1703.09844: budgeted batch classification.
    """
    num_exits = len(temperatures)
    confidence = np.stack(
        [softmax(val_logits[:, k], t).max(axis=-1) for k, t in enumerate(temperatures)], axis=1
    )
    policies = []
    for ratio in np.geomspace(0.01, 100, BUDGETS):
        shares = ratio ** np.arange(num_exits)
        leaving = np.round(np.cumsum(shares / shares.sum()) * len(confidence)).astype(np.int64)
        rows, thresholds, gone = np.arange(len(confidence)), [], 0
        for k in range(num_exits - 1):
            here = int(leaving[k]) - gone
            order = np.argsort(-confidence[rows, k], kind="stable")
            if here <= 0 or len(rows) == 0:
                thresholds.append(NEVER)
                continue
            thresholds.append(float(confidence[rows[order[min(here, len(rows)) - 1]], k]))
            leave = confidence[rows, k] >= np.float32(thresholds[-1])
            gone += int(leave.sum())
            rows = rows[~leave]
        policies.append(Confidence(tuple(thresholds), temperatures))
    return policies
