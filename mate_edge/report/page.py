"""The report as one HTML file: no script, nothing from a network, light and dark."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from mate_edge.report import drawing
from mate_edge.report.content import Content
from mate_edge.report.gallery import Tile
from mate_edge.report.words import percent

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
GROUND = {"light": "#f5f7f9", "dark": "#0f1419"}
"""What the cards lie on."""


def to_html(content: Content) -> bytes:
    """Return the page; whatever a class or a path is called stays text."""
    from markupsafe import Markup

    light = {name: color for color, name in drawing.NAMES.items()}
    dark = {name: drawing.DARK[color] for color, name in drawing.NAMES.items()}
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    page = environment(escape=True).get_template("report.html")
    text = page.render(
        content=content,
        light={**light, "ground": GROUND["light"]},
        dark={**dark, "ground": GROUND["dark"]},
        css=Markup(css),  # noqa: S704 - a file of this package
        inline=lambda plot: Markup(drawing.to_inline(plot)),  # noqa: S704 - escaped by ElementTree
        data_uri=data_uri,
        percent=percent,
    )
    return text.encode("utf-8", "replace")


def environment(escape: bool) -> Environment:
    """Return what reads the templates of this package; a name that it lacks is a bug."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,  # noqa: S701 - Markdown has an escaping of its own
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def data_uri(tile: Tile) -> str:
    """Return a picture as a URI that holds it."""
    return f"data:{tile.kind};base64,{base64.b64encode(tile.picture).decode()}"
