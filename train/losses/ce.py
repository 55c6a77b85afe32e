"""Deep supervision: the sum of all exits' cross-entropies. The floor of every comparison.

Lee et al., "Deeply-Supervised Nets", AISTATS 2015, arXiv:1409.5185.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mate_edge.train.losses.method import Method


class CrossEntropy(Method):
    """sum_k CE(z_k, y)."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        return label_loss(logits, labels)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return sum_k mean_b CE(z_bk, y_b) for logits [B, K, C] and labels int64 [B]."""
    num_exits = logits.shape[1]
    repeated = labels.repeat_interleave(num_exits)
    return num_exits * F.cross_entropy(logits.flatten(0, 1), repeated)
