"""Backbones by name: each is a function that returns the list of stages.

An exit may follow each stage. To add a backbone, write such a function and give it a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from mate_edge.train.backbones.resnet import small_resnet, torchvision_resnet

Backbone = Callable[[int, int], list[nn.Module]]
"""(input channels, input size in pixels) -> stages, each a module from features to features."""

BACKBONES: dict[str, Backbone] = {
    "resnet8": partial(small_resnet, 1),
    "resnet20": partial(small_resnet, 3),
    "resnet18": partial(torchvision_resnet, "resnet18"),
    "resnet34": partial(torchvision_resnet, "resnet34"),
    "resnet50": partial(torchvision_resnet, "resnet50"),
}
