"""Tables on the terminal, for the commands that take their time (`run` prints its own)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mate_edge.bundle import Manifest
from mate_edge.runs import Run

if TYPE_CHECKING:
    from mate_edge.export.profile import Profile


class _Stdout(Console):
    """Rich's own ends the process with exit code 1, which means something else here."""

    def on_broken_pipe(self) -> None:
        """Go on with the error: whoever read the table has read enough."""
        raise


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console = _Stdout()
    # a terminal that is too narrow breaks the lines itself; nothing is ever cut off
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    if title:
        console.print(escape(title), style="bold", highlight=False, soft_wrap=True)
    console.print(table)


def percent(share: float) -> str:
    """Format a share in [0, 1]: `91.3`."""
    return f"{100 * share:.2f}"


def epochs_text(number: int) -> str:
    """Return `1 epoch` or `3 epochs`."""
    return f"{number} epoch{'s' if number != 1 else ''}"


def count(number: float) -> str:
    """Format FLOPs, parameters or bytes with three digits: `12.4 M`."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g} {unit}".strip()
        number /= 1000
    return f"{number:.4g} G"


def print_results(folder: Path, run: Run) -> None:
    """Print the accuracy of each exit and of the ensemble, validation and test."""
    assert run.results is not None
    results = run.results
    rows = [
        [f"exit {k}", percent(val), percent(test)]
        for k, (val, test) in enumerate(
            zip(results.val_accuracy, results.test_accuracy, strict=True), start=1
        )
    ]
    rows.append(["ensemble", percent(results.val_ensemble), percent(results.test_ensemble)])
    method = {"mate": "MATE (reconstructed from the published abstract)"}.get(
        run.method, run.method
    )
    trained = f"{method}, {epochs_text(run.recipe.epochs)}"
    title = f"{run.arch} on {Path(run.data).name}, {trained}, top-1 %"
    print_table(title, ["", "validation", "test"], rows)
    print(f"run: {folder}")


def print_profile(title: str, profile: Profile, accuracies: Sequence[float] | None) -> None:
    """Print what each exit costs, and its test accuracy where it is known."""
    rows = []
    for k, cost in enumerate(profile.exits, start=1):
        shape = "x".join(str(side) for side in cost.border_shape)
        rows.append(
            [
                f"exit {k}",
                count(cost.flops),
                count(cost.head_flops),
                count(cost.cumulative_flops),
                f"{cost.cumulative_flops / profile.unsplit_flops:.3f}",
                count(cost.cumulative_parameters),
                f"{shape}  {count(cost.border_bytes)}B" if shape else "-",
                percent(accuracies[k - 1]) if accuracies else "-",
            ]
        )
    rows.append(["unsplit", count(profile.unsplit_flops), "-", count(profile.unsplit_flops),
                 "1.000", count(profile.unsplit_parameters), "-", "-"])  # fmt: skip
    headers = ["", "segment", "its head", "cumulative", "of unsplit", "parameters",
               "border", "test %"]  # fmt: skip
    print_table(title, headers, rows)
    print("FLOPs as fvcore counts them: one multiply-add = 1; at batch 1.")
    if profile.uncounted:
        missing = ", ".join(f"{op} x{n}" for op, n in sorted(profile.uncounted.items()))
        print(f"Not counted by fvcore, so in none of the figures: {missing}.")
    print(f"Ceiling of the speed-up (unsplit / segment 1): {profile.ceiling:.2f}")


def print_precision(manifest: Manifest) -> None:
    """Print what a lower precision cost each exit; nothing when the precision is fp32."""
    rows = [
        [
            f"exit {k}",
            percent(exit_.fp32_val_accuracy),
            percent(exit_.val_accuracy),
            f"{100 * (exit_.val_accuracy - exit_.fp32_val_accuracy):+.2f}",
        ]
        for k, exit_ in enumerate(manifest.exits, start=1)
        if exit_.fp32_val_accuracy is not None
    ]
    if rows:
        headers = ["", "fp32 %", f"{manifest.precision} %", "points"]
        print_table("accuracy on the validation images, before and after", headers, rows)


def print_operating_points(manifest: Manifest) -> None:
    """Print the default operating points as they did on the validation images."""
    rows = [
        [
            name,
            percent(point.val_accuracy),
            f"{manifest.unsplit_flops / point.val_mean_flops:.2f}x",
            " ".join(f"{100 * share:.0f}" for share in point.val_exit_shares),
        ]
        for name, point in manifest.operating_points.items()
    ]
    headers = ["operating point", "accuracy %", "fewer FLOPs", "exits' shares %"]
    print_table("on the validation images (no guarantee for others)", headers, rows)
