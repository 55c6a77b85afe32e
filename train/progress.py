"""What training shows: a bar with loss, accuracy per exit, images/s and time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """One bar over all steps, and a line an epoch; silent on all processes but the main one."""

    def __init__(self, steps: int, done: int, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not self.console.is_terminal,  # a log gets the lines, not the bar
        )
        self.steps_left, self.steps_here = steps - done, 0
        self.task = self.bar.add_task("training", total=steps, completed=done, state="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def step(self, state: str) -> None:
        """Advance by a step and show `state`."""
        self.steps_left -= 1
        self.steps_here += 1
        self.bar.update(self.task, advance=1, state=state)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, highlight=False, soft_wrap=True)


def percentages(shares: Sequence[float]) -> str:
    """Format accuracies in [0, 1] as percentages, one an exit: `61.2 70.4 75.0`."""
    return " ".join(f"{100 * share:.1f}" for share in shares)


def duration(seconds: float) -> str:
    """Format a time: `42 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
