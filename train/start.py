"""From what the user asked for to a run that can be trained: a new one, or one to resume."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mate_edge import files
from mate_edge.errors import ImageError, RunError, UsageError
from mate_edge.names import look_up
from mate_edge.runs import RUNS, Run, find_run, read_run, write_run
from mate_edge.train.backbones import BACKBONES, make_parts
from mate_edge.train.data import DATASETS, load_dataset
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.exits import choose_cuts
from mate_edge.train.heads import HEADS
from mate_edge.train.loop import make_accelerator, provenance, train
from mate_edge.train.losses import METHODS, make_method
from mate_edge.train.network import assemble
from mate_edge.train.recipe import check_recipe

PRECISIONS = {"fp32": None, "bf16": None, "fp16": None}


@dataclass(frozen=True)
class Options:
    """What the user may choose; None stands for the default (the data set's, where it has one)."""

    data: str | None = None
    arch: str | None = None
    head: str | None = None
    method: str | None = None
    method_options: dict[str, float] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int | None = None
    size: int | None = None
    precision: str | None = None
    exits: str | None = None


def new_run(options: Options, out: Path | None) -> tuple[Path, Run, Dataset]:
    """Load the data, check every option and make the run folder.

    Raises:
        UsageError: an option that cannot work, or `out` exists.
        DataError: the data set is missing or malformed.
    """
    method = options.method or "mate"
    head = options.head or "sepconv"
    precision = options.precision or "fp32"
    for kind, name, table in (
        ("--method", method, METHODS),
        ("--head", head, HEADS),
        ("--precision", precision, PRECISIONS),
    ):
        look_up(kind, name, table)
    if ":" not in (wanted := options.arch or "resnet18"):
        look_up("--arch", wanted, BACKBONES)
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already: remove it, choose another --out, or --resume it")
    data = options.data or "cifar100"
    dataset = load_dataset(data, options.size)
    arch = options.arch or dataset.arch
    chosen = {"epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr}
    recipe = msgspec.structs.replace(
        dataset.recipe, **{name: value for name, value in chosen.items() if value is not None}
    )
    check_recipe(recipe, len(dataset.train.labels))
    seed = options.seed or 0
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must lie between 0 and 2^63 - 1, not {seed}")
    channels, size = dataset.preprocessing.channels, dataset.preprocessing.size
    parts = make_parts(arch, channels, size, len(dataset.classes))
    cuts = choose_cuts(parts.stages, options.exits, channels, size)
    network = assemble(arch, parts, head, channels, size, len(dataset.classes), cuts)
    make_method(method, network.num_exits, options.method_options)
    label = data if data in DATASETS else re.sub(r"[^\w.-]+", "-", Path(data).resolve().name)
    folder = out or files.unused(RUNS / re.sub(r"[^\w.-]+", "-", f"{label}-{arch}-{method}"))
    run = msgspec.convert(
        {
            "name": folder.name,
            "arch": arch,
            "head": head,
            "exits": network.num_exits,
            "exits_at": options.exits,
            "cuts": cuts,
            "data": data if data in DATASETS else str(Path(data).resolve()),
            "classes": dataset.classes,
            "preprocessing": dataset.preprocessing,
            "method": method,
            "method_options": METHODS[method].OPTIONS | options.method_options,
            "recipe": recipe,
            "seed": seed,
            "precision": precision,
            "images_sha256": dataset.fingerprint(),
            **provenance(),
        },
        Run,
    )
    with files.whole_folder(folder) as made:
        write_run(made, run)
    files.write_latest(RUNS, folder)
    return folder, run, dataset


def old_run(options: Options, out: Path | None) -> tuple[Path, Run, Dataset]:
    """Open a run to continue it; options given must say what the run says.

    Raises:
        RunError: there is no such run, or its data set has changed.
        UsageError: an option that differs from the run's.
    """
    folder = find_run(out)
    run = read_run(folder)
    stored = {
        "data": run.data,
        "size": run.preprocessing.size,
        "epochs": run.recipe.epochs,
        "batch_size": run.recipe.batch_size,
        "lr": run.recipe.lr,
        "exits": run.exits_at,
    }
    for option in dataclasses.fields(options):
        wanted = getattr(options, option.name)
        found = stored.get(option.name, getattr(run, option.name, None))
        if option.name == "data" and wanted is not None and wanted not in DATASETS:
            wanted = str(Path(wanted).resolve())
        if option.name == "method_options":
            wanted = wanted and run.method_options | wanted
        if wanted not in (None, {}, found):
            raise UsageError(
                f"{folder} was started with {option.name} {found}, not {wanted}: resume it without "
                "this option, or train a new run"
            )
    dataset = load_dataset(run.data, None if run.data in DATASETS else run.preprocessing.size)
    same = (dataset.classes, dataset.preprocessing) == (run.classes, run.preprocessing)
    if not same or dataset.fingerprint() != run.images_sha256:
        raise RunError(f"the images of {run.data} have changed since {folder} began: train anew")
    return folder, run, dataset


def is_main_process() -> bool:
    """Say whether this is the one process, of those training together, that speaks."""
    return bool(PartialState().is_main_process)


def run_training(options: Options, out: Path | None, resume: bool) -> tuple[Path, Run]:
    """Do what `mate-edge train` does; return the run folder and the finished run.

    With several processes (`torchrun`, `accelerate launch`) the first one makes the folder; see
    `is_main_process`.

    Raises:
        MateEdgeError: as `new_run`, `old_run` and `train`.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        folder, run, dataset = (old_run if resume else new_run)(options, out)
        shared = [str(folder)]
    else:
        shared = [""]
    broadcast_object_list(shared)
    if not state.is_main_process:
        folder, run, dataset = old_run(Options(), Path(shared[0]))
    elif dataset.note:
        print(dataset.note, file=sys.stderr)
    if run.finished:
        return folder, run
    try:
        train(folder, run, dataset, make_accelerator(run.precision))
        return folder, read_run(folder)
    except ImageError as error:
        reason = str(error).rsplit("ImageError: ", 1)[-1]  # a worker's carries its traceback
        raise ImageError(
            f"{reason}: mend it, then type mate-edge train --resume --out {folder}"
        ) from None
