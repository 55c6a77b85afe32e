"""Distillation-based training: the last exit teaches, with a temperature that follows it.

Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from accelerate.utils import reduce
from msgspec import Meta
from torch import Tensor

from mate_edge.train.losses.method import Method, Positive, Share
from mate_edge.train.losses.terms import label_loss, soft_cross_entropy


class Dbt(Method):
    """s times (1 - c) sum_k CE_k + c T^2 sum_{k<K} CE(softmax(sg(z_K) / T), softmax(z_k / T)).

    Of logits z [B, K, C] and labels y [B]; each CE is a mean over the batch, and sg stops the
    gradient. T starts at 1 and grows by a twentieth after each batch (with gradient accumulation,
    each part of a step) in which the softened last exit's mean confidence,
    mean_b max softmax(z_K / T), was above one half.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The paper's settings.

        Attributes:
            scale: s, which the paper does not have; 10 / K in its authors' code.
            share: c, the share of distillation.
            confidence: above this mean confidence T grows.
            growth: by this factor.
        """

        scale: Positive = 1.0
        share: Share = 0.5
        confidence: Annotated[float, Meta(gt=0, lt=1)] = 0.5
        growth: Annotated[float, Meta(ge=1, le=10)] = 1.05

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def __init__(self, num_exits: int, num_classes: int, options: Options) -> None:
        super().__init__(num_exits, num_classes, options)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        share, temperature = self.options.share, self.temperature.clone()
        teacher = logits[:, -1:].detach()
        taught = soft_cross_entropy(teacher, logits[:, :-1], temperature)
        if self.training:
            confidence = (teacher / temperature).softmax(dim=-1).amax(dim=-1).mean()
            confidence = reduce(confidence, "mean")  # over all processes, as one batch
            grown = temperature * self.options.growth
            self.temperature.copy_(
                torch.where(confidence > self.options.confidence, grown, temperature)
            )
        loss = (1 - share) * label_loss(logits, labels).sum() + share * taught.sum()
        return self.options.scale * loss

    def log(self) -> dict[str, float]:
        """Return T at the end of the epoch."""
        return {"temperature": float(self.temperature)}
