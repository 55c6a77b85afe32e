"""MATE against its baselines: the experiments of docs/method.md.

    python benchmarks/methods.py [NAME ...] [--tiny-imagenet DIR] [--out FOLDER] [--show]

Each experiment is a `mate-edge compare`: resumable, and shared by as many processes as are started
with the same command (one a core, with OMP_NUM_THREADS=1, is fastest on a CPU). `--show` prints
the tables of what is done and trains nothing; `--split val` prints those of the validation images,
by which options are chosen. Results go to FOLDER/NAME/results.csv.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from machine import describe

from mate_edge.files import write_whole
from mate_edge.names import look_up
from mate_edge.report.comparison import NOTE, difference_table, result_table
from mate_edge.report.text import print_table
from mate_edge.train.compare import parse_methods, parse_seeds, run_comparison, write_results
from mate_edge.train.losses import METHODS
from mate_edge.train.options import Options

ALL = ",".join(METHODS)
TINY_20 = 20
"""The first classes of TinyImageNet's list that the small experiment takes."""


@dataclass(frozen=True)
class Experiment:
    """A comparison; `classes` cuts TinyImageNet to its first so many."""

    methods: str
    seeds: int
    options: Options
    classes: int | None = None


def fashion(arch: str, images: int | None, epochs: int) -> Options:
    return Options(
        data="fashion-mnist", arch=arch, train_images=images, epochs=epochs, validate_every=10
    )


def tiny(arch: str, epochs: int) -> Options:
    return Options(arch=arch, size=32, epochs=epochs, validate_every=10)


EXPERIMENTS = {
    "fashion-5000": Experiment(ALL, 5, fashion("resnet8", 5000, 40)),
    "tiny-20": Experiment(ALL, 3, tiny("resnet8", 40), classes=TINY_20),
    "fashion-20000": Experiment(ALL, 5, fashion("resnet8", 20000, 8)),
    "fashion-5000-resnet20": Experiment("ce,eed,beed,mate", 3, fashion("resnet20", 5000, 40)),
    "fashion-20000-resnet20": Experiment("ce,eed,beed,mate", 3, fashion("resnet20", 20000, 8)),
    "tiny-50": Experiment("ce,beed,mate", 3, tiny("resnet20", 30), classes=50),
    "fashion-full": Experiment("ce,mate", 3, fashion("resnet8", None, 10)),
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--tiny-imagenet", type=Path, help="its folder, with wnids.txt")
    parser.add_argument("--out", type=Path, default=Path("benchmark-methods"))
    parser.add_argument("--methods", help="these instead, such as ce,mate+alpha=2")
    parser.add_argument("--seeds", help="these instead, such as 0,1")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    print(describe("torch", "torchvision", "accelerate", "numpy"))
    for name in arguments.names or EXPERIMENTS:
        experiment = look_up("experiment", name, EXPERIMENTS)
        folder = arguments.out / name
        options = experiment.options
        if not arguments.show:
            if experiment.classes:
                if not arguments.tiny_imagenet:
                    print(f"{name} needs --tiny-imagenet")
                    continue
                cut = arguments.out / f"tiny-imagenet-{experiment.classes}"
                data = cut_classes(arguments.tiny_imagenet.resolve(), cut, experiment.classes)
                options = Options(**{**vars(options), "data": str(data)})
            contenders = parse_methods(arguments.methods or experiment.methods)
            seeds = parse_seeds(arguments.seeds or str(experiment.seeds))
            run_comparison(folder, contenders, seeds, options, say=print)
        rows = write_results(folder) if folder.is_dir() else []
        if rows:
            print_table(f"{name}, {arguments.split}", *result_table(rows, arguments.split))
            if any(row["method"] == "mate" for row in rows):
                print_table("", *difference_table(rows, "mate", arguments.split))
    print(NOTE)


if __name__ == "__main__":
    main()
