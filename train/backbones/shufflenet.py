"""ShuffleNetV2 (Ma et al., arXiv:1807.11164).

The last 1x1 convolution belongs to the classifier, as in `mobilenet`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    stem = [network.conv1, *([] if small else [network.maxpool])]
    stages = [nn.Sequential(*stem, network.stage2), network.stage3, network.stage4]
    pool = nn.AdaptiveAvgPool2d(1)
    return stages, Classifier(network.conv5, pool, nn.Flatten(), network.fc)


SHUFFLENET = Family(small_stem={"stride": 1}, split=_split)
"""Small images: the stem has neither stride nor pooling."""
