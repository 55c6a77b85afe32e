"""What a user may choose of a training, and whether it is what a run was started with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mate_edge.errors import UsageError
from mate_edge.runs import OptionValue, Recipe, Run
from mate_edge.train.data import DATASETS
from mate_edge.train.data.adapt import parse_statistics, read_classes
from mate_edge.train.losses import complete_options
from mate_edge.train.recipe import (
    ADAMW_LR,
    ADAMW_WEIGHT_DECAY,
    FINE_TUNING,
    parse_milestones,
)
from mate_edge.train.weights import read_weights

PRECISIONS = {"fp32": None, "bf16": None, "fp16": None}


@dataclass(frozen=True)
class Options:
    """What the user may choose; None stands for the default (the data set's, where it has one)."""

    data: str | None = None
    arch: str | None = None
    head: str | None = None
    method: str | None = None
    method_options: dict[str, OptionValue] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    milestones: str | None = None
    warm_up: int | None = None
    seed: int | None = None
    size: int | None = None
    resize: int | None = None
    mean: str | None = None
    std: str | None = None
    precision: str | None = None
    accumulate: int | None = None
    validate_every: int | None = None
    train_images: int | None = None
    randaugment: int | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    flip: bool | None = None
    exits: str | None = None
    pretrained: bool | None = None
    weights: Path | None = None
    classes: Path | None = None
    freeze_backbone: bool | None = None


def choose_recipe(default: Recipe, options: Options, imported: bool) -> Recipe:
    """Return a data set's recipe with what the user chose.

    Args:
        default: the data set's.
        options: what is chosen; the rest stays, but for what goes with a choice.
        imported: whether the training begins with imported weights.

    Raises:
        UsageError: milestones that are none, or that the schedule does not have.
    """
    if imported:
        default = msgspec.structs.replace(default, **FINE_TUNING)
    if options.optimizer == "adamw":
        default = msgspec.structs.replace(
            default, lr=default.lr * ADAMW_LR, weight_decay=ADAMW_WEIGHT_DECAY
        )
    chosen = {name: getattr(options, name, None) for name in Recipe.__struct_fields__}
    if options.milestones is not None:
        chosen["milestones"] = parse_milestones(options.milestones)
        if options.schedule not in (None, "step"):
            raise UsageError("--milestones goes with --schedule step")
    return msgspec.structs.replace(
        default, **{name: value for name, value in chosen.items() if value is not None}
    )


def check_options(folder: Path, run: Run, options: Options) -> None:
    """Refuse options that differ from a run's; those that are None differ from nothing.

    Raises:
        UsageError: with the option and both values.
    """
    stored = {
        "data": run.data,
        "size": run.preprocessing.size,
        "resize": run.preprocessing.resize,
        "mean": run.preprocessing.mean,
        "std": run.preprocessing.std,
        **msgspec.structs.asdict(run.recipe),
        "exits": run.exits_at,
        "weights": run.weights_sha256,
    }
    for option in dataclasses.fields(options):
        wanted = getattr(options, option.name)
        found = stored.get(option.name, getattr(run, option.name, None))
        if option.name == "data" and wanted is not None and wanted not in DATASETS:
            wanted = str(Path(wanted).resolve())
        if option.name == "classes":
            wanted = wanted and read_classes(wanted)
        if option.name in ("mean", "std") and wanted is not None:
            wanted = parse_statistics(f"--{option.name}", wanted, run.preprocessing.channels)
        if option.name == "milestones":
            wanted = wanted and parse_milestones(wanted)
        if option.name == "weights":
            wanted = wanted and read_weights(wanted).sha256
        if option.name == "method_options":
            complete = wanted and complete_options(run.method, run.method_options | wanted)
            wanted = {name: v for name, v in complete.items() if v != run.method_options.get(name)}
            found = {name: run.method_options.get(name) for name in wanted}
        if option.name == "exits" and not run.cuts and wanted == str(run.exits):
            continue  # the ends of the stages, in other words
        if wanted not in (None, {}, found):
            raise UsageError(
                f"{folder} was started with {option.name} {found}, not {wanted}: resume it without "
                "this option, or train a new run"
            )
