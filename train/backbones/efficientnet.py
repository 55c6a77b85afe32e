"""EfficientNet (Tan and Le, arXiv:1905.11946), B0 to B7.

The last 1x1 convolution belongs to the classifier, as in `mobilenet`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    layers = list(network.features)
    stages: list[nn.Module] = [
        nn.Sequential(*layers[start:end]) for start, end in ((0, 3), (3, 4), (4, 6), (6, 8))
    ]
    return stages, Classifier(layers[8], network.avgpool, nn.Flatten(), *network.classifier)


EFFICIENTNET = Family(small_stem={"stride": 1}, split=_split)
"""Small images: the stem has no stride."""
