"""Compare training methods: each with each seed, paired by seed, resumable.

A comparison is a folder of run folders, `METHOD-seedS`. What is finished is never trained again, so
an interrupted comparison goes on where it stopped, more seeds can be added later, and several
processes may share the work: each takes runs that no other is at.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from filelock import FileLock, Timeout

from mate_edge import files
from mate_edge.decide.curves import area_under_accuracy, overthinking
from mate_edge.errors import UsageError
from mate_edge.report import comparison
from mate_edge.report.comparison import Row
from mate_edge.runs import OptionValue, Run, read_outputs, read_run
from mate_edge.train.evaluate import exit_accuracy
from mate_edge.train.losses import METHODS, complete_options
from mate_edge.train.options import Options, check_options
from mate_edge.train.start import run_training
from mate_edge.train.state import read_metrics

COMPARISONS = Path("comparisons")
RESULTS = "results.csv"


@dataclass(frozen=True)
class Contender:
    """A method with options of its own; `label` is how the user wrote it: `mate+alpha=2`."""

    label: str
    method: str
    options: dict[str, OptionValue] = field(default_factory=dict)


def parse_methods(text: str) -> tuple[Contender, ...]:
    """Return the contenders of a list such as `ce,mate,mate+alpha=2+ramp=80`.

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
        UsageError: neither, or a seed twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and "," not in text:
        numbers = tuple(range(numbers[0]))
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise UsageError(f"--seeds takes a number, or a list such as 0,1,2, not {text!r}")
    return numbers


def default_folder(options: Options) -> Path:
    """Return the folder that a comparison with these options goes on in."""
    parts = (Path(options.data or "cifar100").name, options.arch or "default")
    return COMPARISONS / re.sub(r"[^\w.-]+", "-", "-".join(parts))


def run_comparison(
    folder: Path,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    options: Options,
    workers: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> int:
    """Train what is missing in `folder`, then write `results.csv`.

    Args:
        folder: of the comparison; made when it does not exist.
        contenders: one run each with each seed, seed by seed, so that what is there can be paired.
        seeds: of the runs.
        options: of all runs; `method`, `method_options` and `seed` are set here.
        workers: as `run_training` takes them.
        say: told which run begins.

    Returns:
        How many runs other processes are at.

    Raises:
        UsageError: several processes were launched to train one run together.
        MateEdgeError: as `run_training`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            "compare trains each run in one process: start it once for each device instead, with "
            "the same --out, and each takes its share of the runs"
        )
    files.make_folder(folder)
    busy = 0
    for seed in seeds:
        for contender in contenders:
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
                        run_training(mine, own, own.exists(), workers)
            except Timeout:
                busy += 1
            write_results(folder)
    return busy


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
    for path in sorted(folder.glob("*-seed*/run.json")):
        run = read_run(path.parent)
        if run.finished:
            rows.append(summarize(path.parent, run))
    order = list(METHODS)
    rows.sort(key=lambda row: (row["seed"], order.index(row["method"].split("+")[0])))
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list({name: None for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
        files.write_whole(folder / RESULTS, text.getvalue().encode())
    return rows


def write_report(
    folder: Path, contenders: Sequence[Contender], seeds: Sequence[int]
) -> list[tuple[list[str], list[list[str]]]]:
    """Write `table.md` and `comparison.png` of the contenders' finished runs; return the tables."""
    order = [contender.label for contender in contenders]
    rows = [row for row in write_results(folder) if row["method"] in order and row["seed"] in seeds]
    if not rows:
        return []
    rows.sort(key=lambda row: order.index(row["method"]))
    tables = [comparison.result_table(rows)]
    if len(order) > 1:
        tables.append(comparison.difference_table(rows, order[-1]))
    text = "\n".join(comparison.as_markdown(*table) for table in tables)
    files.write_whole(folder / "table.md", f"{text}\n{comparison.NOTE}\n".encode())
    files.write_whole(folder / "comparison.png", comparison.draw(rows, folder.name))
    return tables


def summarize(folder: Path, run: Run) -> Row:
    """Count what a comparison shows of one finished run; accuracies in [0, 1]."""
    assert run.results is not None
    outputs = read_outputs(folder, run)
    row: Row = {
        "method": folder.name.rpartition("-seed")[0],
        "seed": run.seed,
        "options": " ".join(f"{name}={value}" for name, value in run.method_options.items()),
    }
    for split in ("test", "val"):
        logits, labels = outputs[f"{split}_logits"], outputs[f"{split}_labels"]
        accuracies, ensemble = exit_accuracy(logits, labels)
        row |= {f"{split}_exit_{k}": a for k, a in enumerate(accuracies, start=1)}
        row |= {
            f"{split}_mean": mean(accuracies),
            f"{split}_ensemble": ensemble,
            f"{split}_overthinking": overthinking(logits, labels),
            f"{split}_area": area_under_accuracy(run.results.cumulative_flops, accuracies),
        }
    speeds = [float(epoch["images_per_s"]) for epoch in read_metrics(folder, run.recipe.epochs)]
    row["step_ms"] = 1000 * run.recipe.batch_size / median(speeds)
    row |= {f"flops_{k}": f for k, f in enumerate(run.results.cumulative_flops, start=1)}
    return row
