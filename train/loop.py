"""The training loop: from a data set and a `Run` to a finished run folder."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from safetensors.torch import save as save_safetensors
from torch.optim import SGD
from torch.utils.data import DataLoader

from mate_edge import files
from mate_edge.errors import RunError, UsageError
from mate_edge.runs import Results, Run, write_run
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.loader import make_loader
from mate_edge.train.evaluate import compute_logits, exit_accuracy, spread
from mate_edge.train.losses import make_method
from mate_edge.train.network import WEIGHTS, MultiExitNet, network_of
from mate_edge.train.progress import TrainingProgress, duration, percentages
from mate_edge.train.recipe import Objective, check_recipe, learning_rate, make_optimizer
from mate_edge.train.state import (
    load_initial,
    load_state,
    read_metrics,
    remove_state,
    save_state,
    write_metrics,
)

SAMPLE_IMAGES = 64
"""How many validation images the run keeps, for the check of an export."""

SHOW_EVERY = 5  # steps
ESTIMATE_AFTER = 20  # steps


def provenance() -> dict[str, Any]:
    """Return what `Run` notes of the moment: time, versions, git commit."""
    packages = ("mate-edge", "torch", "torchvision", "accelerate", "numpy")
    commit = None
    if shutil.which("git"):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = asked.stdout.strip() or None
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "git_commit": commit,
    }


def make_accelerator(precision: str) -> Accelerator:
    """Return an Accelerator for `fp32`, `bf16` or `fp16`.

    Raises:
        UsageError: the device cannot compute with this precision.
    """
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision={"fp32": "no"}.get(precision, precision),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise UsageError(f"--precision {precision} does not work here: {error}") from None


def train(folder: Path, run: Run, dataset: Dataset, accelerator: Accelerator) -> None:
    """Train `run` in `folder`, from its newest state if it has one, to the end.

    Writes `metrics.csv` and the state after each epoch; at the end the weights, `outputs.npz` and
    the results. The same seed gives the same weights, bit by bit, on the same machine and versions,
    whether interrupted or not.

    Raises:
        UsageError: an option that cannot work.
        RunError: a state that cannot be loaded, or a loss that is no longer a number.
    """
    check_recipe(run.recipe, len(dataset.train.labels))
    torch.manual_seed(run.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    network = network_of(run)
    if run.weights is not None:
        load_initial(folder, network)
    method = make_method(run.method, network.num_exits, run.method_options)
    objective = Objective(network.to(memory_format=torch.channels_last), method)
    optimizer = make_optimizer(objective, run.recipe)
    loader, order = make_loader(dataset, run.recipe.batch_size, run.seed)
    prepared, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
    done = load_state(accelerator, folder)
    rows = read_metrics(folder, done)

    epochs, steps = run.recipe.epochs, len(loader)
    with TrainingProgress(
        epochs * steps, done * steps, quiet=not accelerator.is_main_process
    ) as progress:
        if done:
            progress.say(f"resuming after epoch {done} of {epochs}")
        for epoch in range(done, epochs):
            order.epoch = epoch
            rate = learning_rate(run.recipe, epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            row = {"epoch": epoch + 1, "lr": rate}
            row |= _train_epoch(accelerator, prepared, optimizer, loader, progress, epoch)
            if accelerator.is_main_process:
                row |= _validate(network, dataset, accelerator.device) | method.log()
                rows.append(row)
                write_metrics(folder, rows)
                progress.say(_epoch_line(row, epochs, network.num_exits))
            save_state(accelerator, folder, epoch + 1)
    if accelerator.is_main_process:
        _finish(folder, run, network, dataset, accelerator.device)
    accelerator.wait_for_everyone()


def _train_epoch(
    accelerator: Accelerator,
    objective: torch.nn.Module,
    optimizer: SGD,
    loader: DataLoader[Any],
    progress: TrainingProgress,
    epoch: int,
) -> dict[str, float]:
    """Train one epoch; return its mean loss, accuracies, speed and duration."""
    objective.train()
    device = accelerator.device
    total = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    seen, state = 0, ""
    started = time.perf_counter()
    for step, (images, labels) in enumerate(loader, start=1):
        images = images.to(memory_format=torch.channels_last)
        loss, logits = objective(images, labels)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        optimizer.step()
        total += loss.detach()
        correct = correct + (logits.detach().argmax(dim=-1) == labels[:, None]).sum(dim=0)
        seen += len(labels)
        if step % SHOW_EVERY == 0 or step == len(loader):
            if not math.isfinite(mean_loss := float(total) / step):
                raise RunError(
                    f"the loss is {mean_loss} at step {step} of epoch {epoch + 1}: lower --lr and "
                    "train again, or resume from the last epoch"
                )
            speed = seen * accelerator.num_processes / (time.perf_counter() - started)
            exits = percentages((correct / seen).tolist())
            state = f"loss {mean_loss:.3f}  exits {exits} %  {speed:.0f} images/s"
        progress.step(f"epoch {epoch + 1}  {state}")
        if progress.steps_here == ESTIMATE_AFTER:
            left = progress.steps_left * (time.perf_counter() - started) / step
            progress.say(f"this training will take about {duration(left)}")
    seconds = time.perf_counter() - started
    accuracies = (correct / seen).tolist()
    return {
        "loss": float(total) / len(loader),
        **{f"train_accuracy_{k}": a for k, a in enumerate(accuracies, start=1)},
        "images_per_s": seen * accelerator.num_processes / seconds,
        "seconds": seconds,
    }


def _validate(network: MultiExitNet, dataset: Dataset, device: torch.device) -> dict[str, float]:
    logits = compute_logits(network, dataset.val, dataset.preprocessing, device)
    accuracies, ensemble = exit_accuracy(logits, dataset.val.labels)
    return {
        **{f"val_accuracy_{k}": a for k, a in enumerate(accuracies, start=1)},
        "val_ensemble": ensemble,
    }


def _epoch_line(row: dict[str, Any], epochs: int, num_exits: int) -> str:
    accuracies = [row[f"val_accuracy_{k}"] for k in range(1, num_exits + 1)]
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}  "
        f"validation {percentages(accuracies)} %  {row['images_per_s']:.0f} images/s"
    )


def _finish(
    folder: Path, run: Run, network: MultiExitNet, dataset: Dataset, device: torch.device
) -> None:
    """Write weights, outputs and results; drop the state."""
    preprocessing = dataset.preprocessing
    val_logits = compute_logits(network, dataset.val, preprocessing, device)
    test_logits = compute_logits(network, dataset.test, preprocessing, device)
    val_accuracy, val_ensemble = exit_accuracy(val_logits, dataset.val.labels)
    test_accuracy, test_ensemble = exit_accuracy(test_logits, dataset.test.labels)
    sample = spread(len(dataset.val.labels), SAMPLE_IMAGES)
    weights = {name: t.contiguous().cpu() for name, t in network.state_dict().items()}
    contents = {
        WEIGHTS: save_safetensors(weights),
        "outputs.npz": files.arrays_to_bytes(
            {
                "val_logits": val_logits,
                "val_labels": dataset.val.labels,
                "val_images": dataset.val.plain(sample.tolist(), preprocessing),
                "val_image_indices": sample,
                "test_logits": test_logits,
                "test_labels": dataset.test.labels,
            }
        ),
    }
    for name, data in contents.items():
        files.write_whole(folder / name, data)
    run = msgspec.structs.replace(
        run,
        results=Results(
            val_accuracy=val_accuracy,
            val_ensemble=val_ensemble,
            test_accuracy=test_accuracy,
            test_ensemble=test_ensemble,
        ),
        files={name: files.sha256(data) for name, data in contents.items()},
    )
    write_run(folder, run)
    remove_state(folder)
