"""What a report says of a run: gathered from its folder and its data set."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mate_edge import files, runs
from mate_edge.decide.temperature import fit_temperatures
from mate_edge.decide.tune import MAX_DROPS, search_thresholds
from mate_edge.errors import MateEdgeError, RunError
from mate_edge.report.subject import ExitCost, NamedPolicy, Subject, Training
from mate_edge.report.text import epochs_text
from mate_edge.report.words import drop_goal, exits_text
from mate_edge.runs import METRICS, Recipe, Run
from mate_edge.train.data.again import load_again
from mate_edge.train.data.places import no_downloads

JUDGED = "balanced"


def gather_run(
    folder: Path, run: Run, costs: Sequence[ExitCost], unsplit_flops: int | None
) -> Subject:
    """Gather what a report of a finished run is made of.

    Temperatures and thresholds are chosen on the validation images, as export does; everything is
    counted on the test images.

    Args:
        folder: the run's.
        run: from `read_finished_run`.
        costs: one an exit.
        unsplit_flops: of the network without early heads.

    Raises:
        RunError: `outputs.npz` is missing, altered or does not fit the run.
    """
    outputs = runs.read_outputs(folder, run)
    val_logits, val_labels = outputs["val_logits"], outputs["val_labels"]
    temperatures = fit_temperatures(val_logits, val_labels)
    flops = tuple(cost.cumulative_flops for cost in costs)
    points = {
        name: NamedPolicy(
            search_thresholds(val_logits, val_labels, temperatures, flops, drop),
            goal=drop_goal(drop),
        )
        for name, drop in MAX_DROPS.items()
    }
    training, no_training = read_training(folder, run.exits)
    pictures, no_pictures = _pictures(run)
    return Subject(
        kind="run",
        name=run.name,
        about=_about(run),
        classes=run.classes,
        logits=outputs["test_logits"],
        labels=outputs["test_labels"],
        images="test images",
        caution="",
        temperatures=temperatures,
        fitted_on=f"the {len(val_labels):,} validation images",
        costs=tuple(costs),
        unsplit_flops=unsplit_flops,
        points=points,
        judged=JUDGED,
        times=None,
        no_times="A run has no times: mate-edge export makes a bundle of it, mate-edge bench "
        "measures that on a device, and mate-edge report BUNDLE shows both.",
        training=training,
        no_training=no_training,
        pictures=pictures,
        no_pictures=no_pictures,
        provenance=_provenance(folder, run),
    )


def read_training(folder: Path, num_exits: int) -> tuple[Training | None, str]:
    """Read `metrics.csv`; it is shown and nothing rests on it, so damage leaves it out.

    Returns:
        What was logged, or None and the reason.
    """
    path = folder / METRICS
    try:
        data = files.read_bytes(path, files.MAX_JSON_BYTES, RunError)
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        epochs = tuple(int(row["epoch"]) for row in rows)
        if not epochs:
            raise ValueError("no epochs")
        column = partial(_column, rows)
        exits = range(1, num_exits + 1)
        is_mate = "teacher_weight_1_1" in rows[0]
        found = Training(
            epochs=epochs,
            loss=column("loss"),
            lr=column("lr"),
            train_accuracy=tuple(column(f"train_accuracy_{k}") for k in exits),
            val_accuracy=tuple(column(f"val_accuracy_{k}") for k in exits),
            teacher_weights=tuple(
                tuple(column(f"teacher_weight_{i}_{k}") for k in exits) for i in exits if is_mate
            ),
            teacher_accuracy=tuple(column(f"teacher_accuracy_{k}") for k in exits if is_mate),
            kl_primary=tuple(column(f"kl_primary_{k}") for k in exits if is_mate),
        )
    except RunError as error:
        return None, f"The training is not shown: {error}."
    except (ValueError, KeyError, TypeError, UnicodeDecodeError, csv.Error):
        return None, f"The training is not shown: {path} is damaged."
    return found, ""


def _column(rows: Sequence[dict[str, str]], name: str) -> tuple[float, ...]:
    """Return a column's numbers; NaN where an epoch has none."""
    return tuple(float(row.get(name) or math.nan) for row in rows)


def _pictures(run: Run) -> tuple[Any, str]:
    """Return what gives test images by their indices, or None and the reason."""
    try:
        with no_downloads():
            dataset = load_again(run)
    except MateEdgeError as error:
        return None, f"The test images cannot be shown: {error}."
    if dataset is None:
        return None, (
            "The test images cannot be shown: the data set has changed since this run was trained "
            "on it."
        )
    return lambda indices: dataset.test.plain(indices, dataset.preprocessing), ""


def _about(run: Run) -> str:
    method = "MATE (reconstructed)" if run.method == "mate" else run.method
    return (
        f"{run.arch} with {exits_text(run.exits)}, trained with {method} on "
        f"{Path(run.data).name} for {epochs_text(run.recipe.epochs)}"
    )


def _provenance(folder: Path, run: Run) -> tuple[tuple[str, str], ...]:
    recipe, pre = run.recipe, run.preprocessing
    pairs = {
        "run": files.shown(folder),
        "architecture": f"{run.arch}, {run.head} heads, {exits_text(run.exits)}",
        "exits placed": run.exits_at or "at the ends of the stages",
        "weights from": run.weights or "scratch",
        "data": Path(run.data).name,
        "training images": "all" if run.train_images is None else f"{run.train_images:,}",
        "input": f"{pre.channels} x {pre.size} x {pre.size} pixels",
        "method": options_text(run.method, run.method_options),
        "recipe": _recipe_text(recipe),
        "seed": str(run.seed),
        "precision": run.precision,
        "trained": run.created,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "git commit": run.git_commit or "unknown",
        "data's SHA-256": run.images_sha256,
        "weights' SHA-256": run.files.get("model.safetensors", "unknown"),
    }
    return tuple(pairs.items())


def _recipe_text(recipe: Recipe) -> str:
    """Say how long, with which optimiser and rates, and with which variations."""
    drops = " and ".join(f"{100 * milestone:g} %" for milestone in recipe.milestones)
    schedule = f"/ 10 after {drops}" if recipe.schedule == "step" else recipe.schedule
    warm_up = f", {epochs_text(recipe.warm_up)} of warm-up" if recipe.warm_up else ""
    return (
        f"{epochs_text(recipe.epochs)}, batches of {recipe.batch_size}, {recipe.optimizer}, "
        f"momentum {recipe.momentum:g}, learning rate {recipe.lr:g} {schedule}{warm_up}, weight "
        f"decay {recipe.weight_decay:g}, RandAugment {recipe.randaugment}, label smoothing "
        f"{recipe.label_smoothing:g}, MixUp {recipe.mixup:g}"
    )


def options_text(method: str, options: dict[str, Any]) -> str:
    """Return a method and its options: `mate (alpha=1, beta=0.7)`."""
    listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"{method} ({listed})" if listed else method
