"""What is said beside the answers, on a terminal or in a log: a file may be called anything."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def plain(text: str) -> str:
    """Return a name on one line, without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def print_aside(text: str, end: str = "\n") -> None:
    """Print on stderr; where it takes no more, as on a full disk, the answers go on."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        # what stderr has kept must not fail again when it is flushed at the end
        with suppress(OSError, ValueError):  # one that a test or a program put in its place
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
