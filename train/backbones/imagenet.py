"""torchvision's ImageNet networks, taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models import get_model

from mate_edge.train.backbones.parts import Classifier, Parts


@dataclass(frozen=True)
class Family:
    """How the networks of one family are taken apart.

    Attributes:
        small_stem: what changes in the first convolution for small images.
        split: (torchvision's network, whether for small images) -> stages, and the network's own
            classifier, or None.
    """

    small_stem: Mapping[str, int]
    split: Callable[[Any, bool], tuple[list[nn.Module], Classifier | None]]


def imagenet_network(arch: str, family: Family, channels: int, small: bool) -> Parts:
    """Return the parts of torchvision's `arch` for images of `channels`, with fresh weights.

    The classifier has ImageNet's 1000 classes; see `Classifier.resize`.
    """
    network = get_model(arch, weights=None)
    changes = family.small_stem if small else {}
    name, stem = first_convolution(network)
    if changes or channels != stem.in_channels:
        network.set_submodule(name, _like(stem, channels, changes))
    stages, classifier = family.split(network, small)
    return Parts(stages, network, classifier)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the stem's convolution and its name."""
    return next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))


def _like(stem: nn.Conv2d, channels: int, changes: Mapping[str, int]) -> nn.Conv2d:
    kernel = changes.get("kernel_size", stem.kernel_size[0])
    stride = changes.get("stride", stem.stride[0])
    padding = changes.get("padding", int(stem.padding[0]))
    bias = stem.bias is not None
    made = nn.Conv2d(channels, stem.out_channels, kernel, stride, padding, bias=bias)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made
