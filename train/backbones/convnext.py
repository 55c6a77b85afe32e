"""ConvNeXt (Liu et al., arXiv:2201.03545)."""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


class Downsample(nn.Sequential):
    """LayerNorm and a strided convolution: a class of its own, so that no exit comes between."""


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    stem, first, *rest = network.features
    stages: list[nn.Module] = [nn.Sequential(stem, *first)]
    for downsample, blocks in zip(rest[::2], rest[1::2], strict=True):
        stages.append(nn.Sequential(Downsample(*downsample), *blocks))
    return stages, Classifier(network.avgpool, *network.classifier)


CONVNEXT = Family(small_stem={"kernel_size": 2, "stride": 2}, split=_split)
"""Small images: patches of 2x2 pixels instead of 4x4."""
