"""Exit heads: from a stage's features to logits.

An early head is told the shapes that the backbone still makes of the exit's features (see
`remaining_shapes`), so that it can end with as many features as the backbone does. The last exit's
head is the network's own classifier where it has one, or else one of these: a `linear` one, or with
`pooled` another such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

Head = Callable[[Sequence[torch.Size], int], nn.Module]
"""(shapes, classes) -> a module from [B, *shapes[0]] to [B, classes]."""

POOLED_FEATURES = 1024
POOLED_WIDTH = 128
"""A `pooled` head's hidden layer: at most so many features in and out, or its weights cost time.

Of more classes than `POOLED_WIDTH` it gives as many features as there are classes.
"""


def remaining_shapes(shape: torch.Size, ends: Sequence[torch.Size]) -> list[torch.Size]:
    """Return the shapes [C, H, W] that the head of an exit is made of.

    Stages that leave the size as it is need no convolution of their own: a head halves the size
    where the backbone does, wherever the exits are.

    Args:
        shape: of the features at the exit, [B, C, H, W].
        ends: of the features at the end of each of the backbone's stages.

    Returns:
        The exit's own, then the last that the backbone makes of each smaller size.
    """
    smaller = {end[2:]: end[1:] for end in ends if end[2:].numel() < shape[2:].numel()}
    return [shape[1:], *smaller.values()]


def linear(shapes: Sequence[torch.Size], classes: int) -> nn.Module:
    """Pool and classify: the cheapest head."""
    return nn.Sequential(*_classifier(shapes[0][0], classes))


def sepconv(shapes: Sequence[torch.Size], classes: int) -> nn.Module:
    """Depth-wise separable convolutions, once per remaining size: the literature's head.

    Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094.
    """
    layers: list[nn.Module] = []
    for (inputs, *_), (outputs, *_) in pairwise(shapes):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, inputs, 1, bias=False),
            *_normalized(inputs),
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            *_normalized(outputs),
        ]
    return nn.Sequential(*layers, *_classifier(shapes[-1][0], classes))


def bottleneck(shapes: Sequence[torch.Size], classes: int) -> nn.Module:
    """1x1, 3x3 with stride 2, 1x1, once per remaining size: the dearest head."""
    layers: list[nn.Module] = []
    for (inputs, *_), (outputs, *_) in pairwise(shapes):
        layers += [
            nn.Conv2d(inputs, outputs, 1, bias=False),
            *_normalized(outputs),
            nn.Conv2d(outputs, outputs, 3, stride=2, padding=1, bias=False),
            *_normalized(outputs),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            *_normalized(outputs),
        ]
    return nn.Sequential(*layers, *_classifier(shapes[-1][0], classes))


def pooled(shapes: Sequence[torch.Size], classes: int) -> nn.Module:
    """Average into a few fields, then a layer that knows which lies where: the quick head.

    Four operations where `sepconv` has a dozen, and what lies where is not averaged away.
    After Kaya et al., "Shallow-Deep Networks", ICML 2019, arXiv:1810.07052, whose heads are a
    pooling to 4 x 4 and a linear layer; the hidden layer is ours. There are as many fields as the
    backbone ends with, halved until all channels of all fields are `POOLED_FEATURES` or fewer; they
    overlap where their number does not divide the size.
    """
    (channels, *size), (width, *fields) = shapes[0], shapes[-1]
    while channels * math.prod(fields) > max(POOLED_FEATURES, channels):
        fields = [math.ceil(number / 2) for number in fields]
    (rows, height, down), (columns, wide, right) = map(_windows, size, fields)
    width = min(width, max(POOLED_WIDTH, classes))
    return nn.Sequential(
        nn.AvgPool2d((height, wide), (down, right)),
        nn.Flatten(),
        nn.Linear(channels * rows * columns, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, classes),
    )


def _windows(side: int, number: int) -> tuple[int, int, int]:
    """Return how many windows cover a side, how long each is, and how far apart they begin."""
    number = min(side, number)
    step = side // number
    return number, side - (number - 1) * step, step


def _normalized(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _classifier(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


HEADS: dict[str, Head] = {
    "pooled": pooled,
    "sepconv": sepconv,
    "bottleneck": bottleneck,
    "linear": linear,
}

DEFAULT_HEAD = "pooled"
