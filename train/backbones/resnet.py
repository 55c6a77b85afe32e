"""Residual networks (He et al., arXiv:1512.03385), built from torchvision's blocks."""

from __future__ import annotations

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

SMALL_IMAGE = 128
"""Inputs below this size (px) get a 3x3 stem without stride or pooling, as is usual on CIFAR."""


def torchvision_resnet(arch: str, channels: int, size: int) -> list[nn.Module]:
    """Return the four stages of torchvision's `arch`; the stem belongs to the first one."""
    network = torchvision.models.get_model(arch, weights=None)
    stem: list[nn.Module]
    if size < SMALL_IMAGE:
        width = network.conv1.out_channels
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        stem = [convolution, network.bn1, network.relu]
    else:
        if channels != network.conv1.in_channels:
            width = network.conv1.out_channels
            network.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = [network.conv1, network.bn1, network.relu, network.maxpool]
    return [
        nn.Sequential(*stem, network.layer1),
        network.layer2,
        network.layer3,
        network.layer4,
    ]


def small_resnet(blocks: int, channels: int, size: int) -> list[nn.Module]:
    """Return the three stages (widths 16, 32, 64) of the ResNet with 6 * blocks + 2 layers."""
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
    return stages


def _stage(inputs: int, width: int, blocks: int, stride: int) -> list[nn.Module]:
    shortcut = None
    if stride != 1 or inputs != width:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    first = BasicBlock(inputs, width, stride, shortcut)
    return [first, *(BasicBlock(width, width) for _ in range(blocks - 1))]
