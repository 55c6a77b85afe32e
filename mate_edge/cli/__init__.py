"""The command line, one file a command. A command imports its stage only when it is called."""

from __future__ import annotations

from importlib import import_module

from mate_edge.cli.shared import app, main

__all__ = ["app", "main"]

COMMANDS = (  # in the order of --help
    "train",
    "compare",
    "evaluate",
    "profile",
    "export",
    "build",
    "verify",
    "tune",
    "run",
    "serve",
    "bench",
    "doctor",
    "demo",
)

for _command in COMMANDS:
    import_module(f"mate_edge.cli.{_command}")
