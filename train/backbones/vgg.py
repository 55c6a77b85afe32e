"""VGG with BatchNorm (Simonyan and Zisserman, arXiv:1409.1556): a stage ends with its pooling."""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier | None]:
    stages: list[nn.Module] = []
    layers: list[nn.Module] = []
    for layer in network.features:
        layers.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages.append(nn.Sequential(*layers))
            layers = []
    if small:  # two layers of 4096 would be 9 of 10 parameters
        return stages, None
    return stages, Classifier(network.avgpool, nn.Flatten(), *network.classifier)


VGG = Family(small_stem={}, split=_split)
"""Small images: the same stem, which has no stride; a linear classifier."""
