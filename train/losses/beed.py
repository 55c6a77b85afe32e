"""Biased exit-ensemble distillation: an ensemble with more weight on deep exits teaches them all.

H. Lee & J.-S. Lee, "Rethinking Online Knowledge Distillation with Multi-Exits", ACCV 2022. The
paper's feature term is left out.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from mate_edge.errors import UsageError
from mate_edge.train.losses.method import Method, Positive
from mate_edge.train.losses.terms import divergence, label_loss


class Beed(Method):
    """sum_k (2 - a^(K-k)) CE(z_k, y) + a^(K-k) T^2 KL(softmax(t / T) || softmax(z_k / T)).

    Of logits z [B, K, C] and labels y [B]; CE and KL are means over the batch. The teacher
    [B, C] is t = sg(sum_k b^k z_k / sum_k b^k), where sg stops the gradient.

    Raises:
        UsageError: so many exits that a label loss would not weigh more than nothing.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The paper's settings.

        Attributes:
            bias: b, how much more each deeper exit weighs in the teacher.
            attention: a, how much more each shallower exit listens to it.
            temperature: T.
        """

        bias: Positive = 1.6
        attention: Positive = 1.15
        temperature: Positive = 3.0

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def __init__(self, num_exits: int, num_classes: int, options: Options) -> None:
        super().__init__(num_exits, num_classes, options)
        if options.attention ** (num_exits - 1) >= 2:
            raise UsageError(
                f"--method-option attention={options.attention}: with {num_exits} exits the label "
                "loss of the first would weigh nothing or less: it must be below "
                f"{2 ** (1 / (num_exits - 1)):.3f}"
            )
        bias = options.bias ** torch.arange(num_exits)
        attention = options.attention ** torch.arange(num_exits - 1, -1, -1)
        self.bias: Tensor
        self.attention: Tensor
        self.register_buffer("bias", bias / bias.sum(), persistent=False)
        self.register_buffer("attention", attention, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        bias, attention = self.bias.to(logits.dtype), self.attention.to(logits.dtype)
        teacher = (bias @ logits.detach())[:, None]
        taught = divergence(teacher, logits, self.options.temperature)
        return ((2 - attention) * label_loss(logits, labels) + attention * taught).sum()
