"""Residual networks (He et al., arXiv:1512.03385), wide ones and ResNeXt.

Zagoruyko and Komodakis, arXiv:1605.07146; Xie et al., arXiv:1611.05431.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock

from mate_edge.train.backbones.imagenet import Family
from mate_edge.train.backbones.parts import Classifier, Parts


def _split(network: Any, small: bool) -> tuple[list[nn.Module], Classifier]:
    stem = [network.conv1, network.bn1, network.relu, *([] if small else [network.maxpool])]
    stages = [
        nn.Sequential(*stem, network.layer1),
        network.layer2,
        network.layer3,
        network.layer4,
    ]
    return stages, Classifier(network.avgpool, nn.Flatten(), network.fc)


RESNET = Family(small_stem={"kernel_size": 3, "stride": 1, "padding": 1}, split=_split)
"""Small images: a 3x3 stem without stride or pooling, as is usual on CIFAR."""


def small_resnet(blocks: int, channels: int, small: bool) -> Parts:
    """Return the three stages (widths 16, 32, 64) of the ResNet with 6 * blocks + 2 layers.

    It is the same for images of any size, so `small` changes nothing.
    """
    stem = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)]
    stages: list[nn.Module] = [
        nn.Sequential(*stem, *_stage(16, 16, blocks, stride=1)),
        nn.Sequential(*_stage(16, 32, blocks, stride=2)),
        nn.Sequential(*_stage(32, 64, blocks, stride=2)),
    ]
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Parts(stages, nn.ModuleList(stages))


def _stage(inputs: int, width: int, blocks: int, stride: int) -> list[nn.Module]:
    shortcut = None
    if stride != 1 or inputs != width:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    first = BasicBlock(inputs, width, stride, shortcut)
    return [first, *(BasicBlock(width, width) for _ in range(blocks - 1))]
