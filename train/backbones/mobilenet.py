"""MobileNetV2 (Sandler et al., arXiv:1801.04381) and V3 (Howard et al., arXiv:1905.02244).

The last 1x1 convolution, which widens the features for the classifier alone, belongs to the
classifier: early heads need not grow as wide.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(
    starts: tuple[int, int, int], network: Any, small: bool
) -> tuple[list[nn.Module], Classifier]:
    layers = list(network.features)
    ends = (*starts, len(layers) - 1)
    stages: list[nn.Module] = [
        nn.Sequential(*layers[start:end]) for start, end in zip((0, *starts), ends, strict=True)
    ]
    pool = nn.AdaptiveAvgPool2d(1)
    return stages, Classifier(layers[-1], pool, nn.Flatten(), *network.classifier)


def _family(*starts: int) -> Family:
    """Return a family whose stages 2 to 4 begin at these layers: those that halve the size.

    The first stage halves it twice. Small images: the stem has no stride.
    """
    second, third, fourth = starts
    return Family(small_stem={"stride": 1}, split=partial(_split, (second, third, fourth)))


MOBILENET_V2 = _family(4, 7, 14)
MOBILENET_V3_SMALL = _family(2, 4, 9)
MOBILENET_V3_LARGE = _family(4, 7, 13)
