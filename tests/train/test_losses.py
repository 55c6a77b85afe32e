"""The baselines: each loss against the formula of its paper, written out exit by exit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mate_edge.errors import UsageError
from mate_edge.runs import OptionValue, Recipe
from mate_edge.train.losses import METHODS, complete_options, make_method
from mate_edge.train.losses.okddip import Okddip

B, K, C = 6, 3, 5
RECIPE = Recipe(epochs=200)


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, K, C, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(B) % C


def kl(teacher: Tensor, student: Tensor, t: float) -> Tensor:
    return t**2 * F.kl_div(
        F.log_softmax(student / t, dim=-1), F.softmax(teacher / t, dim=-1), reduction="batchmean"
    )


def soft_ce(teacher: Tensor, student: Tensor, t: float) -> Tensor:
    return t**2 * F.cross_entropy(student / t, F.softmax(teacher / t, dim=-1))


def byot(z: list[Tensor], y: Tensor) -> Tensor:
    taught = sum(soft_ce(z[-1].detach(), z_k, 3.0) for z_k in z[:-1])
    return (
        F.cross_entropy(z[-1], y)
        + sum(0.9 * F.cross_entropy(z_k, y) for z_k in z[:-1])
        + 0.1 * taught
    )


def dbt(z: list[Tensor], y: Tensor) -> Tensor:
    labelled = sum(F.cross_entropy(z_k, y) for z_k in z)
    taught = sum(soft_ce(z[-1].detach(), z_k, 1.0) for z_k in z[:-1])
    return 0.5 * labelled + 0.5 * taught


def eed(z: list[Tensor], y: Tensor) -> Tensor:
    mean = (sum(z) / K).detach()
    return sum(F.cross_entropy(z_k, y) + kl(mean, z_k, 3.0) for z_k in z)


def beed(z: list[Tensor], y: Tensor) -> Tensor:
    biased = ((z[0] + 1.6 * z[1] + 1.6**2 * z[2]) / (1 + 1.6 + 1.6**2)).detach()
    a = 1.15
    return sum(
        (2 - a ** (K - k)) * F.cross_entropy(z_k, y) + a ** (K - k) * kl(biased, z_k, 3.0)
        for k, z_k in enumerate(z, start=1)
    )


@pytest.mark.parametrize("formula", [byot, dbt, eed, beed], ids=lambda f: f.__name__)
def test_a_baseline_is_the_formula_of_its_paper(
    formula: Callable[[list[Tensor], Tensor], Tensor], logits: Tensor, labels: Tensor
) -> None:
    method = make_method(formula.__name__, K, C, {}).double()
    found, expected = method(logits, labels), formula(list(logits.unbind(dim=1)), labels)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)


def test_okddip_mixes_each_teacher_by_attention_and_detaches_nothing(
    logits: Tensor, labels: Tensor
) -> None:
    torch.manual_seed(0)
    method = make_method("okddip", K, C, {}).double()
    assert isinstance(method, Okddip)
    method.begin_epoch(27, RECIPE)
    weight = math.exp(-5 * 0.25)
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(K):
        energies = torch.stack(
            [(method.query(logits[:, k]) * method.key(logits[:, j])).sum(-1) for j in range(K)], 1
        )
        teacher = (energies.softmax(dim=1)[..., None] * logits).sum(dim=1)
        expected = expected + F.cross_entropy(logits[:, k], labels)
        expected = expected + weight * kl(teacher, logits[:, k], 3.0)
    found = method(logits, labels)
    torch.testing.assert_close(found, expected)
    wrt = [logits, *method.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, wrt), torch.autograd.grad(expected, wrt), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, [math.exp(-5), math.exp(-1.25), 1, 1]),
        (2, [math.exp(-5), math.exp(-4.05), math.exp(-3.2), math.exp(-1.25)]),
    ],
)
def test_the_ramp_of_okddip_is_a_share_of_the_epochs(share: float, expected: list[float]) -> None:
    method = make_method("okddip", K, C, {"ramp": share})
    weights = []
    for epoch in (0, 40, 80, 200):
        method.begin_epoch(epoch, Recipe(epochs=200))
        weights.append(method.weight)
    assert weights == pytest.approx(expected)


def test_the_temperature_of_dbt_grows_while_the_last_exit_is_confident(labels: Tensor) -> None:
    method = make_method("dbt", K, C, {})
    sure = 100 * F.one_hot(labels, C)[:, None].expand(-1, K, -1).float()
    for _ in range(3):
        method(sure, labels)
    assert method.log()["temperature"] == pytest.approx(1.05**3)
    for _ in range(3):
        method(torch.zeros(B, K, C), labels)
    assert method.log()["temperature"] == pytest.approx(1.05**3)
    again = make_method("dbt", K, C, {})
    again.load_state_dict(method.state_dict())
    assert again.log() == method.log(), "a resumed training goes on with it"


def test_eed_with_mse_compares_logits(logits: Tensor, labels: Tensor) -> None:
    z = list(logits.unbind(dim=1))
    mean = (sum(z) / K).detach()
    expected = sum(F.cross_entropy(z_k, labels) + F.mse_loss(z_k, mean) for z_k in z)
    found = make_method("eed", K, C, {"loss": "mse"})(logits, labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_labels_may_be_probabilities(name: str, logits: Tensor, labels: Tensor) -> None:
    method = make_method(name, K, C, {}).double().eval()
    onehot = F.one_hot(labels, C).double()
    torch.testing.assert_close(method(logits, onehot), method(logits, labels))
    shared = 0.5 * onehot + 0.5 * onehot.roll(1, 0)  # the label loss is linear in the labels
    expected = 0.5 * method(logits, labels) + 0.5 * method(logits, labels.roll(1, 0))
    torch.testing.assert_close(method(logits, shared), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_works_with_one_exit_and_every_parameter_gets_a_gradient(name: str) -> None:
    labels = torch.arange(B) % C
    for num_exits in (1, K):
        method = make_method(name, num_exits, C, {})
        method.begin_epoch(0, RECIPE)
        logits = torch.randn(B, num_exits, C, requires_grad=True)
        method(logits, labels).backward()
        wanted = [logits, *method.parameters()]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in wanted)


def test_beed_refuses_exits_whose_label_loss_would_weigh_less_than_nothing() -> None:
    make_method("beed", 5, C, {})
    with pytest.raises(UsageError, match="with 6 exits .* below 1.149"):
        make_method("beed", 6, C, {})
    make_method("beed", 6, C, {"attention": 1.14})


@pytest.mark.parametrize("name", METHODS)
def test_options_are_completed_with_their_defaults_and_read_back(name: str) -> None:
    options = complete_options(name, {})
    assert complete_options(name, options) == options
    as_text: dict[str, OptionValue] = {key: str(value) for key, value in options.items()}
    assert complete_options(name, as_text) == options
