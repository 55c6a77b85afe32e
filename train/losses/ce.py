"""Deep supervision: the sum of all exits' cross-entropies. The floor of every comparison.

Lee et al., "Deeply-Supervised Nets", AISTATS 2015, arXiv:1409.5185.
"""

from __future__ import annotations

from torch import Tensor

from mate_edge.train.losses.method import Method
from mate_edge.train.losses.terms import label_loss


class CrossEntropy(Method):
    """sum_k CE(z_k, y), of logits z [B, K, C] and labels y [B]; CE is a mean over the batch."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        return label_loss(logits, labels).sum()
