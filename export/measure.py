"""What the exits of exported models answer, and what a lower precision costs each of them.

In fp32 the answers are those of training's evaluation, with which `check_models` has found the
models to agree. A lower precision is measured anew, on the run's own validation images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mate_edge.decide.softmax import Labels, Logits
from mate_edge.errors import ExportError, MateEdgeError, UsageError
from mate_edge.export.models import BATCH, Chain, Models
from mate_edge.export.precision import CALIBRATION_IMAGES, lower
from mate_edge.export.targets import Target
from mate_edge.images import Preprocessing, normalize
from mate_edge.runs import Run
from mate_edge.train.data.again import load_again
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.images import Images
from mate_edge.train.evaluate import exit_accuracy, spread
from mate_edge.train.network import MultiExitNet

MAX_DROP = 1.0
"""How many points of accuracy an exit may lose."""

GENTLER = {"int8": ("fp16", "fp32"), "fp16": ("fp32",)}
GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Measured:
    """What the exits answer.

    Attributes:
        val_logits: of the validation images, float32 [n, K, C].
        val_labels: int64 [n].
        golden_images: a few of them, uint8 [m, H, W, C].
        golden_logits: float32 [m, K, C].
        val_accuracy: of each exit.
        fp32_val_accuracy: before the precision was lowered; None when it was not.
        test_accuracy: of each exit; None when the precision was lowered, since the test images
            are not for measuring what may still be chosen.
    """

    val_logits: Logits
    val_labels: Labels
    golden_images: NDArray[np.uint8]
    golden_logits: Logits
    val_accuracy: tuple[float, ...]
    fp32_val_accuracy: tuple[float, ...] | tuple[None, ...]
    test_accuracy: tuple[float, ...] | tuple[None, ...]


def check_max_drop(max_drop: float) -> None:
    """Refuse what is no number of points.

    Raises:
        UsageError: not in 0..100.
    """
    if not (math.isfinite(max_drop) and 0 <= max_drop <= 100):
        raise UsageError(f"--max-drop must lie between 0 and 100 points, not {max_drop:g}")


def load_data(run: Run, precision: str) -> Dataset:
    """Load the images that a lower precision is calibrated and measured on.

    Raises:
        ExportError: they are gone, or are not those that the run was trained on.
    """
    try:
        dataset, reason = load_again(run), "its images have changed since"
    except MateEdgeError as error:
        dataset, reason = None, str(error)
    if dataset is None:
        raise ExportError(
            f"--precision {precision} is calibrated and measured on {run.data}, which this run was "
            f"trained on: {reason}. Bring it back, say where it is now (mate-edge train --resume "
            "--out RUN --data FOLDER), or choose --precision fp32, which needs none"
        )
    return dataset


def some_images(images: Images, most: int, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return at most `most` images of a split, evenly spread, float32 [n, C, H, W]."""
    chosen = spread(len(images.labels), most).tolist()
    return normalize(images.plain(chosen, preprocessing), preprocessing)


def chain_logits(
    chains: Sequence[Chain], images: Images, preprocessing: Preprocessing
) -> list[Logits]:
    """Run a split through each chain of segments.

    Returns:
        Every exit's logits of each chain, float32 [n, K, C].
    """
    found: list[list[Logits]] = [[] for _ in chains]
    count = len(images.labels)
    for start in range(0, count, BATCH):
        pixels = images.plain(range(start, min(start + BATCH, count)), preprocessing)
        batch = normalize(pixels, preprocessing)
        for chain, parts in zip(chains, found, strict=True):
            parts.append(chain.logits(batch))
    return [np.concatenate(parts) for parts in found]


@torch.no_grad()
def recall_training(
    network: MultiExitNet, outputs: dict[str, Any], exits: list[int], preprocessing: Preprocessing
) -> Measured:
    """Return what training's evaluation found, for models in fp32.

    Args:
        network: with the chosen exits, in evaluation mode.
        outputs: from `read_outputs`.
        exits: the chosen ones, numbered from 1.
        preprocessing: the run's.
    """
    columns = [k - 1 for k in exits]
    val_logits: Logits = outputs["val_logits"][:, columns]
    few = _golden_images(outputs)
    return Measured(
        val_logits=val_logits,
        val_labels=outputs["val_labels"],
        golden_images=few,
        golden_logits=network(torch.from_numpy(normalize(few, preprocessing))).numpy(),
        val_accuracy=exit_accuracy(val_logits, outputs["val_labels"])[0],
        fp32_val_accuracy=(None,) * len(exits),
        test_accuracy=exit_accuracy(outputs["test_logits"][:, columns], outputs["test_labels"])[0],
    )


def lower_and_measure(
    models: Models,
    target: Target,
    precision: str,
    data: Dataset,
    outputs: dict[str, Any],
    max_drop: float,
    say: Callable[[str], object],
) -> tuple[Models, Measured]:
    """Lower the precision of models and run all validation images before and after.

    Args:
        models: in fp32.
        target: what they are for.
        precision: one of the target's, but fp32.
        data: from `load_data`.
        outputs: from `read_outputs`.
        max_drop: how many points of accuracy an exit may lose.
        say: told what is going on.

    Raises:
        ExportError: a value does not fit into fp16, or an exit loses more than `max_drop`.
    """
    preprocessing, labels = data.preprocessing, data.val.labels
    conversion = target.conversions[precision]
    calibration = some_images(data.train, CALIBRATION_IMAGES, preprocessing)
    say(f"converting to {precision}, with {len(calibration)} training images")
    lowered = lower(models, conversion, calibration)
    say(f"comparing fp32 and {precision} on {len(labels)} validation images")
    chain = Chain(lowered.segments, conversion.as_written)
    before, after = chain_logits([Chain(models.segments), chain], data.val, preprocessing)
    was, now = check_drop(before, after, labels, precision, max_drop, target.precisions)
    few = _golden_images(outputs)
    return lowered, Measured(
        val_logits=after,
        val_labels=labels,
        golden_images=few,
        golden_logits=chain.logits(normalize(few, preprocessing)),
        val_accuracy=now,
        fp32_val_accuracy=was,
        test_accuracy=(None,) * len(now),
    )


def _golden_images(outputs: dict[str, Any]) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = outputs["val_images"]
    return images[spread(len(images), GOLDEN_IMAGES)]


def check_drop(
    before: Logits,
    after: Logits,
    labels: NDArray[np.int64],
    precision: str,
    max_drop: float,
    precisions: Sequence[str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the accuracy of each exit before and after the precision was lowered.

    Args:
        before: float32 [n, K, C].
        after: likewise.
        labels: int64 [n].
        precision: the one that `after` was computed in.
        max_drop: the largest loss allowed, in points.
        precisions: those of the target, of which the error names the gentler ones.

    Raises:
        ExportError: an exit loses more.
    """
    was, now = (exit_accuracy(logits, labels)[0] for logits in (before, after))
    drops = [100 * (one - other) for one, other in zip(was, now, strict=True)]
    k = int(np.argmax(drops))
    if drops[k] > max_drop + 1e-9:
        gentler = [name for name in GENTLER[precision] if name in precisions]
        raise ExportError(
            f"exit {k + 1} falls from {100 * was[k]:.2f} % to {100 * now[k]:.2f} % of "
            f"{len(labels)} validation images in {precision}, more than --max-drop {max_drop:g}: "
            f"choose --precision {' or '.join(gentler)}, or allow a larger --max-drop"
        )
    return was, now
