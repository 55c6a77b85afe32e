"""The recipe is the user's: optimiser, rate, schedule, and what a resume makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.numpy import load_file
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from mate_edge.errors import UsageError
from mate_edge.report.subject import ExitCost
from mate_edge.runs import Recipe, read_run
from mate_edge.train.data import cifar, fashion_mnist, load_dataset
from mate_edge.train.losses import make_method
from mate_edge.train.network import build_network
from mate_edge.train.new import new_run
from mate_edge.train.options import Options, choose_recipe
from mate_edge.train.recipe import (
    FINE_TUNING,
    Objective,
    learning_rate,
    make_optimizer,
    parse_milestones,
)
from mate_edge.train.reported import gather_run
from mate_edge.train.start import old_run, run_training

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
OLD = {"optimizer", "schedule", "warm_up"}
"""What a recipe had not before it could be chosen."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Options for a training of seconds, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return {
        "data": "digits",
        "arch": "small:stages",
        "epochs": 3,
        "batch_size": 128,
        "train_images": 256,
    }


def objective(method: str = "mate") -> Objective:
    torch.manual_seed(0)
    network = build_network("resnet8", "linear", 1, 32, 10)
    return Objective(network, make_method(method, network.num_exits, 10, {}))


def rates(scheduler: LRScheduler, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(lr: float) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_a_cosine_after_a_warm_up_is_torchs(warm_up: int) -> None:
    recipe = Recipe(epochs=12, lr=0.3, schedule="cosine", warm_up=warm_up)
    fit = optimizer(0.3)
    scheduler: LRScheduler = CosineAnnealingLR(fit, 12 - warm_up)
    if warm_up:
        rise = LinearLR(fit, 1 / (warm_up + 1), total_iters=warm_up)
        scheduler = SequentialLR(fit, [rise, scheduler], [warm_up])
    expected = rates(scheduler, 12)
    assert [learning_rate(recipe, epoch) for epoch in range(12)] == pytest.approx(expected)
    assert expected[warm_up] == pytest.approx(0.3)


def test_steps_are_torchs() -> None:
    recipe = Recipe(epochs=20, lr=0.3, milestones=(0.5, 0.75))
    expected = rates(MultiStepLR(optimizer(0.3), [10, 15]), 20)
    assert [learning_rate(recipe, epoch) for epoch in range(20)] == pytest.approx(expected)
    warm = Recipe(epochs=20, lr=0.3, milestones=(0.5, 0.75), warm_up=2)
    found = [learning_rate(warm, epoch) for epoch in range(20)]
    assert found == pytest.approx([0.1, 0.2, *expected[2:]])


def test_the_default_rates_are_to_the_bit_those_of_runs_from_before_there_were_schedules() -> None:
    recipe = Recipe(epochs=200, lr=0.07)
    for epoch in range(200):
        drops = sum(epoch >= drop for drop in (75, 130, 180))
        assert learning_rate(recipe, epoch) == 0.07 * 0.1**drops


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_for_the_network_and_never_for_mates_weights(name: str) -> None:
    both = objective()
    recipe = Recipe(epochs=1, optimizer=name, weight_decay=0.5, lr=0.1)
    with torch.no_grad():
        for parameter in both.method.parameters():
            parameter.fill_(1.0)
    before = [p.detach().clone() for p in both.network.parameters()]
    for parameter in both.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(both, recipe).step()
    for parameter, old in zip(both.network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * 0.95)
    (weights,) = both.method.parameters()
    assert torch.equal(weights.detach(), torch.ones_like(weights))


def test_adamw_has_rate_decay_and_first_beta_of_its_own() -> None:
    data_sets = Recipe(epochs=200)
    found = choose_recipe(data_sets, Options(optimizer="adamw"), imported=False)
    assert (found.lr, found.weight_decay, found.epochs) == (pytest.approx(1e-3), 0.05, 200)
    tuned = choose_recipe(data_sets, Options(optimizer="adamw"), imported=True)
    assert (tuned.lr, tuned.epochs) == (pytest.approx(1e-4), 20)
    chosen = Options(optimizer="adamw", lr=0.02, momentum=0.8, weight_decay=0.0)
    found = choose_recipe(data_sets, chosen, imported=True)
    assert (found.lr, found.weight_decay) == (0.02, 0.0)
    (first, _) = make_optimizer(objective(), found).param_groups
    assert first["betas"] == (0.8, 0.999)


def test_the_command_passes_the_recipe_on_and_the_report_tells_it(cli: Any, tmp_path: Path) -> None:
    done = cli("train", "--data", "digits", "--epochs", "2", "--train-images", "64", "--optimizer",
               "adamw", "--lr", "0.002", "--momentum", "0.8", "--weight-decay", "0.01",
               "--schedule", "cosine", "--warm-up", "1", "--out", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    assert run.recipe == Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.002, momentum=0.8,
                                weight_decay=0.01, schedule="cosine", warm_up=1,
                                flip=False)  # fmt: skip
    costs = [ExitCost(k) for k in range(1, run.exits + 1)]
    told = dict(gather_run(tmp_path / "run", run, costs, None).provenance)["recipe"]
    assert "adamw, momentum 0.8, learning rate 0.002 cosine, 1 epoch of warm-up" in told


def test_the_page_on_training_gives_the_recipes_and_names_every_option(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.new("RGB", (32, 32), (number,) * 3).save(tmp_path / name / f"{number}.png")
    small, large = (load_dataset(str(tmp_path), size).recipe for size in (127, 128))
    text = PAGE.read_text(encoding="utf-8")
    given = {}
    for row in re.findall(r"^\| (.*resnet\d+.*) \|$", text, re.MULTILINE):
        data, _, epochs, batch, lr, milestones, decay, _ = row.split(" | ")
        given[data.split("`")[1] if data[0] == "`" else data.split(":")[0]] = Recipe(
            epochs=int(epochs), batch_size=int(batch), lr=float(lr), weight_decay=float(decay),
            milestones=parse_milestones(milestones))  # fmt: skip
    assert given == {
        "digits": load_dataset("digits").recipe,
        "fashion-mnist": fashion_mnist.RECIPE,
        "cifar10": cifar.RECIPE,
        "images in files, `--size` below 128": small,
        "images in files, `--size` 128 or more": large,
    }
    tuned = "the data's | {epochs} | the data's | {lr} | the data's".format(**FINE_TUNING)
    assert tuned in text
    for name in Recipe.__struct_fields__:
        option = "no-flip" if name == "flip" else name.replace("_", "-")
        assert f"`--{option}" in text, option


def test_milestones_are_the_users(quick: dict[str, Any]) -> None:
    folder, run, _ = new_run(Options(**quick, milestones="0.4,0.8"), None)
    assert run.recipe.milestones == (0.4, 0.8)
    assert old_run(Options(milestones=".4,0.80"), folder)[1] == run
    for options, says in (
        (Options(milestones="0.5"), r"milestones \(0.4, 0.8\), not \(0.5,\)"),
        (Options(schedule="cosine"), "schedule step, not cosine"),
        (Options(optimizer="adamw"), "optimizer sgd, not adamw"),
        (Options(weight_decay=0.0), "weight_decay 0.0005, not 0.0"),
    ):
        with pytest.raises(UsageError, match=says):
            old_run(options, folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": ""}, "unknown --method ''"),
        ({"optimizer": "adam"}, "unknown --optimizer 'adam'.*Did you mean adamw"),
        ({"schedule": "linear"}, "unknown --schedule 'linear': choose from step, cosine"),
        ({"momentum": 1.0}, "--momentum must be 0 or more and below 1"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or more and below 1, not -0.1"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"warm_up": 3}, "--warm-up must be 0 or more and below --epochs 3, not 3"),
        ({"warm_up": -1}, "--warm-up"),
        ({"milestones": "0.5,0.5"}, "--milestones takes rising fractions"),
        ({"milestones": "100,150"}, "--milestones takes rising fractions"),
        ({"milestones": "half"}, "not 'half'"),
        ({"milestones": ""}, "not ''"),
        ({"milestones": "0.5", "schedule": "cosine"}, "--milestones goes with --schedule step"),
    ],
)
def test_a_recipe_that_cannot_work_is_a_clear_error(
    changes: dict[str, Any], says: str, quick: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=says):
        new_run(Options(**quick, **changes), None)
    assert not Path("runs").exists()


def test_a_resume_under_adamw_and_a_cosine_reaches_the_same_weights(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(**quick, optimizer="adamw", schedule="cosine", warm_up=1)
    whole, _ = run_training(options, Path("whole"), resume=False)
    stop_after(1, monkeypatch, options, Path("stopped"))
    run_training(Options(), Path("stopped"), resume=True)
    assert_same_weights(whole, Path("stopped"))


def test_a_run_from_before_the_recipe_could_be_chosen_goes_on_to_the_same_weights(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_training(Options(**quick), Path("whole"), resume=False)
    stop_after(1, monkeypatch, Options(**quick), Path("old"))
    document = json.loads(Path("old/run.json").read_bytes())
    assert set(document["recipe"]) > OLD
    document["recipe"] = {k: v for k, v in document["recipe"].items() if k not in OLD}
    Path("old/run.json").write_text(json.dumps(document))
    run_training(Options(schedule="step", optimizer="sgd"), Path("old"), resume=True)
    assert_same_weights(whole, Path("old"))


def stop_after(
    epochs: int, monkeypatch: pytest.MonkeyPatch, options: Options, folder: Path
) -> None:
    """Begin a training that fails when it saves the state after the next epoch."""
    save, calls = Accelerator.save_state, 0

    def fail(self: Accelerator, where: str, **given: bool) -> None:
        nonlocal calls
        calls += 1
        if calls > epochs:
            raise RuntimeError("no room")
        save(self, where, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", fail)
        with pytest.raises(UsageError, match="no room"):
            run_training(options, folder, resume=False)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(np.array_equal(first[name], second[name]) for name in first)
