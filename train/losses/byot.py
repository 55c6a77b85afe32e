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
    """CE(z_K, y) + sum_{k<K} (1 - a) CE(z_k, y) + a T^2 CE(softmax(sg(z_K) / T), softmax(z_k / T)).

    Of logits z [B, K, C] and labels y [B]; each CE is a mean over the batch, and sg stops the
    gradient. The last exit learns from labels alone: there a is zero in the paper.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The paper's settings.

        Attributes:
            alpha: a, the share of distillation in the exits but the last.
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
        labelled = label_loss(logits, labels)
        return labelled[-1] + (1 - alpha) * labelled[:-1].sum() + alpha * taught.sum()
