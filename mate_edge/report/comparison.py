"""The table and the picture of a comparison: means over seeds, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from statistics import mean, median, stdev
from typing import Any

Row = dict[str, Any]
"""One run: `method`, `seed`, `test_exit_k`, `test_mean`, ... in [0, 1], `step_ms`, `flops_k`."""

REFERENCE = "ce"


@dataclass(frozen=True)
class Difference:
    """How far one method is ahead of another, over the seeds that both have.

    Attributes:
        mean: of the differences, paired by seed.
        half: half the width of the mean's 95 % interval (Student's t); NaN with one seed.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval says which of the two is ahead."""
        return abs(self.mean) > self.half


def paired_difference(
    rows: Sequence[Row], method: str, other: str, figure: str
) -> Difference | None:
    """Return `method` minus `other`; None when they share no seed."""
    from scipy.stats import t as student_t

    ours, theirs = _by_seed(rows, method, figure), _by_seed(rows, other, figure)
    found = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not found:
        return None
    n = len(found)
    half = math.nan
    if n > 1:
        half = float(student_t.ppf(0.975, n - 1)) * stdev(found) / n**0.5
    return Difference(mean(found), half, n)


def relative_step(rows: Sequence[Row], method: str) -> float | None:
    """Return a step's time over that of `ce` with the same seed: the median over the seeds."""
    ours, theirs = _by_seed(rows, method, "step_ms"), _by_seed(rows, REFERENCE, "step_ms")
    ratios = [ours[seed] / theirs[seed] for seed in ours if seed in theirs]
    return median(ratios) if ratios else None


def _by_seed(rows: Sequence[Row], method: str, figure: str) -> dict[int, float]:
    return {int(row["seed"]): float(row[figure]) for row in rows if row["method"] == method}


def methods_of(rows: Sequence[Row]) -> list[str]:
    """Return the methods in the order of the rows."""
    return list({row["method"]: None for row in rows})


def num_exits(rows: Sequence[Row]) -> int:
    """Return K."""
    return sum(name.startswith("test_exit_") for name in rows[0])


def result_table(rows: Sequence[Row], split: str = "test") -> tuple[list[str], list[list[str]]]:
    """Return headers and cells: mean ± standard deviation in %, and the difference to `ce`."""
    exits = [f"exit_{k}" for k in range(1, num_exits(rows) + 1)]
    names = [*exits, "mean", "ensemble", "overthinking", "area"]
    headers = ["method", "seeds", *(name.replace("_", " ") for name in names)]
    headers += [f"mean - {REFERENCE}", f"exit 1 - {REFERENCE}", f"step / {REFERENCE}"]
    cells = []
    for method in methods_of(rows):
        line = [method, str(len(_by_seed(rows, method, "test_mean")))]
        line += [_spread(rows, method, f"{split}_{name}") for name in names]
        for figure in ("mean", "exit_1"):
            same = method == REFERENCE
            found = paired_difference(rows, method, REFERENCE, f"{split}_{figure}")
            line.append(format_difference(None if same else found))
        step = relative_step(rows, method)
        line.append(f"{step:.2f}" if step else "-")
        cells.append(line)
    return headers, cells


def loss_table(rows: Sequence[Row], split: str = "test") -> tuple[list[str], list[list[str]]]:
    """Return headers and cells: each exit's loss on the labels in nats, and their mean.

    The last column is `ce` less the method: above zero the method is better, as elsewhere.
    """
    exits = range(1, num_exits(rows) + 1)
    headers = ["loss, calibrated", *(f"exit {k}" for k in exits), "mean", f"{REFERENCE} - mean"]
    cells = []
    for method in methods_of(rows):
        line = [method]
        figures = [*(f"{split}_loss_{k}" for k in exits), f"{split}_loss"]
        line += [_spread(rows, method, figure, NATS) for figure in figures]
        gain = paired_difference(rows, REFERENCE, method, f"{split}_loss")
        line.append(format_difference(None if method == REFERENCE else gain, NATS))
        cells.append(line)
    return headers, cells


def difference_table(
    rows: Sequence[Row], method: str, split: str = "test"
) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells: `method` minus each other one, in percentage points."""
    figures = [*(f"exit_{k}" for k in range(1, num_exits(rows) + 1)), "mean", "ensemble"]
    headers = [f"{method} minus", *(name.replace("_", " ") for name in figures)]
    cells = [
        [
            other,
            *(
                format_difference(paired_difference(rows, method, other, f"{split}_{figure}"))
                for figure in figures
            ),
        ]
        for other in methods_of(rows)
        if other != method
    ]
    return headers, cells


@dataclass(frozen=True)
class _Unit:
    """What a figure is multiplied by to be shown, and with how many decimals."""

    scale: float
    decimals: int


PERCENT, NATS = _Unit(100, 2), _Unit(1, 4)


def _spread(rows: Sequence[Row], method: str, figure: str, unit: _Unit = PERCENT) -> str:
    found = [unit.scale * value for value in _by_seed(rows, method, figure).values()]
    shown = f"{mean(found):.{unit.decimals}f}"
    return shown + (f" ± {stdev(found):.{unit.decimals}f}" if len(found) > 1 else "")


def format_difference(found: Difference | None, unit: _Unit = PERCENT) -> str:
    """Format a difference with the 95 % interval; a star where it excludes zero."""
    if found is None:
        return "-"
    shown = f"{unit.scale * found.mean:+.{unit.decimals}f}"
    if math.isnan(found.half):
        return shown
    star = " *" if found.excludes_zero else ""
    return f"{shown} ± {unit.scale * found.half:.{unit.decimals}f}{star}"


NOTE = (
    "Accuracies in %, mean ± standard deviation over the seeds; differences in points, paired by "
    "seed, ± half of the 95 % interval, * where it excludes zero. Losses are on the labels, in "
    "nats, with one temperature an exit fitted on the validation images. A step's time is wall "
    "time: true only where nothing else ran beside it."
)


def as_markdown(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(rows: Sequence[Row], title: str, split: str = "test") -> bytes:
    """Draw each method's accuracy over cumulative FLOPs, with the seeds' spread, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    exits = range(1, num_exits(rows) + 1)
    flops = [float(rows[0][f"flops_{k}"]) / 1e6 for k in exits]
    for method in methods_of(rows):
        found = [list(_by_seed(rows, method, f"{split}_exit_{k}").values()) for k in exits]
        heights = [100 * mean(values) for values in found]
        spread = [100 * stdev(values) if len(values) > 1 else 0.0 for values in found]
        axes.errorbar(flops, heights, yerr=spread, marker="o", capsize=3, label=method)
    axes.set(xlabel="cumulative MFLOPs (one multiply-add = 1)", ylabel=f"{split} accuracy %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()
