"""What MATE's teachers become: the last epoch of finished trainings, of which nothing is repeated.

    python benchmarks/teachers.py [NAME ...] [--out FOLDER]

NAME is an experiment of `methods.py`, whose runs lie in `--out`. Each number is the mean over the
seeds of what `metrics.csv` holds, of the training images.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import mean

from mate_edge.report.text import print_table

HEADERS = [
    "experiment",
    "seeds",
    "j",
    "row j of A",
    "exit j, %",
    "teacher j, %",
    "teacher K, %",
    "KL to teacher j",
    "to teacher K",
]


def last_epoch(file: Path) -> dict[str, float]:
    """Return the last row of a run's metrics, without what was not measured in that epoch."""
    with file.open(newline="", encoding="utf-8") as lines:
        *_, last = csv.DictReader(lines)
    return {name: float(value) for name, value in last.items() if value}


def lines_of(name: str, folder: Path) -> list[list[str]]:
    """Return a line of the table for each exit of an experiment's `mate` runs."""
    finished = sorted(folder.glob("mate-seed*/outputs.npz"))
    runs = [last_epoch(file.with_name("metrics.csv")) for file in finished]
    if not runs:
        return []
    usual = {figure: mean(run[figure] for run in runs) for figure in runs[0]}
    exits = range(1, sum(figure.startswith("kl_last_") for figure in usual) + 1)
    return [
        [
            name,
            str(len(runs)),
            str(j),
            " ".join(f"{usual[f'teacher_weight_{j}_{k}']:.2f}" for k in exits),
            *(
                f"{100 * usual[figure]:.1f}"
                for figure in (
                    f"train_accuracy_{j}",
                    f"teacher_accuracy_{j}",
                    f"teacher_accuracy_{exits[-1]}",
                )
            ),
            *(f"{usual[figure]:.3f}" for figure in (f"kl_primary_{j}", f"kl_last_{j}")),
        ]
        for j in exits
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all that are in --out")
    parser.add_argument("--out", type=Path, default=Path("benchmark-methods"))
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.out.glob("*") if path.is_dir())
    names = arguments.names or [folder.name for folder in folders]
    lines = [line for name in names for line in lines_of(name, arguments.out / name)]
    if not lines:
        parser.error(f"{arguments.out} holds no finished run of mate of these experiments")
    print_table("the last epoch, training images", HEADERS, lines)


if __name__ == "__main__":
    main()
