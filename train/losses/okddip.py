"""Online distillation with diverse peers: each exit has a teacher mixed by attention.

D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers",
AAAI 2020, arXiv:1912.00350. There the peers are branches of equal depth and the attention projects
their features; here the peers are the exits, whose features differ in width, so it projects their
logits. There is no group leader: the last exit is a peer as well.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from mate_edge.runs import Recipe
from mate_edge.train.losses.method import Method, Positive, Weight
from mate_edge.train.losses.terms import divergence, label_loss, ramp


class Okddip(Method):
    """sum_k CE(z_k, y) + r(e) sum_k T^2 KL(softmax(t_k / T) || softmax(z_k / T)).

    Of logits z [B, K, C] and labels y [B]; CE and KL are means over the batch. Teacher k of a
    sample is t_k = sum_j a_kj z_j, [C], with a_k = softmax_j(L z_k . E z_j), [K], and L and E
    [width, C] trained. The teachers are not detached: the gradient flows into the exits through
    them too.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The paper's settings.

        Attributes:
            temperature: T.
            ramp: the share of the epochs until distillation has its full weight, 80 of the paper's
                300; above 1 it never has.
            width: of the projections L and E; 0 stands for an eighth of the classes, 8 at least.
        """

        temperature: Positive = 3.0
        ramp: Weight = 0.27
        width: Annotated[int, Meta(ge=0, le=65536)] = 0

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def __init__(self, num_exits: int, num_classes: int, options: Options) -> None:
        super().__init__(num_exits, num_classes, options)
        width = options.width or max(8, num_classes // 8)
        self.query = nn.Linear(num_classes, width, bias=False)
        self.key = nn.Linear(num_classes, width, bias=False)
        self.weight = 1.0

    def begin_epoch(self, epoch: int, recipe: Recipe) -> None:
        """Set r(e)."""
        self.weight = ramp(epoch, self.options.ramp * recipe.epochs)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        energies = self.query(logits) @ self.key(logits).transpose(1, 2)
        teachers = torch.softmax(energies, dim=-1) @ logits
        taught = divergence(teachers, logits, self.options.temperature)
        return (label_loss(logits, labels) + self.weight * taught).sum()
