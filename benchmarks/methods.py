"""MATE against its baselines: the experiments of docs/method.md.

    python benchmarks/methods.py [NAME ...] [--tiny-imagenet DIR] [--out FOLDER] [--show]

Each experiment is a `mate-edge compare`: resumable, and shared by as many processes as are started
with the same command (one a core, with OMP_NUM_THREADS=1, is fastest on a CPU). `--show` prints
the tables of what is done and trains nothing; `--split val` prints those of the validation images,
by which options are chosen.

A finished run is a row of `benchmarks/results/NAME.csv`, with the machine that trained it, and is
not trained again as long as its options are the method's: hours of training can be taken in parts,
on several machines. To repeat them all, give an empty folder as `--results`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from machine import describe

from mate_edge.errors import UsageError
from mate_edge.files import make_folder, unused, write_csv, write_whole
from mate_edge.names import look_up
from mate_edge.report.comparison import NOTE, Row, difference_table, loss_table, result_table
from mate_edge.report.text import print_table
from mate_edge.runs import read_run
from mate_edge.train.compare import (
    Contender,
    parse_methods,
    parse_seeds,
    run_comparison,
    write_results,
)
from mate_edge.train.heads import DEFAULT_HEAD
from mate_edge.train.losses import METHODS, complete_options
from mate_edge.train.options import Options, check_options

ALL = ",".join(METHODS)
EARLIER = {"mate": "mate+mu=1+nu=1+alpha=0.3+attention=4", "okddip": "okddip+ramp=2"}
"""What two methods were when `sepconv` was the default head; `okddip`'s ramp was of 80 epochs.

`byot`'s last exit had nine tenths of its labels' weight then.
"""
RESULTS = Path(__file__).parent / "results"
TINY_20 = 20
"""The first classes of TinyImageNet's list that the small experiment takes."""


@dataclass(frozen=True)
class Experiment:
    """A comparison; `classes` cuts TinyImageNet to its first so many."""

    methods: str
    seeds: int
    options: Options
    classes: int | None = None


def fashion(arch: str, images: int | None, epochs: int, head: str | None = None) -> Options:
    return Options(
        data="fashion-mnist",
        arch=arch,
        head=head,
        train_images=images,
        epochs=epochs,
        precision="fp32",
        validate_every=10,
    )


def tiny(arch: str, epochs: int, head: str | None = None) -> Options:
    return Options(
        arch=arch, head=head, size=32, epochs=epochs, precision="fp32", validate_every=10
    )


FEW = "ce,eed,beed,mate"
"""The methods that the larger network is trained with."""


def earlier(methods: str) -> str:
    """Return a list of methods as they were, see `EARLIER`."""
    return ",".join(EARLIER.get(method, method) for method in methods.split(","))


EXPERIMENTS = {
    "fashion-5000": Experiment(ALL, 5, fashion("resnet8", 5000, 40)),
    "tiny-20": Experiment(ALL, 3, tiny("resnet8", 40), classes=TINY_20),
    "fashion-20000": Experiment(ALL, 5, fashion("resnet8", 20000, 8)),
    "fashion-5000-resnet20": Experiment(FEW, 3, fashion("resnet20", 5000, 40)),
    "fashion-20000-resnet20": Experiment(FEW, 3, fashion("resnet20", 20000, 8)),
    # tiny-20 has as many steps, and its validation images say that `dbt` is the best baseline
    "tiny-50": Experiment("ce,dbt,mate", 3, tiny("resnet20", 15), classes=50),
    "fashion-full": Experiment("ce,mate", 3, fashion("resnet8", None, 10)),
    "cifar10-5000": Experiment(
        ALL, 3, dataclasses.replace(fashion("resnet8", 5000, 40), data="cifar10")
    ),
    "fashion-5000-sepconv": Experiment(earlier(ALL), 5, fashion("resnet8", 5000, 40, "sepconv")),
    "tiny-20-sepconv": Experiment(
        earlier("ce,mate"), 3, tiny("resnet8", 40, "sepconv"), classes=TINY_20
    ),
    "fashion-20000-sepconv": Experiment(
        earlier(ALL).replace("ramp=2", "ramp=10"), 5, fashion("resnet8", 20000, 8, "sepconv")
    ),
    "fashion-5000-resnet20-sepconv": Experiment(
        earlier(FEW), 3, fashion("resnet20", 5000, 40, "sepconv")
    ),
}


def cut_classes(source: Path, folder: Path, classes: int) -> Path:
    """Make `folder` a TinyImageNet of the first `classes` of `source`, by links; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (source / "wnids.txt").read_text(encoding="utf-8").split()[:classes]
    write_whole(folder / "wnids.txt", ("\n".join(names) + "\n").encode())
    for name in ("words.txt", "train", "val"):
        with suppress(FileExistsError):  # another process of the same experiment was first
            (folder / name).symlink_to(os.path.relpath(source / name, folder))
    return folder


def read_rows(path: Path) -> dict[tuple[str, int], Row]:
    """Return the rows that are kept, by contender and seed."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["method"], int(row["seed"])): row for row in csv.DictReader(file)}


def setup_of(experiment: Experiment) -> str:
    """Return what all runs of an experiment share, as a row says it."""
    own = dataclasses.asdict(experiment.options) | {"classes": experiment.classes}
    return " ".join(
        f"{name}={value}"
        for name, value in sorted(own.items())
        if value not in (None, {}) and name not in ("head", "validate_every")
    )


def is_current(row: Row, contender: Contender, experiment: Experiment) -> bool:
    """Say whether a row was trained with the options, head and setup that a contender has now."""

    def plain(value: object) -> object:
        with suppress(ValueError):
            return float(str(value))  # run.json does not tell 0 from 0.0
        return str(value)

    pairs = (pair.partition("=")[::2] for pair in row["options"].split())
    now = complete_options(contender.method, contender.options)
    kept = {name: plain(value) for name, value in pairs}
    return (
        row["head"] == head_of(experiment)
        and row["setup"] == setup_of(experiment)
        and kept == {name: plain(value) for name, value in now.items()}
    )


def head_of(experiment: Experiment) -> str:
    """Return the head of all its runs."""
    return experiment.options.head or DEFAULT_HEAD


def missing_of(
    path: Path, contenders: Sequence[Contender], seed: int, experiment: Experiment
) -> list[Contender]:
    """Return the contenders that have no row of this seed yet."""
    rows = read_rows(path)
    return [
        contender
        for contender in contenders
        if (contender.label, seed) not in rows
        or not is_current(rows[contender.label, seed], contender, experiment)
    ]


def set_aside(folder: Path, contender: Contender, seed: int) -> None:
    """Move a run of other options out of the way of the one that is to be trained."""
    own = folder / f"{contender.label}-seed{seed}"
    if (own / "run.json").exists():
        run, wanted = read_run(own), complete_options(contender.method, contender.options)
        if run.method_options != wanted:
            own.rename(unused(own.with_name(f"{own.name}-stale")))


def is_of(folder: Path, experiment: Experiment) -> bool:
    """Say whether a run was trained as the experiment says today; what it does not say is free."""
    options = dataclasses.replace(experiment.options, validate_every=None)  # changes no weight
    try:
        check_options(folder, read_run(folder), options)
    except UsageError:
        return False
    return True


def keep_rows(
    path: Path, contenders: Sequence[Contender], folder: Path | None, experiment: Experiment
) -> list[Row]:
    """Add what is finished in `folder`, if any, to the kept rows; return the contenders' own."""
    machine = describe("torch", "torchvision", "accelerate", "numpy")
    own = {contender.label: contender for contender in contenders}
    fresh = []
    if folder is not None and folder.is_dir():
        fresh = [
            row
            for row in write_results(folder)
            if is_of(folder / f"{row['method']}-seed{row['seed']}", experiment)
        ]
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = read_rows(path)
        for row in fresh:
            key = row["method"], row["seed"]
            kept = rows.get(key)
            if kept is None or (key[0] in own and not is_current(kept, own[key[0]], experiment)):
                rows[key] = row | {"setup": setup_of(experiment), "machine": machine}
        if fresh:
            write_csv(path, [rows[key] for key in sorted(rows)])
    found = [
        row
        for (label, _), row in rows.items()
        if label in own and is_current(row, own[label], experiment)
    ]
    order = list(own)
    return sorted(found, key=lambda row: (order.index(row["method"]), int(row["seed"])))


def without_step(rows: Sequence[Row], split: str) -> tuple[list[str], list[list[str]]]:
    """Return the table of results without what a step takes: machines and hours differ."""
    headers, body = result_table(rows, split)
    return headers[:-1], [line[:-1] for line in body]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--tiny-imagenet", type=Path, help="its folder, with wnids.txt")
    parser.add_argument("--out", type=Path, default=Path("benchmark-methods"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--methods", help="these instead, such as ce,mate+alpha=2")
    parser.add_argument("--seeds", help="these instead, such as 0,1")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    print(describe("torch", "torchvision", "accelerate", "numpy"))
    for name in arguments.names or EXPERIMENTS:
        experiment = look_up("experiment", name, EXPERIMENTS)
        folder, path = arguments.out / name, arguments.results / f"{name}.csv"
        contenders = parse_methods(arguments.methods or experiment.methods)
        if not arguments.show:
            options = experiment.options
            if experiment.classes:
                if not arguments.tiny_imagenet:
                    print(f"{name} needs --tiny-imagenet")
                    continue
                cut = arguments.out / f"tiny-imagenet-{experiment.classes}"
                data = cut_classes(arguments.tiny_imagenet.resolve(), cut, experiment.classes)
                options = dataclasses.replace(options, data=str(data))
            for seed in parse_seeds(arguments.seeds or str(experiment.seeds)):
                missing = missing_of(path, contenders, seed, experiment)
                for contender in missing:
                    set_aside(folder, contender, seed)
                run_comparison(folder, missing, [seed], options, say=print)
        # what is only shown is not written: the folder may be of another machine
        rows = keep_rows(path, contenders, None if arguments.show else folder, experiment)
        if arguments.seeds:
            shown = parse_seeds(arguments.seeds)
            rows = [row for row in rows if int(row["seed"]) in shown]
        if rows:
            print_table(f"{name}, {arguments.split}", *without_step(rows, arguments.split))
            print_table("", *loss_table(rows, arguments.split))
            labels = {row["method"] for row in rows}
            mate = next((one.label for one in contenders if one.method == "mate"), None)
            if mate in labels:
                print_table("", *difference_table(rows, mate, arguments.split))
    print(NOTE)


if __name__ == "__main__":
    main()
