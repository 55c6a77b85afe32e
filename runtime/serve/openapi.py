"""The OpenAPI document, and a page of it that needs nothing from the internet."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any


@cache
def document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    return {}


def to_html() -> bytes:
    """Return it for people."""
    return escape("").encode()
