"""What every training method is: a module from all exits' logits to one loss."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from torch import Tensor, nn

from mate_edge.runs import Recipe

Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]


class NoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a method that has none."""


class Method(nn.Module):
    """A loss over the logits of all exits; its parameters are trained without weight decay.

    Args:
        num_exits: K.
        num_classes: C.
        options: of the type `OPTIONS`.
    """

    OPTIONS: ClassVar[type[msgspec.Struct]] = NoOptions
    """The method's own options by name, with their types, limits and defaults."""

    def __init__(self, num_exits: int, num_classes: int, options: Any) -> None:
        super().__init__()
        self.num_exits, self.num_classes, self.options = num_exits, num_classes, options

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits [B, K, C].

        Labels are int64 [B], or class probabilities float [B, C] (label smoothing, mixup).
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int, recipe: Recipe) -> None:
        """Take note that `epoch` (from 0) of the training begins."""

    def log(self) -> dict[str, float]:
        """Return what to note in `metrics.csv` of the epoch that ends; main process only."""
        return {}
