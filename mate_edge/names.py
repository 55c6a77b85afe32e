"""Names in messages: a wrong one is answered with the valid ones and the nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from mate_edge.errors import UsageError

T = TypeVar("T")


def look_up(kind: str, name: str, table: Mapping[str, T], otherwise: str = "") -> T:
    """Return `table[name]`.

    Args:
        kind: of the name, in the message.
        name: that is looked for.
        table: of the valid ones.
        otherwise: what else could have been given, to end the message's list.

    Raises:
        UsageError: no such name; the message lists the valid ones and the nearest.
    """
    try:
        return table[name]
    except (KeyError, TypeError):  # a list cannot even be looked for
        from difflib import get_close_matches

        near = get_close_matches(str(name), table, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"unknown {kind} {name!r}: choose from {', '.join(table)}{otherwise}.{hint}"
        ) from None


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
