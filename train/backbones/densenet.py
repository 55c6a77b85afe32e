"""DenseNet (Huang et al., arXiv:1608.06993): a stage ends with the transition that halves it."""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    f = network.features
    stem = [f.conv0, f.norm0, f.relu0, *([] if small else [f.pool0])]
    stages: list[nn.Module] = [
        nn.Sequential(*stem, f.denseblock1, f.transition1),
        nn.Sequential(f.denseblock2, f.transition2),
        nn.Sequential(f.denseblock3, f.transition3),
        nn.Sequential(f.denseblock4, f.norm5, nn.ReLU(inplace=True)),
    ]
    pool = nn.AdaptiveAvgPool2d(1)
    return stages, Classifier(pool, nn.Flatten(), network.classifier)


DENSENET = Family(small_stem={"kernel_size": 3, "stride": 1, "padding": 1}, split=_split)
"""Small images: a 3x3 stem without stride or pooling."""
