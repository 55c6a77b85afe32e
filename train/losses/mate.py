"""MATE, reconstructed from the published abstract.

W. Sun, D. Chen, C. Wang, D. Ye, Y. Feng, C. Chen, "Multi-exit self-distillation with appropriate
teachers", Frontiers of IT & EE 25(4):585-599, 2024, doi:10.1631/FITEE.2200644.

The abstract states: several ensemble teachers are obtained from all exits with different trainable
weights; each exit learns from all teachers, but mainly from its primary one. All else here is
inferred; what can be chosen (beta, gamma, nu, alpha, the temperature) is an option.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mate_edge.errors import UsageError
from mate_edge.train.losses.ce import label_loss
from mate_edge.train.losses.method import Method


class Mate(Method):
    """Distil all exits into K ensemble teachers, and each teacher into all exits.

    With logits z [B, K, C], A = softmax(W) over rows, and sg the stop-gradient::

        t_i  = sum_k A_ik sg(z_k)                                       teacher i
        lam  = beta on the diagonal, (1 - beta) / (K - 1) elsewhere     student j <- teacher i
        KL_ji = T^2 mean_b KL(softmax(t_i / T) || softmax(z_j / T))
        L    = sum_j CE(z_j, y) + nu sum_i CE(t_i, y) + alpha sum_ji lam_ji KL_ji

    Inside KL the teacher is gamma t_i + (1 - gamma) sg(t_i). The K^2 divergences are never formed:
    all that they need are two [K, K] products with [B, K, C] tensors.

    Args:
        num_exits: K. With K = 1 this is plain cross-entropy.
        beta: the primary teacher's weight, in (1 / K, 1).
        gamma: scales the gradient that W gets from KL.
        nu: the weight of the teachers' own label loss.
        alpha: the weight of distillation.
        temperature: T.

    Raises:
        UsageError: an option out of range.
    """

    OPTIONS: ClassVar[dict[str, float]] = {
        "beta": 0.7,
        "gamma": 1.0,
        "nu": 1.0,
        "alpha": 1.0,
        "temperature": 3.0,
    }

    def __init__(
        self,
        num_exits: int,
        beta: float = OPTIONS["beta"],
        gamma: float = OPTIONS["gamma"],
        nu: float = OPTIONS["nu"],
        alpha: float = OPTIONS["alpha"],
        temperature: float = OPTIONS["temperature"],
    ) -> None:
        super().__init__(num_exits)
        if num_exits > 1 and not 1 / num_exits < beta < 1:
            raise UsageError(f"beta must lie between 1/{num_exits} and 1, not {beta}")
        if not (min(gamma, nu, alpha) >= 0 and temperature > 0):
            raise UsageError("gamma, nu and alpha must not be negative, temperature positive")
        self.gamma, self.nu, self.alpha, self.temperature = gamma, nu, alpha, temperature
        self.teacher_weights = nn.Parameter(torch.zeros(num_exits, num_exits))
        others = (1 - beta) / (num_exits - 1) if num_exits > 1 else 0.0
        lam = torch.full((num_exits, num_exits), others).fill_diagonal_(beta)
        self.lam: Tensor
        self.register_buffer("lam", lam, persistent=False)

    @property
    def ensemble_weights(self) -> Tensor:
        """A [K, K]: row i holds teacher i's weights over the exits and sums to 1."""
        return self.teacher_weights.softmax(dim=1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        students = label_loss(logits, labels)
        if self.num_exits == 1:
            return students
        teachers = self.ensemble_weights.to(logits.dtype) @ logits.detach()
        loss = students + self.nu * label_loss(teachers, labels)
        return loss + self.alpha * self._divergence(logits, teachers)

    def _divergence(self, logits: Tensor, teachers: Tensor) -> Tensor:
        """Return sum_ji lam_ji KL_ji.

        With p_i and q_j the softened probabilities this is T^2 mean_b of
        sum_i (sum_j lam_ji) p_i.log p_i - sum_i p_i.(lam^T log q)_i.
        """
        inner = self.gamma * teachers + (1 - self.gamma) * teachers.detach()
        log_p = F.log_softmax(inner / self.temperature, dim=-1)
        log_q = F.log_softmax(logits / self.temperature, dim=-1)
        lam = self.lam.to(logits.dtype)
        weighted = lam.sum(dim=0)[:, None] * log_p - lam.T @ log_q
        return self.temperature**2 * (log_p.exp() * weighted).sum() / len(logits)

    def log(self) -> dict[str, float]:
        """Return A as `teacher_weight_ik`, exits numbered from 1."""
        weights = self.ensemble_weights.detach().cpu()
        return {
            f"teacher_weight_{i + 1}{k + 1}": float(weights[i, k])
            for i in range(self.num_exits)
            for k in range(self.num_exits)
        }
