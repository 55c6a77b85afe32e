"""A network for trainings whose truth no network changes: `--arch small:stages`.

It trains four times as fast as resnet8, the smallest one of the product.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def stages(channels: int, size: int) -> list[nn.Sequential]:
    """Return three stages, as many as resnet8 has, each with BatchNorm."""
    widths = (channels, 8, 16, 32)
    return [
        nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in pairwise(widths)
    ]
