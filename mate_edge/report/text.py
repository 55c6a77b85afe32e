"""Tables on the terminal, for the commands that work for seconds or hours (`run` prints its own)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mate_edge.runs import Run


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    width = console.measure(table).maximum
    console.print(table, width=max(width, console.width), soft_wrap=True)


def percent(share: float) -> str:
    """Format a share in [0, 1]: `91.3`."""
    return f"{100 * share:.2f}"


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
    title = f"{run.arch} on {Path(run.data).name}, {method}, {run.recipe.epochs} epochs, top-1 %"
    print_table(title, ["", "validation", "test"], rows)
    print(f"run: {folder}")
