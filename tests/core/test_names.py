"""Names in messages."""

from __future__ import annotations

import pytest

from mate_edge.names import some


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (6, "a, b, c and 3 more")],
)
def test_so_many_names_are_listed_and_the_others_counted(count: int, text: str) -> None:
    assert some("abcdef"[:count], 3) == text
