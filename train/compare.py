"""Compare training methods: each with each seed, paired by seed, resumable.

A comparison is a folder of run folders, `METHOD-seedS`. What is finished is never trained again, so
an interrupted comparison goes on where it stopped, more seeds can be added later, and several
processes may share the work: each takes runs that no other is at.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from mate_edge import files
from mate_edge.decide.curves import area_under_accuracy, label_loss, overthinking
from mate_edge.decide.temperature import fit_temperatures
from mate_edge.errors import RunError, TrainingStopped, UsageError
from mate_edge.names import look_up
from mate_edge.report import comparison
from mate_edge.report.comparison import Row
from mate_edge.runs import OptionValue, Run, read_flops, read_outputs, read_run
from mate_edge.train.data import DATASETS
from mate_edge.train.evaluate import exit_accuracy
from mate_edge.train.losses import METHODS, complete_options, make_method
from mate_edge.train.new import DATA
from mate_edge.train.options import Options, check_options
from mate_edge.train.start import run_training
from mate_edge.train.state import read_metrics

COMPARISONS = Path("comparisons")
RESULTS = "results.csv"
OPTIONS = "options.json"
MOST_SEEDS = 1000
MAY_DIFFER = {
    *("name", "method", "method_options", "seed", "created", "versions", "git_commit"),
    *("results", "files", "data", "weights", "validate_every"),
}
"""Of `run.json`: what runs of one comparison need not share, or what other fields say better."""
SPLITS = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Contender:
    """A method with options of its own; `label` is how the user wrote it: `mate+alpha=2`."""

    label: str
    method: str
    options: dict[str, OptionValue] = field(default_factory=dict)


def parse_methods(text: str) -> tuple[Contender, ...]:
    """Return the contenders of a list such as `ce,mate,mate+alpha=2+ramp=0.2`.

    Raises:
        UsageError: an unknown method or option, or one contender twice.
    """
    contenders = []
    for label in (part.strip() for part in text.split(",")):
        method, *pairs = label.split("+")
        options: dict[str, OptionValue] = dict(pair.partition("=")[::2] for pair in pairs)
        complete_options(method, options)
        contenders.append(Contender(label, method, options))
    if len({contender.label for contender in contenders}) < len(contenders):
        raise UsageError(f"--methods {text} names one twice")
    return tuple(contenders)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a number, `3` for 0, 1 and 2, or of a list such as `0,4,7`.

    Raises:
        UsageError: neither, a seed twice, or more than `MOST_SEEDS`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and "," not in text:
        numbers = tuple(range(min(numbers[0], MOST_SEEDS + 1)))
    if len(numbers) > MOST_SEEDS:
        raise UsageError(f"--seeds {text} is more than {MOST_SEEDS}")
    if twice := [seed for seed in numbers if numbers.count(seed) > 1]:
        raise UsageError(f"--seeds {text} names {twice[0]} twice")
    if not numbers or min(numbers) < 0:
        raise UsageError(f"--seeds takes a number, or a list such as 0,1,2, not {text!r}")
    return numbers


def default_folder(options: Options) -> Path:
    """Return the folder that a comparison with these options goes on in."""
    parts = (Path(options.data or DATA).name, options.arch or "default")
    return COMPARISONS / re.sub(r"[^\w.-]+", "-", "-".join(parts))


def run_comparison(
    folder: Path,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    options: Options,
    workers: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[int, int]:
    """Train what is missing in `folder`, and write `results.csv` after each run.

    Args:
        folder: of the comparison; made when it does not exist.
        contenders: one run each with each seed, seed by seed, so that what is there can be paired.
        seeds: of the runs.
        options: of all runs; `method`, `method_options` and `seed` are set here.
        workers: as `run_training` takes them.
        say: told which run begins.

    Returns:
        How many runs other processes are at, and how many failed.

    Raises:
        UsageError: other options than the comparison was begun with, or several processes were
            launched to train one run together, or `folder` is a run itself.
        MateEdgeError: as `run_training`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            "compare trains each run in one process: start it once for each device instead, with "
            "the same --out, and each takes its share of the runs"
        )
    if (folder / files.RUN).exists():
        raise UsageError(
            f"{folder} is a run, and a comparison has runs in it: choose another --out"
        )
    files.make_folder(folder)
    _agree(folder, options)
    _check_alike(folder)

    def check(own: Path, run: Run) -> None:
        _check_method(run, contenders)
        _agree(folder, options, own)
        _check_alike(folder)

    busy = failed = 0
    for seed, contender in product(seeds, contenders):
        own = folder / f"{contender.label}-seed{seed}"
        mine = dataclasses.replace(
            options,
            method=contender.method,
            method_options=complete_options(contender.method, contender.options),
            seed=seed,
        )
        try:
            with FileLock(folder / f".{own.name}.lock", timeout=0):
                if not (own.exists() and is_finished(own, mine)):
                    say(f"{contender.label}, seed {seed}")
                    _train(mine, own, workers, partial(check, own))
                    _write_results_so_far(folder, say)
        except Timeout:
            busy += 1
        except RunError as error:  # the loss of one is no reason to give up the others
            failed += 1
            say(f"{own.name} failed: {error}")
        except TrainingStopped as stopped:
            raise TrainingStopped(
                f"stopped in {own}: its state is saved, type the same again to go on",
                stopped.exit_code - 128,
            ) from None
    return busy, failed


def _write_results_so_far(folder: Path, say: Callable[[str], object]) -> None:
    """Write `results.csv`; a damaged run is no failure of the one that is just finished."""
    try:
        write_results(folder)
    except RunError as error:
        say(f"{folder / RESULTS} is as it was: {error}")


def _train(
    options: Options, own: Path, workers: int | None, check: Callable[[Run], object]
) -> None:
    """Train a run to its end; one that is refused before its first step leaves nothing."""
    resume, checked = own.exists(), False

    def remember(run: Run) -> None:
        nonlocal checked
        check(run)
        checked = True

    try:
        run_training(options, own, resume, workers, remember)
    except UsageError:
        if not (resume or checked):
            shutil.rmtree(own, ignore_errors=True)
        raise


def _agree(folder: Path, options: Options, new: Path | None = None) -> None:
    """Keep the options of a comparison with it, and refuse others: its runs must be comparable.

    Those with which no run began, such as mistaken ones, bind nobody; nor do those of another
    process that is about to begin one, where `new` is the first that did.
    """
    path = folder / OPTIONS
    given = _resolved(msgspec.to_builtins(options, enc_hook=str))
    files.check_text(value for value in given.values() if isinstance(value, str))
    with FileLock(folder / ".options.lock"):
        if not (path.exists() and any(own != new for own, _ in _runs(folder))):
            files.write_json(path, given)
            return
    data = files.read_bytes(path, files.MAX_JSON_BYTES, RunError)
    try:
        begun = _resolved(msgspec.json.decode(data, type=dict[str, Any]))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): choose another --out") from None
    for name, value in given.items():
        if begun.get(name) != value:
            found, wanted = ("the default" if v is None else v for v in (begun.get(name), value))
            raise UsageError(
                f"{folder} was begun with {name} {found}, not {wanted}: give the same options "
                "again, or choose another --out"
            )


def _resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with whole paths, so that one place has one spelling."""
    paths = {
        name: str(Path(given).resolve())
        for name in ("data", "weights", "classes")
        if (given := options.get(name)) is not None and given not in DATASETS
    }
    return options | paths


def is_finished(folder: Path, options: Options) -> bool:
    """Say whether a run is done, after checking that it was trained with these options.

    Raises:
        RunError: `run.json` is damaged.
        UsageError: an option differs.
    """
    run = read_run(folder)
    check_options(folder, run, options)
    return run.finished


def write_results(folder: Path) -> list[Row]:
    """Write `results.csv`, one row for each finished run in `folder`, and return the rows."""
    rows = []
    for own, run in _runs(folder):
        if run.finished:
            rows.append(summarize(own, run))
    order = {name: number for number, name in enumerate(METHODS)}
    rows.sort(key=lambda row: (row["seed"], order.get(row["method"].split("+")[0], len(order))))
    if rows:
        files.write_csv(folder / RESULTS, rows)
    return rows


def _runs(folder: Path) -> Iterator[tuple[Path, Run]]:
    """Yield the runs of a comparison: folders named as `run_comparison` names them, no others."""
    for path in sorted(folder.glob("*-seed*/run.json")):
        own = path.parent
        if own.name.startswith("."):  # one that another process is about to publish
            continue
        run = read_run(own)
        if own.name.endswith(f"-seed{run.seed}"):
            yield own, run


def _check_alike(folder: Path) -> None:
    """Refuse to compare runs that differ in more than method and seed.

    Raises:
        UsageError: with what differs.
    """
    first: tuple[Path, dict[str, Any]] | None = None
    for own, run in _runs(folder):
        fields = {n: v for n, v in msgspec.structs.asdict(run).items() if n not in MAY_DIFFER}
        if first is None:
            first = own, fields
        for name, value in fields.items():
            expected = first[1][name]
            if name == "structure" and None in (value, expected):
                continue  # a run of an earlier version
            if value != expected:
                raise UsageError(
                    f"{first[0]} and {own} cannot be compared: {name} is {expected} there and "
                    f"{value} here; move one of them away, or choose another --out"
                )


def _check_method(run: Run, contenders: Sequence[Contender]) -> None:
    """Refuse contenders that cannot be trained with a run's exits, before hours of the others.

    Raises:
        UsageError: with the method.
    """
    for contender in contenders:
        try:
            make_method(contender.method, run.exits, len(run.classes), contender.options)
        except UsageError as error:
            raise UsageError(f"{contender.label}: {error}") from None


def _step_ms(folder: Path, run: Run) -> float:
    """Return the median time of a training step; no number where `metrics.csv` is damaged."""
    try:
        rows = read_metrics(folder, run.recipe.epochs)
        return 1000 * run.recipe.batch_size / median(float(row["images_per_s"]) for row in rows)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RunError):
        return math.nan


def write_report(
    folder: Path, contenders: Sequence[Contender], seeds: Sequence[int], split: str = "test"
) -> list[tuple[list[str], list[list[str]]]]:
    """Write `table.md` and `comparison.png` of the contenders' finished runs; return the tables.

    Args:
        folder: of the comparison.
        contenders: in the order of the rows; the last one is held against each of the others.
        seeds: those to count.
        split: `test`, or `val` for whoever still chooses.

    Raises:
        UsageError: an unknown split.
    """
    look_up("--split", split, SPLITS)
    order = [contender.label for contender in contenders]
    rows = [row for row in write_results(folder) if row["method"] in order and row["seed"] in seeds]
    if not rows:
        return []
    rows.sort(key=lambda row: order.index(row["method"]))
    tables = [comparison.result_table(rows, split), comparison.loss_table(rows, split)]
    if len(order) > 1:
        tables.append(comparison.difference_table(rows, order[-1], split))
    title = f"{folder.name}, {SPLITS[split]} split\n\n"
    text = title + "\n".join(comparison.as_markdown(*table) for table in tables)
    files.write_whole(folder / "table.md", f"{text}\n{comparison.NOTE}\n".encode())
    files.write_whole(folder / "comparison.png", comparison.draw(rows, folder.name, split))
    return tables


def summarize(folder: Path, run: Run) -> Row:
    """Count what a comparison shows of one finished run; accuracies in [0, 1], losses in nats."""
    flops = read_flops(folder, run)
    outputs = read_outputs(folder, run)
    row: Row = {
        "method": folder.name.rpartition("-seed")[0],
        "seed": run.seed,
        "options": " ".join(f"{name}={value}" for name, value in run.method_options.items()),
        "head": run.head,
    }
    fitted = fit_temperatures(outputs["val_logits"], outputs["val_labels"])
    for split in ("test", "val"):
        logits, labels = outputs[f"{split}_logits"], outputs[f"{split}_labels"]
        losses = [label_loss(logits[:, k], labels, t) for k, t in enumerate(fitted)]
        row |= {f"{split}_loss_{k}": loss for k, loss in enumerate(losses, start=1)}
        row |= {f"{split}_loss": mean(losses)}
        accuracies, ensemble = exit_accuracy(logits, labels)
        row |= {f"{split}_exit_{k}": a for k, a in enumerate(accuracies, start=1)}
        row |= {
            f"{split}_mean": mean(accuracies),
            f"{split}_ensemble": ensemble,
            f"{split}_overthinking": overthinking(logits, labels),
            f"{split}_area": area_under_accuracy(flops, accuracies),
        }
    row["step_ms"] = _step_ms(folder, run)
    row |= {f"flops_{k}": f for k, f in enumerate(flops, start=1)}
    return row
