"""MATE, reconstructed from the published abstract.

W. Sun, D. Chen, C. Wang, D. Ye, Y. Feng, C. Chen, "Multi-exit self-distillation with appropriate
teachers", Frontiers of IT & EE 25(4):585-599, 2024, doi:10.1631/FITEE.2200644.

The abstract states: several ensemble teachers are obtained from all exits with different trainable
weights; each exit learns from all teachers, but mainly from its primary one. All else here is
inferred, and an option.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from mate_edge.errors import UsageError
from mate_edge.runs import Recipe
from mate_edge.train.losses.method import Method, Positive, Share, Weight
from mate_edge.train.losses.terms import label_loss, ramp


class Mate(Method):
    """Distil all exits into K ensemble teachers, and each teacher into all exits.

    With logits z [B, K, C], labels y [B], A = softmax(W) over the rows of W [K, K], and sg the
    stop-gradient::

        t_i  = sum_k A_ik z_k                                           teacher i
        lam  = beta on the diagonal, (1 - beta) / (K - 1) elsewhere     student j <- teacher i
        KL_ji = T^2 mean_b KL(softmax(t_i / T) || softmax(z_j / T))
        s_j  = attention^((K - j) / (K - 1))                            a shallow exit listens more
        L    = mu sum_j CE(z_j, y) + r (nu sum_i CE(t_i, y) + alpha sum_ji s_j lam_ji KL_ji)

    r grows to 1 in the first epochs: exits that know nothing make teachers that teach nothing.
    The teachers' label loss trains A and the exits. Inside KL a teacher is made of sg(z_k): only A
    hears of it, gamma times as loud: gamma t_i + (1 - gamma) sg(t_i). The K^2 divergences are
    never formed: all that they need are two [K, K] products with [B, K, C] tensors. With K = 1 this
    is plain cross-entropy.

    Raises:
        UsageError: beta is not above 1 / K.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """Each choice that the abstract leaves open.

        Attributes:
            beta: the primary teacher's weight, in (1 / K, 1).
            gamma: scales the gradient that W gets from KL.
            mu: the weight of the exits' label loss.
            nu: the weight of the teachers' label loss; by default labels weigh as much as in `ce`,
                half of it in the exits and half in the teachers.
            alpha: the weight of distillation at the last exit.
            attention: how many times as much as the last exit the first one listens; those between
                in geometric steps.
            temperature: T.
            ramp: the share of the epochs until r is 1: exp(-5 (1 - e)^2), e from 0 to 1 (Laine &
                Aila, arXiv:1610.02242). 0 is from the start.
            teacher_weights: `learned` is A = softmax(W). `fixed` is A = lam transposed, `uniform`
                A = 1 / K. `single-row` learns one row for all teachers, `deeper-only` lets teacher
                i use the exits from i on.
            teacher_gradient: how the teachers' label loss trains the exits: `plain`, each as loudly
                as the teachers listen to it, which is sum_i A_ik; `balanced`, each alike, the
                gradient at exit k divided by that sum; or `none`: it trains A alone.
            freeze_weights: whether A stays as it is from the last drop of the learning rate on, or
                with a cosine, which has none, in the last quarter of the epochs.
        """

        beta: Annotated[float, Meta(gt=0, lt=1)] = 0.7
        gamma: Weight = 1.0
        mu: Weight = 0.5
        nu: Weight = 0.5
        alpha: Weight = 1.0
        attention: Annotated[float, Meta(ge=1, le=1e6)] = 1.0
        temperature: Positive = 3.0
        ramp: Share = 0.3
        teacher_weights: Literal["learned", "fixed", "uniform", "single-row", "deeper-only"] = (
            "learned"
        )
        teacher_gradient: Literal["plain", "balanced", "none"] = "balanced"
        freeze_weights: bool = False

    OPTIONS: ClassVar[type[msgspec.Struct]] = Options
    options: Options

    def __init__(self, num_exits: int, num_classes: int, options: Options) -> None:
        super().__init__(num_exits, num_classes, options)
        if num_exits > 1 and options.beta <= 1 / num_exits:
            raise UsageError(
                f"--method-option beta={options.beta}: with {num_exits} exits it must be above "
                f"1/{num_exits}, or no teacher is the primary one"
            )
        others = (1 - options.beta) / (num_exits - 1) if num_exits > 1 else 0.0
        lam = torch.full((num_exits, num_exits), others).fill_diagonal_(options.beta)
        shallower = torch.ones(num_exits, num_exits).tril(-1).bool()
        attention = options.attention ** torch.linspace(1, 0, num_exits)
        self.lam: Tensor
        self.shallower: Tensor
        self.attention: Tensor
        self.register_buffer("lam", lam, persistent=False)
        self.register_buffer("attention", attention, persistent=False)
        self.register_buffer("shallower", shallower, persistent=False)
        rows = {"learned": num_exits, "deeper-only": num_exits, "single-row": 1}
        learned = num_exits > 1 and options.teacher_weights in rows
        self.teacher_weights: nn.Parameter | None = None
        if learned:
            start = torch.zeros(rows[options.teacher_weights], num_exits)
            self.teacher_weights = nn.Parameter(start)
        self.frozen: Tensor  # A from when it was frozen; rows of zeros before
        self.register_buffer("frozen", torch.zeros(num_exits, num_exits))
        self.sums: Tensor  # of this epoch: correct teachers, KL_jj, KL_jK, and the samples
        self.register_buffer("sums", torch.zeros(3 * num_exits + 1), persistent=False)
        self.ramp = 1.0
        self.is_frozen = False

    @property
    def ensemble_weights(self) -> Tensor:
        """A [K, K]: row i holds teacher i's weights over the exits and sums to 1."""
        if self.teacher_weights is None:
            uniform = torch.full_like(self.lam, 1 / self.num_exits)
            return self.lam.T if self.options.teacher_weights == "fixed" else uniform
        weights = self.teacher_weights.expand(self.num_exits, -1)
        if self.options.teacher_weights == "deeper-only":
            weights = weights.masked_fill(self.shallower, -torch.inf)
        # frozen by a sum, not by requires_grad: DistributedDataParallel wants every gradient
        learned = weights.softmax(dim=1)
        return self.frozen + 0 * learned if self.is_frozen else learned

    def begin_epoch(self, epoch: int, recipe: Recipe) -> None:
        """Set r, freeze A when its time has come, and start new sums."""
        self.ramp = ramp(epoch, self.options.ramp * recipe.epochs)
        self.sums.zero_()
        self.is_frozen = bool(self.frozen.any())
        if self.options.freeze_weights and not self.is_frozen and epoch >= recipe.settled:
            self.frozen.copy_(self.ensemble_weights.detach())
            self.is_frozen = True

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.forward`."""
        own = label_loss(logits, labels).sum()
        if self.num_exits == 1:
            return own
        weights = self.ensemble_weights.to(logits.dtype)
        teachers = weights @ logits.detach()
        judged = self._judged(weights, logits)
        taught = self.options.nu * label_loss(judged, labels).sum()
        taught = taught + self.options.alpha * self._divergence(logits, teachers, labels)
        return self.options.mu * own + self.ramp * taught

    def _judged(self, weights: Tensor, logits: Tensor) -> Tensor:
        """Return the teachers as their label loss sees them: equal in value, not in gradient."""
        if self.options.teacher_gradient == "plain":
            return weights @ logits
        held = logits.detach()
        if self.options.teacher_gradient == "none":
            return weights @ held
        loudness = weights.detach().sum(dim=0).clamp(min=1e-6)[:, None]
        return weights @ (held + (logits - held) / loudness)

    def _divergence(self, logits: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
        """Return sum_ji s_j lam_ji KL_ji.

        With p_i and q_j the softened probabilities and l_ji = s_j lam_ji this is T^2 mean_b of
        sum_i (sum_j l_ji) p_i.log p_i - sum_i p_i.(l^T log q)_i.
        """
        gamma, temperature = self.options.gamma, self.options.temperature
        inner = gamma * teachers + (1 - gamma) * teachers.detach()
        log_p = F.log_softmax(inner / temperature, dim=-1)
        log_q = F.log_softmax(logits / temperature, dim=-1)
        p = log_p.exp()
        heard = (self.attention[:, None] * self.lam).to(logits.dtype)
        weighted = heard.sum(dim=0)[:, None] * log_p - heard.T @ log_q
        if self.training:
            self._count(p.detach(), log_p.detach(), log_q.detach(), labels)
        return temperature**2 * (p * weighted).sum() / len(logits)

    @torch.no_grad()
    def _count(self, p: Tensor, log_p: Tensor, log_q: Tensor, labels: Tensor) -> None:
        classes = labels.argmax(dim=-1) if labels.is_floating_point() else labels
        correct = (p.argmax(dim=-1) == classes[:, None]).sum(dim=0)
        primary = (p * (log_p - log_q)).sum(dim=(0, 2))
        last = (p[:, -1:] * (log_p[:, -1:] - log_q)).sum(dim=(0, 2))
        scale = self.options.temperature**2
        samples = torch.full_like(primary[:1], len(p))
        self.sums += torch.cat([correct, scale * primary, scale * last, samples])

    def log(self) -> dict[str, float]:
        """Return A, each teacher's training accuracy, KL_jj and KL_jK of the epoch.

        Names count from 1: `teacher_weight_i_k`, `teacher_accuracy_i`, `kl_primary_j`, `kl_last_j`.
        The sums are the main process's; A is everyone's.
        """
        if self.num_exits == 1:
            return {}
        weights = self.ensemble_weights.detach().cpu()
        exits = range(self.num_exits)
        row = {
            f"teacher_weight_{i + 1}_{k + 1}": float(weights[i, k]) for i in exits for k in exits
        }
        means = (self.sums[:-1] / self.sums[-1].clamp(min=1)).view(3, self.num_exits).tolist()
        for name, values in zip(("teacher_accuracy", "kl_primary", "kl_last"), means, strict=True):
            row |= {f"{name}_{k + 1}": value for k, value in enumerate(values)}
        return row
