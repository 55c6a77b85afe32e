"""Every message that the pages quote is still in the code."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mate_edge.runtime.bench.diagnoses import DIAGNOSES

CHECKOUT = Path(__file__).parents[1]
QUOTING = {"troubleshooting.md": 80, "jetson.md": 14}
"""Pages with tables of messages -> the fewest quotes that there must be."""


@cache
def templates() -> tuple[str, ...]:
    """Return every text of the code, with what is filled in as NUL."""
    return tuple(
        text
        for folder in ("mate_edge", "train", "export", "runtime")
        for file in (CHECKOUT / folder).rglob("*.py")
        for text in texts_of(ast.parse(file.read_text(encoding="utf-8")))
    )


def texts_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(quote: str, texts: Iterable[str] | None = None) -> bool:
    """Whether the pieces of a quote, between its ellipses, stand in this order in one text."""
    pieces = [re.escape(piece) for piece in re.split(r"…", quote) if piece.strip(" ,.:")]
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    return any(pattern.search(text) for text in (templates() if texts is None else texts))


def quotes(page: str) -> list[str]:
    """Return what the page's tables quote in code, in the column of messages."""
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    found = []
    for header, rows in re.findall(r"^(\|[^\n]+\|)\n\|[-|: ]+\|\n((?:\|[^\n]+\|\n)+)", text, re.M):
        columns = [name.strip() for name in header.strip("|").split("|")]
        number = next((i for i, name in enumerate(columns)
                       if re.match(r"(the )?message|line$|found$", name)), None)  # fmt: skip
        if number is None:
            continue
        for row in rows.splitlines():
            cell = row.strip("|").split("|")[number].strip()
            found += re.findall(r"`([^`]+)`", cell)
    return found


@pytest.mark.parametrize("page", QUOTING)
def test_every_message_that_a_page_quotes_is_in_the_code(page: str) -> None:
    found = quotes(page)
    assert len(found) >= QUOTING[page]
    unknown = [quote for quote in found if not is_said(quote)]
    assert not unknown


@pytest.mark.parametrize("look", DIAGNOSES, ids=lambda look: look.__name__)
def test_every_diagnosis_of_bench_is_explained(look: Callable[..., str | None]) -> None:
    said = list(texts_of(ast.parse(textwrap.dedent(inspect.getsource(look)))))
    assert any(is_said(quote, said) for quote in quotes("troubleshooting.md"))


def test_a_message_that_is_not_in_the_code_would_be_found() -> None:
    assert not is_said("… is purple: choose from …")
    assert not is_said("choose from …: unknown … …"), "the pieces must be in order"
    assert is_said("unknown … …: choose from …")
