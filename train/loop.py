"""The training loop: from a data set and a `Run` to a finished run folder."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin
from torch.optim import Optimizer
from torch.utils import deterministic
from torch.utils.data import DataLoader

from mate_edge.errors import RunError, UsageError
from mate_edge.runs import Run
from mate_edge.stop import StopSignal
from mate_edge.times import now_utc
from mate_edge.train.backbones.own import check_training
from mate_edge.train.backbones.parts import channels_last
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.loader import make_loader, waiting_advice
from mate_edge.train.ending import Ending, should_stop, stopped
from mate_edge.train.losses import make_method
from mate_edge.train.network import network_of, structure_of
from mate_edge.train.probe import is_remembered, probe
from mate_edge.train.progress import TrainingProgress, duration
from mate_edge.train.recipe import Objective, check_recipe, learning_rate, make_optimizer
from mate_edge.train.state import (
    Position,
    Row,
    load_initial,
    load_state,
    read_metrics,
    save_state,
)
from mate_edge.train.sums import Diverged, EpochSums

LOOK_EVERY = 5  # steps: to look at the sums waits for the device, and for the other processes
ESTIMATE_AFTER = 20  # steps
MUCH_WAITING = 0.2  # of an epoch's time


def provenance() -> dict[str, Any]:
    """Return what `Run` notes of the moment: time, versions, git commit."""
    packages = ("mate-edge", "torch", "torchvision", "accelerate", "numpy")
    return {
        "created": now_utc(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "git_commit": _own_commit(),
    }


def _own_commit() -> str | None:
    """Return the commit of mate-edge's own checkout, `-dirty` when it was changed; None: no git."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).resolve()
    for command in (
        ["ls-files", "--error-unmatch", here.name],  # or it lies in somebody else's repository
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ):
        asked = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True)
        if asked.returncode:
            return None
    return asked.stdout.strip() or None


def check_precision(precision: str) -> None:
    """Refuse `fp16` without an accelerator: on a CPU it would silently be fp32.

    Raises:
        UsageError: it is that.
    """
    if precision == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16 needs a GPU, and there is none: take bf16, or fp32")


def make_accelerator(precision: str, accumulate: int = 1) -> Accelerator:
    """Return an Accelerator for `fp32`, `bf16` or `fp16`, with `accumulate` batches a step.

    Both are the run's, whatever a launcher's environment says.

    Raises:
        UsageError: the device cannot compute with this precision.
    """
    check_precision(precision)
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision={"fp32": "no"}.get(precision, precision),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise UsageError(f"--precision {precision} does not work here: {error}") from None


def train(
    folder: Path,
    run: Run,
    dataset: Dataset,
    accelerator: Accelerator,
    workers: int | None = None,
) -> None:
    """Train `run` in `folder`, from its newest state if it has one, to the end.

    Keeps the state after each epoch, then validates and writes `metrics.csv`; writes the weights,
    `outputs.npz` and the results at the end. The same seed gives the same weights, bit by bit, on
    the same machine, versions and number of processes, whether interrupted or not, with any number
    of `workers` (see `make_loader`).

    Raises:
        UsageError: an option that cannot work.
        RunError: a state that cannot be loaded.
        Diverged: the loss or a weight is no longer a number.
        TrainingStopped: a signal asked for it; the state is saved.
    """
    check_recipe(run.recipe, len(dataset.train.labels), accelerator.num_processes)
    _make_repeatable()
    network = network_of(run)
    if run.structure not in (None, structure_of(network)):
        raise _another_network(run, folder)
    if run.weights is not None:
        load_initial(folder, network)
    if ":" in run.arch and accelerator.num_processes > 1:  # one process may have begun it
        check_training(
            run.arch,
            network,
            run.preprocessing.channels,
            run.preprocessing.size,
            len(run.classes),
            accelerator.num_processes,
        )
    method = make_method(run.method, network.num_exits, len(run.classes), run.method_options)
    objective = Objective(channels_last(network), method)
    optimizer = make_optimizer(objective, run.recipe)
    loader, order = make_loader(dataset, run.recipe, run.seed, workers)
    prepared, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
    if accelerator.process_index > 0:  # or each would draw the masks of dropout that the first does
        torch.manual_seed(run.seed + accelerator.process_index)
    done = load_state(accelerator, folder)
    if not is_remembered(network, run.preprocessing, done.answers):
        raise _another_network(run, folder)
    rows = read_metrics(folder, done.epoch)
    advised = False

    def keep(position: Position) -> None:
        answers = probe(network, run.preprocessing)
        save_state(accelerator, folder, msgspec.structs.replace(position, answers=answers))

    epochs, steps = run.recipe.epochs, len(order) // run.recipe.batch_size
    with (
        StopSignal() as stop,
        TrainingProgress(
            epochs * steps,
            done.epoch * steps + done.step,
            quiet=not accelerator.is_main_process,
        ) as progress,
    ):
        if done != Position():
            within = f" and {done.step} steps" if done.step else ""
            progress.say(f"resuming after epoch {done.epoch}{within} of {epochs}")
        ending = Ending(accelerator, folder, run, network, dataset, rows, progress, stop)
        if done.row is not None:
            ending.conclude(done.row)
        for epoch in range(done.epoch, epochs):
            begun = done if epoch == done.epoch else Position(epoch=epoch)
            order.epoch, order.start = epoch, begun.step * run.recipe.batch_size
            method.begin_epoch(epoch, run.recipe)
            rate = learning_rate(run.recipe, epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            sums = EpochSums.begin(begun, accelerator)
            _train_epoch(accelerator, prepared, optimizer, loader, sums, progress, stop)
            _check_weights(objective, epoch)
            if sums.steps < steps:
                keep(sums.position(accelerator))
                raise stopped(f"step {sums.steps} of epoch {epoch + 1}", folder, stop)
            row: Row = {"epoch": epoch + 1, "lr": rate} | sums.row(accelerator)
            if accelerator.is_main_process:
                row |= method.log()
            keep(Position(epoch=epoch + 1, row=row))
            ending.conclude(row)
            if sums.waiting > MUCH_WAITING and not advised:
                progress.say(waiting_advice(sums.waiting, loader.num_workers))
                advised = True
        ending.finish()
    accelerator.wait_for_everyone()


def _make_repeatable() -> None:
    """Let torch compute in one way only; `network_of` seeds whatever draws."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # nothing reads it, and filling costs 5 %
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or matrix products vary on CUDA


def _train_epoch(
    accelerator: Accelerator,
    objective: torch.nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    sums: EpochSums,
    progress: TrainingProgress,
    stop: StopSignal,
) -> None:
    """Train the rest of an epoch, or until a signal comes, and add to `sums`."""
    objective.train()
    state = ""
    for images, labels in sums.timed(loader):
        images = images.to(memory_format=torch.channels_last)
        with accelerator.accumulate(objective):
            loss, logits = objective(images, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums.add(loss.detach(), logits.detach(), labels)
        if not accelerator.sync_gradients:
            continue
        sums.steps += 1
        looks = sums.steps % LOOK_EVERY == 0
        if looks:
            state = sums.line(accelerator)
        progress.step(f"epoch {sums.epoch + 1}  {state}")
        if progress.steps_here == ESTIMATE_AFTER:
            left = progress.steps_left * sums.seconds / sums.steps
            progress.say(f"this training will take about {duration(left)}")
        if (looks or accelerator.num_processes == 1) and should_stop(accelerator, stop):
            break
    sums.check(accelerator)


def _another_network(run: Run, folder: Path) -> RunError:
    return RunError(
        f"{run.arch} is another network now than {folder} began with, which has {run.exits} "
        "exits: bring it back, or train a new run"
    )


def _check_weights(objective: Objective, epoch: int) -> None:
    """Refuse to keep a state whose weights the last step spoilt.

    A buffer may hold infinity, as a mask does, but no NaN.
    """
    parameters, state = objective.parameters(), objective.state_dict().values()
    if not all(bool(tensor.isfinite().all()) for tensor in parameters) or any(
        bool(tensor.isnan().any()) for tensor in state
    ):
        raise Diverged(f"the last step in epoch {epoch + 1} left weights that are no numbers")
