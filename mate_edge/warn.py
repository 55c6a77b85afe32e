"""Warnings to programs that call the library: at their own line, and of a class of their own."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parent)


class MateEdgeWarning(UserWarning):
    """What a program should know, and can go on without: filter it by this class."""


def warn(message: str) -> None:
    """Warn at the line outside of this package from which it was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, MateEdgeWarning, stacklevel=level)
