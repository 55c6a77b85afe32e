"""Run a network over a split and count."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from mate_edge.images import Preprocessing, normalize
from mate_edge.train.data.images import Images
from mate_edge.train.flops import count_flops
from mate_edge.train.network import MultiExitNet

CHANCE = 1.2
"""Who is right less often than so many times by chance might as well guess."""


def images_at_once(size: int) -> int:
    """Return how many images of `size` pixels are evaluated at once: 256 up to 224 pixels.

    Larger ones take fewer, by their area.
    """
    return max(1, min(256, 256 * 224**2 // size**2))


@torch.no_grad()
def compute_logits(
    network: MultiExitNet,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return every exit's logits for a split, float32 [N, K, C].

    Fewer images at once are tried where the memory is too small.

    Args:
        network: put into evaluation mode here and left in it.
        images: the split.
        preprocessing: the run's.
        device: where the network is.
    """
    network.eval()
    parts = []
    count, step, start = len(images.labels), images_at_once(preprocessing.size), 0
    while start < count:
        indices = range(start, min(start + step, count))
        batch = normalize(images.plain(indices, preprocessing), preprocessing)
        try:
            inputs = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
            parts.append(network(inputs).float().cpu().numpy())
        except torch.OutOfMemoryError:  # training may take fewer at once
            if step == 1:
                raise
            step //= 2
        else:
            start += step
    return np.concatenate(parts)


@torch.no_grad()
def cumulative_flops(network: MultiExitNet, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Return the FLOPs at batch 1 up to each exit, with the heads of the exits before it.

    Stages are counted one by one: fvcore credits a module that stands in two to the first alone.

    Args:
        network: put into evaluation mode here and left in it.
        preprocessing: the run's.

    Raises:
        UsageError: a stage that torch cannot trace.
    """
    network.eval()
    size = preprocessing.size
    device = next(network.parameters()).device
    features = torch.zeros(1, preprocessing.channels, size, size, device=device)
    segments = []
    for k, (stage, head) in enumerate(zip(network.stages, network.heads, strict=True), start=1):
        stage_flops = count_flops(stage, features, f"stage {k}")[0]
        features = stage(features)
        segments.append(stage_flops + count_flops(head, features, f"head {k}")[0])
    return tuple(accumulate(segments))


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` indices below `count`, evenly spaced: images may lie class by class."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def exit_accuracy(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[tuple[float, ...], float]:
    """Return top-1 of each exit, and of the ensemble (the mean of all exits' logits)."""
    each = (logits.argmax(axis=-1) == labels[:, None]).mean(axis=0)
    ensemble = (logits.mean(axis=1).argmax(axis=-1) == labels).mean()
    return tuple(float(accuracy) for accuracy in each), float(ensemble)


def is_chance(accuracy: float, classes: int, images: int) -> bool:
    """Say whether guessing among so many classes may well give this top-1 accuracy, in [0, 1].

    On few images a guesser is often lucky: two standard errors are allowed for.
    """
    chance = 1 / classes
    lucky = chance + 2 * math.sqrt(chance * (1 - chance) / images)
    return accuracy < max(CHANCE * chance, lucky)
