"""What a backbone gives: its stages, its own classifier, and the whole that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mate_edge.errors import UsageError, first_line

M = TypeVar("M", bound=nn.Module)


class Classifier(nn.Sequential):
    """A network's own classifier, from the last stage's features; the linear layer comes last."""

    def resize(self, classes: int) -> None:
        """Give it another number of classes, in place; the linear layer starts afresh."""
        last = self[-1]
        assert isinstance(last, nn.Linear)
        if last.out_features != classes:
            last.out_features = classes
            last.weight = nn.Parameter(torch.empty(classes, last.in_features))
            last.bias = nn.Parameter(torch.empty(classes))
            last.reset_parameters()


@dataclass(frozen=True)
class Parts:
    """A network taken apart.

    Attributes:
        stages: features to features, in order; an exit may follow each.
        network: what weights are loaded into: it shares every module and has the names that the
            weights of this architecture have in a file.
        classifier: the network's own, from the last stage's features [B, C, H, W] to logits
            [B, classes]; None when it has none that makes sense here.
        outputs: how many logits a classifier gives that cannot be resized; None: any number.
    """

    stages: list[nn.Module]
    network: nn.Module
    classifier: nn.Module | None = None
    outputs: int | None = None


def channels_last(module: M) -> M:
    """Lay the weights of convolutions out as images are; `Module.to` fails at one of five axes."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


@torch.no_grad()
def output_shapes(
    arch: str, modules: Sequence[nn.Module], channels: int, size: int
) -> list[torch.Size]:
    """Return each module's output shape for two images, found by running one after another.

    Raises:
        UsageError: a module fails, as it does where the images are too small for it, or gives
            something else than a tensor with two entries.
    """
    shapes, features = [], torch.zeros(2, channels, size, size)
    for number, module in enumerate(modules, start=1):
        training = module.training
        given = tuple(features.shape)
        try:
            features = module.eval()(features)
        except Exception as error:  # whatever the module raises, the input is what did not fit
            reason = first_line(error)
            raise UsageError(
                f"{arch} cannot take {channels}x{size}x{size} images: stage {number} fails on "
                f"features {given} ({reason}): give a larger --size, or another --arch"
            ) from error
        module.train(training)
        if not isinstance(features, Tensor) or features.dim() == 0 or len(features) != given[0]:
            found = (
                tuple(features.shape)
                if isinstance(features, Tensor)
                else f"a {type(features).__name__}"
            )
            raise UsageError(
                f"stage {number} of {arch} makes {found} of {given}: a stage maps [B, C, H, W] to "
                "[B, C', H', W']"
            )
        shapes.append(features.shape)
    return shapes
