"""The report in Markdown: tables, and links to pictures beside it."""

from __future__ import annotations

import html
import re

from mate_edge.report.content import Content
from mate_edge.report.drawing import to_png
from mate_edge.report.gallery import Row, Tile
from mate_edge.report.page import environment
from mate_edge.report.words import percent

SUFFIXES = {"image/png": "png", "image/jpeg": "jpg"}


def to_markdown(content: Content) -> dict[str, bytes]:
    """Return the files of the report by their paths: `report.md`, `pictures/...`."""
    made = environment(escape=False)
    made.filters |= {"text": escape, "cell": escape}
    page = made.get_template("report.md").render(content=content, file_of=file_of, percent=percent)
    found = {"report.md": page.encode("utf-8", "replace")}
    found |= {f"pictures/{plot.name}.png": to_png(plot) for plot in content.plots}
    for part in content.parts:
        for row in part.rows:
            for number, tile in enumerate(row.tiles, start=1):
                found[f"pictures/{file_of(row, number, tile)}"] = tile.picture
    return found


def file_of(row: Row, number: int, tile: Tile) -> str:
    """Return the file of a row's picture; numbers count from 1."""
    return f"{row.name}-{number:02}.{SUFFIXES[tile.kind]}"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, one line."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", html.escape(plain, quote=False))
