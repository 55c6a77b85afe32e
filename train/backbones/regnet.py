"""RegNet (Radosavovic et al., arXiv:2003.13678)."""

from __future__ import annotations

from typing import Any

from torch import nn

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    first, *rest = network.trunk_output
    stages: list[nn.Module] = [nn.Sequential(network.stem, *first)]
    stages += [nn.Sequential(*blocks) for blocks in rest]
    return stages, Classifier(network.avgpool, nn.Flatten(), network.fc)


REGNET = Family(small_stem={"stride": 1}, split=_split)
"""Small images: the stem has no stride."""
