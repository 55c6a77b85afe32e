"""What every training method is: a module from all exits' logits to one loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Method(nn.Module):
    """A loss over the logits of all exits; its parameters are trained without weight decay."""

    OPTIONS: ClassVar[dict[str, float]] = {}
    """The options by name, with their defaults."""

    def __init__(self, num_exits: int) -> None:
        super().__init__()
        self.num_exits = num_exits

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits [B, K, C] and labels int64 [B]."""
        raise NotImplementedError

    def log(self) -> dict[str, float]:
        """Return what to note in `metrics.csv` each epoch."""
        return {}
