"""What the default operating points do on test images: of many trained networks, not of one.

    python benchmarks/operating_points.py RUN ... [--out FILE.csv]

Takes finished runs, such as those in the folders of `benchmarks/methods.py`. Of each the thresholds
are chosen on its validation images as `mate-edge export` chooses them, and counted on its test
images; beside them those of the same search without the standard error that export adds to the
drop. Means and standard deviations over the runs. Nothing is timed here.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from mate_edge import files
from mate_edge.decide.simulate import simulate
from mate_edge.decide.temperature import fit_temperatures
from mate_edge.decide.tune import MAX_DROPS, ROUNDING, Search, Taken
from mate_edge.report.text import print_table
from mate_edge.runs import read_finished_run, read_flops, read_outputs


def without_error(search: Search, max_drop: float) -> list[float]:
    """Return the cheapest thresholds whose drop on the samples themselves is within `max_drop`."""
    behind = search.right[:, -1:].astype(np.int8) - search.right

    def badness(taken: Taken) -> float:
        return search.cost(taken) if behind[taken].mean() <= max_drop + ROUNDING else math.inf

    return search.best(badness)


def figures_of(folder: Path) -> list[dict[str, object]]:
    """Return a row of each operating point of a run, chosen either way."""
    run = read_finished_run(folder)
    outputs: dict[str, Any] = read_outputs(folder, run)
    flops = read_flops(folder, run)
    logits, labels = outputs["val_logits"].astype(np.float32), outputs["val_labels"]
    tested, test_labels = outputs["test_logits"].astype(np.float32), outputs["test_labels"]
    temperatures = fit_temperatures(logits, labels)
    search = Search(logits, labels, temperatures, flops)
    last = tested[:, -1].argmax(-1) == test_labels
    rows = []
    for name, max_drop in MAX_DROPS.items():
        for error, thresholds in (
            ("added", search.cheapest(max_drop)),
            ("not added", without_error(search, max_drop)),
        ):
            outcome = simulate(search.policy(thresholds), tested)
            rows.append(
                {
                    "run": folder.name,
                    "point": name,
                    "standard error": error,
                    "allowed": 100 * max_drop,
                    "below last": 100 * (last.mean() - outcome.accuracy(test_labels)),
                    "flops / last": outcome.mean_cost(flops) / flops[-1],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("benchmark-operating-points.csv"))
    arguments = parser.parse_args()
    rows = [row for folder in arguments.runs for row in figures_of(folder)]
    files.write_csv(arguments.out, rows)
    print(describe("numpy"))
    cells = []
    for name in MAX_DROPS:
        for error in ("added", "not added"):
            own = [row for row in rows if (row["point"], row["standard error"]) == (name, error)]
            drops = np.array([row["below last"] for row in own], np.float64)
            flops = np.array([row["flops / last"] for row in own], np.float64)
            deviation = f" ± {drops.std(ddof=1):.2f}" if len(drops) > 1 else ""
            late = int((drops > float(str(own[0]["allowed"])) + 100 * ROUNDING).sum())
            cells.append(
                [name, error, f"{drops.mean():.2f}{deviation}", f"{late} of {len(own)}",
                 f"{flops.mean():.3f}"]
            )  # fmt: skip
    headers = ["", "standard error", "points below", "more than allowed", "FLOPs / last exit"]
    print_table(f"{len(arguments.runs)} runs, test images", headers, cells)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
