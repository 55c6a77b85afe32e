"""Check exported models against the network that they came from, on real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mate_edge.errors import ExportError
from mate_edge.export.models import Chain, Models
from mate_edge.export.segments import segment_modules
from mate_edge.images import Preprocessing, normalize
from mate_edge.train.evaluate import images_at_once
from mate_edge.train.network import MultiExitNet
from mate_edge.train.probe import REMEMBERED

TOLERANCE = 1e-4
"""The largest difference allowed, as a share of the largest value."""

KEPT = float(np.finfo(np.float16).max)
"""The largest logit that a bundle keeps."""


def check_logits(outputs: dict[str, Any], exits: Sequence[int]) -> None:
    """Refuse a network whose logits of validation images a bundle cannot keep.

    Args:
        outputs: from `read_outputs`.
        exits: the chosen ones, numbered from 1.

    Raises:
        ExportError: with the exit.
    """
    for k in exits:
        reach = float(np.abs(outputs["val_logits"][:, k - 1]).max())
        if not reach <= KEPT:  # neither when it is no number
            raise ExportError(
                f"the logits of exit {k} reach {reach:.3g}, and a bundle keeps up to {KEPT:.0f}: "
                "the training diverged, so train again with a lower --lr"
            )


@torch.no_grad()
def check_models(models: Models, network: MultiExitNet, images: NDArray[np.float32]) -> float:
    """Compare each segment by itself, the chain of segments and the unsplit network with torch.

    Args:
        models: in fp32.
        network: in evaluation mode.
        images: float32 [n, C, H, W], preprocessed.

    Returns:
        The largest difference found, as a share of the largest value of its tensor.

    Raises:
        ExportError: a difference above `TOLERANCE`, or another top-1 answer that torch's own
            margin between its two best does not excuse.
    """
    worst = 0.0
    features = torch.from_numpy(images)
    expected: list[NDArray[np.float32]] = []
    for model, module in zip(models.segments, segment_modules(network), strict=True):
        (found,) = Chain([model]).run(features.numpy())
        outputs = module(features)
        wanted = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        features = wanted[0]
        for tensor, f, w in zip(model.outputs, found, wanted, strict=True):
            worst = max(worst, _compare(f"{model.name}, {tensor.name}", f, w.numpy()))
        worst = max(worst, _compare_answers(model.name, found[-1], wanted[-1].numpy()))
        expected.append(wanted[-1].numpy())
    chain = Chain(models.segments)
    chained = chain.logits(images)
    for k, logits in enumerate(expected):
        worst = max(worst, _compare_answers(f"exit {k + 1} of the chain", chained[:, k], logits))
    alone, first = chain.logits(images[:1]), network(torch.from_numpy(images[:1]))
    for k, logits in enumerate(first[0].numpy()):
        worst = max(worst, _compare_answers(f"exit {k + 1} alone", alone[:, k], logits[None]))
    ((logits,),) = Chain([models.unsplit]).run(images)
    unsplit = network.unsplit()(torch.from_numpy(images)).numpy()
    return max(worst, _compare_answers(models.unsplit.name, logits, unsplit))


@torch.no_grad()
def check_remembered(
    network: MultiExitNet,
    outputs: dict[str, Any],
    exits: Sequence[int],
    preprocessing: Preprocessing,
) -> None:
    """Hold the network against the logits that training kept of some validation images.

    What a run says of its accuracy is of the network that was trained; code that was edited since
    may fit the same weights and compute something else.

    Args:
        network: with the chosen exits, in evaluation mode.
        outputs: from `read_outputs`.
        exits: the chosen ones, numbered from 1.
        preprocessing: the run's.

    Raises:
        ExportError: the logits differ by more than `REMEMBERED`, more than a GPU's arithmetic.
    """
    few = images_at_once(preprocessing.size)
    images, places = outputs["val_images"][:few], outputs["val_image_indices"][:few]
    expected = outputs["val_logits"][places][:, [k - 1 for k in exits]]
    found = network(torch.from_numpy(normalize(images, preprocessing))).numpy()
    scale, difference = float(np.abs(expected).max()), float(np.abs(found - expected).max())
    if not difference <= REMEMBERED * scale:
        raise ExportError(
            f"the network is not the one that was trained: its logits differ by {difference:.3g} "
            f"from those that training kept, of which the largest is {scale:.3g}; bring back the "
            "code that it was trained with, or train again"
        )


def _compare(what: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    scale = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * scale:
        raise ExportError(
            f"{what}: ONNX differs from torch by {difference:.3g}, more than {TOLERANCE:g} of the "
            f"largest value {scale:.3g}"
        )
    return difference / scale if scale else 0.0


def _compare_answers(what: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Compare logits [n, C], and the classes that they answer."""
    worst = _compare(what, found, expected)
    best_two = np.sort(expected, axis=-1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > TOLERANCE * float(np.abs(expected).max())
    changed = clear & (found.argmax(axis=-1) != expected.argmax(axis=-1))
    if changed.any():
        raise ExportError(
            f"{what}: ONNX answers another class than torch on {changed.sum()} of {len(changed)} "
            "images"
        )
    return worst
