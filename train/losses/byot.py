"""Be Your Own Teacher: the last exit teaches the others.

Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via
Self Distillation", ICCV 2019, arXiv:1905.08094. The paper's feature term is left out, here as in
all methods: a comparison is of what the logits teach.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from torch import Tensor

from mate_edge.train.losses.method import Method, Positive, Share
from mate_edge.train.losses.terms import label_loss, soft_cross_entropy


class Byot(Method):
    """(1 - a) sum_k CE(z_k, y) + a T^2 sum_{k<K} CE(softmax(sg(z_K) / T), softmax(z_k / T))."""

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The paper's settings.

        Attributes:
            alpha: a, the share of distillation.
            temperature: T.
        """

        alpha: Share = 0.1
        temperature: Positive = 3.0

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        alpha, temperature = self.options.alpha, self.options.temperature
        teacher = logits[:, -1:].detach()
        taught = soft_cross_entropy(teacher, logits[:, :-1], temperature)
        return (1 - alpha) * label_loss(logits, labels).sum() + alpha * taught.sum()
