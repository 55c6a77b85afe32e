"""The commands in the order in which a newcomer needs them, and how `--help` shows them.

To add one: a file beside this one that registers a function on `app`, and its name here.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor"),
    "Train a network": ("train", "compare", "evaluate", "profile"),
    "Make a bundle of it": ("export", "tune"),
    "Run the bundle on a device": ("build", "verify", "run", "serve", "bench"),
    "See what it is worth": ("report",),
}

COMMANDS = tuple(name for names in GROUPS.values() for name in names)

HELP = """Train multi-exit image classifiers and run them under a deadline.

Three commands go the whole way, typed in this order:

\b
  mate-edge train --data digits --epochs 3
  mate-edge export --target cpu
  mate-edge run --max-ms 5 image.jpg

Each takes what the one before wrote, and explains itself with --help.
"""


class PipeBroke(Exception):  # noqa: N818 - the news, not the error
    """Stands for a BrokenPipeError, which click would end with exit code 1 as if it was refused."""


class InOrder(TyperGroup):
    """Lists the commands under the headings of `GROUPS`, with their summaries whole."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeBroke from error

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of `GROUPS`."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group."""
        names = self.list_commands(ctx)
        formatter.width = max(formatter.width, 60)
        column = max(map(len, names))
        for title, members in GROUPS.items():
            with formatter.section(title):
                rows = [(name.ljust(column), self.summary(name)) for name in members]
                formatter.write_dl(rows)

    def summary(self, name: str) -> str:
        """Return the first paragraph of a command's help."""
        return (self.commands[name].help or "").partition("\n\n")[0].rstrip(".")
