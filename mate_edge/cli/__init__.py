"""The command line, one file a command. A command imports its stage only when it is called."""

from __future__ import annotations

from importlib import import_module

from mate_edge.cli.groups import GROUPS
from mate_edge.cli.shared import app, main

__all__ = ["app", "main"]

for _command in [name for names in GROUPS.values() for name in names]:
    import_module(f"mate_edge.cli.{_command}")
