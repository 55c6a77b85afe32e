"""MATE's loss: the properties of the reconstruction, each in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mate_edge.errors import UsageError
from mate_edge.runs import OptionValue, Recipe
from mate_edge.train.losses import make_method
from mate_edge.train.losses.mate import Mate
from mate_edge.train.losses.terms import label_loss

B, K, C = 6, 3, 5


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, K, C, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(B) % C


def make_mate(random_weights: bool = True, **options: OptionValue) -> Mate:
    mate = make_method("mate", K, C, options).double()
    assert isinstance(mate, Mate)
    if random_weights and mate.teacher_weights is not None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            mate.teacher_weights.normal_(generator=generator)
    return mate


def heard(mate: Mate, logits: torch.Tensor, k: int) -> torch.Tensor:
    """Exit k's logits, with as much gradient as the teachers' label loss gives them."""
    column = mate.ensemble_weights[:, k].sum().detach()
    share = {"none": 0.0, "plain": 1.0, "balanced": 1 / column}[mate.options.teacher_gradient]
    return share * logits[:, k] + (1 - share) * logits[:, k].detach()


def spelled_out(mate: Mate, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss as the specification writes it, K^2 divergences and all."""
    t, alpha, beta = mate.options.temperature, mate.options.alpha, mate.options.beta
    ensemble = mate.ensemble_weights
    teachers = [sum(ensemble[i, k] * logits[:, k].detach() for k in range(K)) for i in range(K)]
    judged = [sum(ensemble[i, k] * heard(mate, logits, k) for k in range(K)) for i in range(K)]
    loss = mate.options.mu * sum(F.cross_entropy(logits[:, j], labels) for j in range(K))
    loss = loss + mate.options.nu * sum(F.cross_entropy(teacher, labels) for teacher in judged)
    for j in range(K):
        for i in range(K):
            lam = beta if i == j else (1 - beta) / (K - 1)
            inner = (
                mate.options.gamma * teachers[i] + (1 - mate.options.gamma) * teachers[i].detach()
            )
            divergence = F.kl_div(
                F.log_softmax(logits[:, j] / t, dim=-1),
                F.log_softmax(inner / t, dim=-1),
                reduction="batchmean",
                log_target=True,
            )
            attention = mate.options.attention ** ((K - 1 - j) / (K - 1))
            loss = loss + alpha * attention * lam * t**2 * divergence
    return loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.5, "gamma": 0.3, "nu": 0.5, "mu": 0.7, "alpha": 2.0, "temperature": 4.0},
        {"attention": 4.0},
        {"teacher_gradient": "plain"},
        {"teacher_gradient": "none"},
        {"teacher_weights": "single-row"},
        {"teacher_weights": "deeper-only"},
    ],
)
def test_the_cheap_form_is_the_loss_of_the_specification(
    options: dict[str, OptionValue], logits: torch.Tensor, labels: torch.Tensor
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


@pytest.mark.parametrize("teacher_gradient", ["none", "plain", "balanced"])
def test_the_exits_gradient_is_the_closed_form(
    teacher_gradient: str, logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate(alpha=1.5, nu=0.7, attention=4.0, teacher_gradient=teacher_gradient)
    t = mate.options.temperature
    teachers = mate.ensemble_weights @ logits.detach()
    soft = mate.lam @ (teachers / t).softmax(dim=-1)
    onehot = F.one_hot(labels, C)[:, None, :]
    student = logits.softmax(dim=-1) - onehot
    attention = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)[:, None]
    expected = mate.options.mu * student + mate.options.alpha * attention * t * (
        (logits / t).softmax(dim=-1) - soft
    )
    loudness = mate.ensemble_weights.T
    if teacher_gradient == "balanced":
        loudness = loudness / loudness.sum(dim=1, keepdim=True)
    if teacher_gradient != "none":
        expected = expected + 0.7 * loudness @ (teachers.softmax(dim=-1) - onehot)
    expected = expected / B
    (found,) = torch.autograd.grad(mate(logits, labels), logits)
    torch.testing.assert_close(found, expected)


def test_at_zero_weights_it_is_one_mean_ensemble_and_k_times_its_label_loss(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate(random_weights=False, mu=1.0, nu=1.0)
    t, ensemble = mate.options.temperature, logits.mean(dim=1).detach()
    expected = label_loss(logits, labels).sum() + K * F.cross_entropy(ensemble, labels)
    for j in range(K):
        attention = mate.options.attention ** ((K - 1 - j) / (K - 1))
        expected = expected + mate.options.alpha * attention * t**2 * F.kl_div(
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


@pytest.mark.parametrize("attention", [1.0, 4.0])
def test_without_label_loss_teachers_become_what_their_listeners_are(attention: float) -> None:
    # close to one another the divergences are quadratic: the minimum is the listeners' mean, by
    # how much each listens; without attention that is exactly lam^T
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 1, C, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, K, C, generator=generator, dtype=torch.float64)
    mate = make_mate(nu=0.0, gamma=1.0, attention=attention)
    found = fit_weights(mate, base + 0.01 * noise, torch.zeros(200, dtype=torch.long))
    heard = attention ** torch.tensor([1.0, 0.5, 0.0])[:, None] * mate.lam.double()
    torch.testing.assert_close(found, (heard / heard.sum(dim=0)).T, atol=0.02, rtol=0)


def descend(mate: Mate, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Follow the gradient alone: with gamma = 0 it is not that of the loss's value."""
    optimizer = torch.optim.Adam([mate.teacher_weights], lr=0.5)
    for _ in range(300):
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
    mate = make_mate(gamma=1.0)  # another gamma gives another gradient than the value's

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            mate, {"teacher_weights": weights}, (logits.detach(), labels)
        )

    assert torch.autograd.gradcheck(loss, mate.teacher_weights.detach().requires_grad_())


def test_one_exit_is_plain_cross_entropy(labels: torch.Tensor) -> None:
    logits = torch.randn(B, 1, C)
    expected = F.cross_entropy(logits[:, 0], labels)
    for name in ("mate", "ce"):
        torch.testing.assert_close(make_method(name, 1, C, {})(logits, labels), expected)


def test_deep_supervision_is_the_sum_of_all_cross_entropies(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = sum(F.cross_entropy(logits[:, k], labels) for k in range(K))
    torch.testing.assert_close(make_method("ce", K, C, {})(logits, labels), expected)


def test_the_teacher_weights_that_are_not_learned_are_what_they_are_called() -> None:
    fixed, uniform = make_mate(teacher_weights="fixed"), make_mate(teacher_weights="uniform")
    torch.testing.assert_close(fixed.ensemble_weights, fixed.lam.T)
    torch.testing.assert_close(uniform.ensemble_weights, torch.full((K, K), 1 / K).double())
    assert not [*fixed.parameters(), *uniform.parameters()]


def test_a_single_row_makes_one_teacher_and_deeper_only_looks_no_shallower() -> None:
    rows = make_mate(teacher_weights="single-row").ensemble_weights
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    deeper = make_mate(teacher_weights="deeper-only").ensemble_weights
    assert torch.equal(deeper.tril(-1), torch.zeros(K, K).double())
    torch.testing.assert_close(deeper.sum(dim=1), torch.ones(K).double())
    assert deeper[0].min() > 0


def test_plain_teachers_label_loss_is_the_exits_own_as_well(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate(alpha=0.0, mu=0.3, nu=0.7, teacher_gradient="plain")
    (found,) = torch.autograd.grad(mate(logits, labels), logits)
    teachers = mate.ensemble_weights @ logits
    loss = 0.3 * label_loss(logits, labels).sum() + 0.7 * label_loss(teachers, labels).sum()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, expected)


def test_by_default_an_exits_labels_weigh_as_much_as_in_ce() -> None:
    """Where all teachers and exits say the same: half of it comes by way of the teachers."""
    labels = torch.arange(B) % C
    same = torch.randn(B, 1, C, dtype=torch.float64).expand(-1, K, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(make_mate(alpha=0.0)(same, labels), same)
    (expected,) = torch.autograd.grad(label_loss(same, labels).sum(), same)
    torch.testing.assert_close(found, expected)


def test_the_ramp_scales_all_that_comes_of_teachers(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate, without = make_mate(ramp=0.4), make_mate(alpha=0.0, nu=0.0)
    full = make_mate()(logits, labels) - without(logits, labels)
    for epoch, weight in ((0, math.exp(-5)), (40, math.exp(-1.25)), (80, 1.0), (100, 1.0)):
        mate.begin_epoch(epoch, Recipe(epochs=200))
        torch.testing.assert_close(mate(logits, labels) - without(logits, labels), weight * full)
    at_once = make_mate(ramp=0.0)
    at_once.begin_epoch(0, Recipe(epochs=200))
    torch.testing.assert_close(at_once(logits, labels), make_mate()(logits, labels))


def test_frozen_weights_stay_from_the_last_drop_on_and_through_a_resume(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    recipe = Recipe(epochs=10, milestones=(0.5, 0.8))
    mate = make_mate(freeze_weights=True)
    optimizer = torch.optim.SGD(mate.parameters(), lr=1.0, momentum=0.9)
    seen = []
    for epoch in range(10):
        mate.begin_epoch(epoch, recipe)
        seen.append(mate.ensemble_weights.detach().clone())
        optimizer.zero_grad()
        mate(logits.detach(), labels).backward()
        optimizer.step()
    assert not torch.equal(seen[7], seen[8]), "the epoch of the drop begins with the newest"
    assert torch.equal(seen[8], seen[9])
    again = make_mate(freeze_weights=True)
    again.load_state_dict(mate.state_dict())
    again.begin_epoch(9, recipe)
    torch.testing.assert_close(again.ensemble_weights, seen[9])


def test_with_a_cosine_weights_are_frozen_in_the_last_quarter() -> None:
    for recipe, first in (
        (Recipe(epochs=20, schedule="cosine"), 15),
        (Recipe(epochs=2, schedule="cosine"), 2),
        (Recipe(epochs=20, milestones=()), 15),
        (Recipe(epochs=20, milestones=(0.5, 0.9)), 18),
    ):
        mate = make_mate(freeze_weights=True)
        frozen = []
        for epoch in range(recipe.epochs):
            mate.begin_epoch(epoch, recipe)
            frozen.append(mate.is_frozen)
        assert frozen == [epoch >= first for epoch in range(recipe.epochs)]


def test_the_log_holds_the_weights_the_teachers_accuracy_and_the_gaps(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    mate = make_mate()
    mate.begin_epoch(0, Recipe(epochs=1))
    logits = logits.detach()
    mate(logits, labels)
    mate(logits, labels)
    log = mate.log()
    assert sum(log[f"teacher_weight_1_{k}"] for k in (1, 2, 3)) == pytest.approx(1)
    teachers = mate.ensemble_weights.detach() @ logits
    t = mate.options.temperature
    for k in range(K):
        accuracy = (teachers[:, k].argmax(dim=-1) == labels).double().mean()
        assert log[f"teacher_accuracy_{k + 1}"] == pytest.approx(float(accuracy))
        for name, teacher in (("kl_primary", teachers[:, k]), ("kl_last", teachers[:, -1])):
            gap = t**2 * F.kl_div(
                F.log_softmax(logits[:, k] / t, dim=-1),
                F.softmax(teacher / t, dim=-1),
                reduction="batchmean",
            )
            assert log[f"{name}_{k + 1}"] == pytest.approx(float(gap), rel=1e-5)
    mate.begin_epoch(1, Recipe(epochs=2))
    mate(logits, torch.zeros_like(labels))
    fresh = (teachers[:, 0].argmax(dim=-1) == 0).double().mean()
    assert mate.log()["teacher_accuracy_1"] == pytest.approx(float(fresh)), "epochs do not mix"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mat", {}, "Did you mean mate?"),
        ("mate", {"bet": 0.5}, "Did you mean beta?"),
        ("mate", {"beta": 0.2}, "above 1/3"),
        ("mate", {"beta": 1.0}, "beta=1.0: expected a number < 1.0"),
        ("mate", {"temperature": 0.0}, "expected a number > 0.0"),
        ("mate", {"nu": -1.0}, "expected a number >= 0.0"),
        ("mate", {"gamma": float("nan")}, "gamma=nan"),
        ("mate", {"temperature": "inf"}, "temperature=inf"),
        ("mate", {"temperature": "warm"}, "temperature=warm: expected a number$"),
        ("mate", {"ramp": 2.5}, "ramp=2.5: expected a number <= 1.0"),
        ("okddip", {"ramp": -0.5}, "ramp=-0.5: expected a number >= 0.0"),
        ("mate", {"beta": ""}, "beta=: a value is missing, expected a number$"),
        ("mate", {"freeze_weights": "yes"}, "freeze_weights=yes: expected true or false$"),
        ("mate", {"teacher_weights": "fix"}, "Did you mean fixed?"),
        ("ce", {"beta": 0.5}, "no options"),
    ],
)
def test_a_wrong_method_or_option_is_a_clear_error(
    name: str, options: dict[str, float], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        make_method(name, K, C, options)
