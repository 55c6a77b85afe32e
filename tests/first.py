"""The README's first commands, which leave a run and its bundle for many tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

COMMANDS = ("mate-edge train --data digits --epochs 3", "mate-edge export --target cpu")


def type_first_commands(folder: Path, cli: Any) -> None:
    """Type them in `folder`, whose `state` becomes the device's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATE_EDGE_STATE", str(folder / "state"))
        for line in COMMANDS:
            done = cli(*line.split()[1:], cwd=folder)
            assert done.returncode == 0, done.stderr
