"""What is said beside the answers, on a terminal or in a log: a file may be called anything."""

from __future__ import annotations

import sys
from contextlib import suppress


def plain(text: str) -> str:
    """Return a name on one line, without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def print_aside(text: str, end: str = "\n") -> None:
    """Print on stderr; where it takes no more, as on a full disk, the answers go on."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)
