"""Names on a terminal: a file may be called anything."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return a name on one line, without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
