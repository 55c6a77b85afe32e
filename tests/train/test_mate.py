"""MATE's loss: the properties of the reconstruction, each in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mate_edge.errors import UsageError
from mate_edge.train.losses import make_method
from mate_edge.train.losses.ce import label_loss
from mate_edge.train.losses.mate import Mate

B, K, C = 6, 3, 5


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, K, C, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(B) % C


def make_mate(random_weights: bool = True, **options: float) -> Mate:
    mate = Mate(K, **options).double()
    if random_weights:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            mate.teacher_weights.normal_(generator=generator)
    return mate


def spelled_out(mate: Mate, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss as the specification writes it, K^2 divergences and all."""
    t, alpha, beta = mate.temperature, mate.alpha, float(mate.lam[0, 0])
    ensemble = mate.teacher_weights.softmax(dim=1)
    teachers = [sum(ensemble[i, k] * logits[:, k].detach() for k in range(K)) for i in range(K)]
    loss = sum(F.cross_entropy(logits[:, j], labels) for j in range(K))
    loss = loss + mate.nu * sum(F.cross_entropy(teacher, labels) for teacher in teachers)
    for j in range(K):
        for i in range(K):
            lam = beta if i == j else (1 - beta) / (K - 1)
            inner = mate.gamma * teachers[i] + (1 - mate.gamma) * teachers[i].detach()
            divergence = F.kl_div(
                F.log_softmax(logits[:, j] / t, dim=-1),
                F.log_softmax(inner / t, dim=-1),
                reduction="batchmean",
                log_target=True,
            )
            loss = loss + alpha * lam * t**2 * divergence
    return loss


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.5, "gamma": 0.3, "nu": 0.5, "alpha": 2.0, "temperature": 4.0}]
)
def test_the_cheap_form_is_the_loss_of_the_specification(
    options: dict[str, float], logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate(**options)
    cheap = mate(logits, labels)
    full = spelled_out(mate, logits, labels)
    torch.testing.assert_close(cheap, full)
    wrt = (logits, mate.teacher_weights)
    for one, other in zip(
        torch.autograd.grad(cheap, wrt), torch.autograd.grad(full, wrt), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_exits_gradient_takes_the_teachers_as_constants(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate()
    (whole,) = torch.autograd.grad(mate(logits, labels), logits)
    mate.teacher_weights.requires_grad_(False)
    (constant,) = torch.autograd.grad(mate(logits, labels), logits)
    torch.testing.assert_close(whole, constant)


def test_the_exits_gradient_is_the_closed_form(logits: torch.Tensor, labels: torch.Tensor) -> None:
    mate = make_mate(alpha=1.5)
    t = mate.temperature
    teachers = mate.ensemble_weights @ logits.detach()
    soft = mate.lam @ (teachers / t).softmax(dim=-1)
    onehot = F.one_hot(labels, C)[:, None, :]
    student = logits.softmax(dim=-1) - onehot
    expected = (student + mate.alpha * t * ((logits / t).softmax(dim=-1) - soft)) / B
    (found,) = torch.autograd.grad(mate(logits, labels), logits)
    torch.testing.assert_close(found, expected)


def test_at_zero_weights_it_is_one_mean_ensemble_and_k_times_its_label_loss(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate(random_weights=False)
    t, ensemble = mate.temperature, logits.mean(dim=1).detach()
    expected = label_loss(logits, labels) + K * F.cross_entropy(ensemble, labels)
    for j in range(K):
        expected = expected + t**2 * F.kl_div(
            F.log_softmax(logits[:, j] / t, dim=-1),
            F.softmax(ensemble / t, dim=-1),
            reduction="batchmean",
        )
    torch.testing.assert_close(mate(logits, labels), expected)


def fit_weights(mate: Mate, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    optimizer = torch.optim.LBFGS(
        [mate.teacher_weights],
        max_iter=500,
        tolerance_grad=1e-15,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mate(logits.detach(), labels)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    return mate.ensemble_weights.detach()


def test_without_label_loss_the_weights_tend_to_lambda_transposed(labels: torch.Tensor) -> None:
    # close to one another the divergences are quadratic, and the minimum is exactly lam^T
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 1, C, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, K, C, generator=generator, dtype=torch.float64)
    mate = make_mate(nu=0.0)
    found = fit_weights(mate, base + 0.01 * noise, torch.zeros(200, dtype=torch.long))
    torch.testing.assert_close(found, mate.lam.T.double(), atol=0.02, rtol=0)


def descend(mate: Mate, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Follow the gradient alone: with gamma = 0 it is not that of the loss's value."""
    optimizer = torch.optim.Adam([mate.teacher_weights], lr=0.1)
    for _ in range(1500):
        optimizer.zero_grad()
        mate(logits, labels).backward()
        optimizer.step()
    return mate.ensemble_weights.detach()


def test_without_gamma_all_teachers_become_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, K, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (300,), generator=generator)
    logits[torch.arange(300), :, labels] += torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    found = descend(make_mate(gamma=0.0), logits, labels)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-3, rtol=0)
    distinct = descend(make_mate(gamma=1.0), logits, labels)
    assert (distinct[0] - distinct[2]).abs().max() > 0.05


def test_gradcheck_passes_on_the_teacher_weights(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate()

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            mate, {"teacher_weights": weights}, (logits.detach(), labels)
        )

    assert torch.autograd.gradcheck(loss, mate.teacher_weights.detach().requires_grad_())


def test_one_exit_is_plain_cross_entropy(labels: torch.Tensor) -> None:
    logits = torch.randn(B, 1, C)
    expected = F.cross_entropy(logits[:, 0], labels)
    torch.testing.assert_close(Mate(1)(logits, labels), expected)
    torch.testing.assert_close(make_method("ce", 1, {})(logits, labels), expected)


def test_deep_supervision_is_the_sum_of_all_cross_entropies(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = sum(F.cross_entropy(logits[:, k], labels) for k in range(K))
    torch.testing.assert_close(make_method("ce", K, {})(logits, labels), expected)


def test_the_log_holds_every_row_of_the_ensemble_weights() -> None:
    log = make_mate().log()
    assert len(log) == K * K
    assert sum(log[f"teacher_weight_1{k}"] for k in (1, 2, 3)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mat", {}, "Did you mean mate?"),
        ("mate", {"bet": 0.5}, "Did you mean beta?"),
        ("mate", {"beta": 0.2}, "between 1/3 and 1"),
        ("mate", {"beta": 1.0}, "between 1/3 and 1"),
        ("mate", {"temperature": 0.0}, "positive"),
        ("mate", {"nu": -1.0}, "negative"),
        ("mate", {"gamma": float("nan")}, "negative"),
        ("mate", {"temperature": float("nan")}, "positive"),
        ("ce", {"beta": 0.5}, "no options"),
    ],
)
def test_a_wrong_method_or_option_is_a_clear_error(
    name: str, options: dict[str, float], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        make_method(name, K, options)
