"""The command line, one file a command. Only the command that is typed is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mate_edge.cli.shared import app

__all__ = ["app", "main"]


def main() -> None:
    """Run what was typed; see `shared.main`."""
    try:
        from mate_edge.cli import shared
        from mate_edge.cli.groups import COMMANDS

        typed = sys.argv[1:2]
        _import_commands(typed if typed and typed[0] in COMMANDS else COMMANDS)
        shared.main()
    except KeyboardInterrupt:  # while the libraries were imported, a tenth of a second
        sys.exit(130)


def _import_commands(names: Iterable[str]) -> None:
    """Let each of these register itself on the application."""
    for name in names:
        import_module(f"mate_edge.cli.{name}")


def __getattr__(name: str) -> Any:
    """Return `app` with all commands: who asks for it wants to look at them."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mate_edge.cli import shared
    from mate_edge.cli.groups import COMMANDS

    _import_commands(COMMANDS)
    return shared.app
