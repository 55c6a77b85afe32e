"""Backbones by name: each gives its stages, and an exit may follow each.

To add one of torchvision's, give it a line in `TORCHVISION` (and a new family a file); to add
another, write a function that returns `Parts` and give it a line in `BACKBONES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mate_edge.names import look_up
from mate_edge.train.backbones.convnext import CONVNEXT
from mate_edge.train.backbones.densenet import DENSENET
from mate_edge.train.backbones.efficientnet import EFFICIENTNET
from mate_edge.train.backbones.imagenet import Family, imagenet_network
from mate_edge.train.backbones.mobilenet import (
    MOBILENET_V2,
    MOBILENET_V3_LARGE,
    MOBILENET_V3_SMALL,
)
from mate_edge.train.backbones.own import own_network
from mate_edge.train.backbones.parts import Parts
from mate_edge.train.backbones.regnet import REGNET
from mate_edge.train.backbones.resnet import RESNET, small_resnet
from mate_edge.train.backbones.shufflenet import SHUFFLENET
from mate_edge.train.backbones.vgg import VGG

SMALL_IMAGE = 128
"""Images below this size (px) get the small stem of their family: less early stride or pooling."""

TORCHVISION: dict[str, Family] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet152": RESNET,
    "resnext50_32x4d": RESNET,
    "resnext101_32x8d": RESNET,
    "resnext101_64x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "wide_resnet101_2": RESNET,
    "vgg11_bn": VGG,
    "vgg13_bn": VGG,
    "vgg16_bn": VGG,
    "vgg19_bn": VGG,
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3_small": MOBILENET_V3_SMALL,
    "mobilenet_v3_large": MOBILENET_V3_LARGE,
    "efficientnet_b0": EFFICIENTNET,
    "efficientnet_b1": EFFICIENTNET,
    "efficientnet_b2": EFFICIENTNET,
    "efficientnet_b3": EFFICIENTNET,
    "efficientnet_b4": EFFICIENTNET,
    "efficientnet_b5": EFFICIENTNET,
    "efficientnet_b6": EFFICIENTNET,
    "efficientnet_b7": EFFICIENTNET,
    "convnext_tiny": CONVNEXT,
    "convnext_small": CONVNEXT,
    "convnext_base": CONVNEXT,
    "convnext_large": CONVNEXT,
    "regnet_y_400mf": REGNET,
    "regnet_y_800mf": REGNET,
    "regnet_y_1_6gf": REGNET,
    "regnet_y_3_2gf": REGNET,
    "regnet_y_8gf": REGNET,
    "regnet_y_16gf": REGNET,
    "regnet_y_32gf": REGNET,
    "regnet_x_400mf": REGNET,
    "regnet_x_800mf": REGNET,
    "regnet_x_1_6gf": REGNET,
    "regnet_x_3_2gf": REGNET,
    "regnet_x_8gf": REGNET,
    "regnet_x_16gf": REGNET,
    "regnet_x_32gf": REGNET,
    "shufflenet_v2_x0_5": SHUFFLENET,
    "shufflenet_v2_x1_0": SHUFFLENET,
    "shufflenet_v2_x1_5": SHUFFLENET,
    "shufflenet_v2_x2_0": SHUFFLENET,
    "densenet121": DENSENET,
    "densenet161": DENSENET,
    "densenet169": DENSENET,
    "densenet201": DENSENET,
}

Backbone = Callable[[int, bool], Parts]
"""(channels of the images, whether they are small) -> the backbone with fresh weights."""

BACKBONES: dict[str, Backbone] = {
    "resnet8": partial(small_resnet, 1),
    "resnet20": partial(small_resnet, 3),
    "resnet56": partial(small_resnet, 9),
    **{arch: partial(imagenet_network, arch, family) for arch, family in TORCHVISION.items()},
}


def make_parts(
    arch: str, channels: int, size: int, classes: int | None, stem: str | None = None
) -> Parts:
    """Return a backbone's parts with fresh weights.

    Args:
        arch: a name in `BACKBONES`, or `package.module:name` (see `own_network`).
        channels: of the images.
        size: of the images, in pixels.
        classes: what the user's own classifier must give; None: whatever it gives.
        stem: `small` or `imagenet`; None: by the size.

    Raises:
        UsageError: an unknown name, or a network of the user's that does not work.
    """
    if ":" in arch:
        return own_network(arch, channels, size, classes)
    small = size < SMALL_IMAGE if stem is None else stem == "small"
    return look_up("--arch", arch, BACKBONES)(channels, small)
