"""The terms that losses are made of. All divergences are means over the batch, not over classes."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each exit's mean_b CE(z_bk, y_b), [K].

    Args:
        logits: [B, K, C].
        labels: int64 [B], or class probabilities float [B, C].
    """
    classes_second = logits.transpose(1, 2)  # cross_entropy's layout: [B, C, K]
    num_exits = logits.shape[1]
    if labels.is_floating_point():
        targets = labels[:, :, None].expand(-1, -1, num_exits)
    else:
        targets = labels[:, None].expand(-1, num_exits)
    return F.cross_entropy(classes_second, targets, reduction="none").mean(dim=0)


def soft_cross_entropy(teacher: Tensor, students: Tensor, temperature: Tensor | float) -> Tensor:
    """Return T^2 mean_b of -softmax(t / T) . log_softmax(z_k / T) for each student, [K].

    Args:
        teacher: logits [B, 1, C] or [B, K, C].
        students: logits [B, K, C].
        temperature: T.
    """
    p = F.softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(students / temperature, dim=-1)
    return -(temperature**2) * (p * log_q).sum(dim=-1).mean(dim=0)


def divergence(teacher: Tensor, students: Tensor, temperature: float) -> Tensor:
    """Return T^2 mean_b KL(softmax(t / T) || softmax(z_k / T)) for each student, [K].

    Args:
        teacher: logits [B, 1, C] or [B, K, C].
        students: logits [B, K, C].
        temperature: T (Hinton et al., arXiv:1503.02531: T^2 keeps the gradient's scale).
    """
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).mean(dim=0)
    return soft_cross_entropy(teacher, students, temperature) - temperature**2 * entropy


def ramp(epoch: int, epochs: float) -> float:
    """Return exp(-5 (1 - e / E)^2), from 0.0067 at e = 0 to 1 from e = E on; 1 when E is 0.

    Laine & Aila, "Temporal Ensembling", ICLR 2017, arXiv:1610.02242.
    """
    return math.exp(-5 * (1 - epoch / epochs) ** 2) if epoch < epochs else 1.0
