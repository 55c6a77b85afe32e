"""Exit-ensemble distillation: the mean of all exits teaches each of them.

H. Lee & J.-S. Lee, "Students are the Best Teacher: Exit-Ensemble Distillation with Multi-Exits",
2021, arXiv:2104.00299. The paper's feature term is left out.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
import torch.nn.functional as F
from torch import Tensor

from mate_edge.train.losses.method import Method, Positive, Weight
from mate_edge.train.losses.terms import divergence, label_loss


class Eed(Method):
    """sum_k CE(z_k, y) + alpha sum_k T^2 KL(softmax(t / T) || softmax(z_k / T)).

    Of logits z [B, K, C] and labels y [B]; CE and KL are means over the batch. The teacher
    [B, C] is t = sg(mean_k z_k), where sg stops the gradient.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The settings of the form with the divergence.

        Attributes:
            alpha: the weight of distillation.
            temperature: T.
            loss: `kl`, or `mse`: the authors' default, |t - z_k|^2 / C, without a temperature.
        """

        alpha: Weight = 1.0
        temperature: Positive = 3.0
        loss: Literal["kl", "mse"] = "kl"

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        teacher = logits.detach().mean(dim=1, keepdim=True)
        if self.options.loss == "mse":
            taught = F.mse_loss(logits, teacher.expand_as(logits), reduction="none").mean((0, 2))
        else:
            taught = divergence(teacher, logits, self.options.temperature)
        return (label_loss(logits, labels) + self.options.alpha * taught).sum()
