"""Exit heads: from a stage's features to logits.

Widths are the exit's own and those at which the backbone leaves each smaller size that it still
reaches (see `remaining_widths`), so that an early head ends with as many features as the backbone
does. The last exit's head is the network's own classifier, or else `linear`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

Head = Callable[[Sequence[int], int], nn.Module]
"""(widths, classes) -> a module from [B, C, H, W] to [B, classes]."""


def remaining_widths(shape: torch.Size, ends: Sequence[torch.Size]) -> list[int]:
    """Return the widths that the head of an exit is made of.

    Stages that leave the size as it is need no convolution of their own: a head halves the size
    where the backbone does, wherever the exits are.

    Args:
        shape: of the features at the exit, [B, C, H, W].
        ends: of the features at the end of each of the backbone's stages.
    """
    smaller = {end[2:]: end[1] for end in ends if end[2:].numel() < shape[2:].numel()}
    return [shape[1], *smaller.values()]


def linear(widths: Sequence[int], classes: int) -> nn.Module:
    """Pool and classify: the cheapest head."""
    return nn.Sequential(*_classifier(widths[0], classes))


def sepconv(widths: Sequence[int], classes: int) -> nn.Module:
    """Depth-wise separable convolutions, once per remaining size: the efficient head.

    Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, inputs, 1, bias=False),
            *_normalized(inputs),
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            *_normalized(outputs),
        ]
    return nn.Sequential(*layers, *_classifier(widths[-1], classes))


def bottleneck(widths: Sequence[int], classes: int) -> nn.Module:
    """1x1, 3x3 with stride 2, 1x1, once per remaining size: the accurate head."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, outputs, 1, bias=False),
            *_normalized(outputs),
            nn.Conv2d(outputs, outputs, 3, stride=2, padding=1, bias=False),
            *_normalized(outputs),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            *_normalized(outputs),
        ]
    return nn.Sequential(*layers, *_classifier(widths[-1], classes))


def _normalized(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _classifier(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


HEADS: dict[str, Head] = {"sepconv": sepconv, "bottleneck": bottleneck, "linear": linear}
