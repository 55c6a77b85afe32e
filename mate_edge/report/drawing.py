"""From a matplotlib figure to a picture: inline SVG that follows the page's theme, SVG, or PNG.

Figures are drawn in the colours of the light theme. Inline, each of these becomes a CSS variable
of the page, so one drawing serves light and dark; text takes the page's font.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72
"""Of an inch: one pixel of the SVG at its own size."""
WIDTH, HEIGHT = 380, 290
"""Of a plot, in pixels: what fits beside another on a laptop, and alone on a phone."""
ROW = 23
"""Of a bar, likewise."""
PNG_DPI = 2 * POINTS

PAPER, INK, MUTED, GRID = "#ffffff", "#1b2733", "#566472", "#d9dfe5"
GOOD, BAD = "#19766c", "#b3401f"
EXITS = ("#0d7068", "#2161a9", "#6a41b8", "#a83262", "#8a5208", "#4c5a68")
"""Shallow to deep. Each carries white text; its counterpart in the dark theme, dark text."""

DARK = {
    PAPER: "#161c22",
    INK: "#e6ebf0",
    MUTED: "#a3b0bc",
    GRID: "#333d47",
    GOOD: "#52c7b8",
    BAD: "#f5936e",
    EXITS[0]: "#4cc9bb",
    EXITS[1]: "#7db7f4",
    EXITS[2]: "#b89df5",
    EXITS[3]: "#f28cb3",
    EXITS[4]: "#e9b06a",
    EXITS[5]: "#aab6c2",
}
"""Each colour's counterpart in the dark theme."""

NAMES = {
    PAPER: "paper",
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    GOOD: "good",
    BAD: "bad",
    **{color: f"exit-{k}" for k, color in enumerate(EXITS, start=1)},
}
"""Each colour's CSS variable, without the dashes."""

MARKERS = "osD^vPX*"
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mate-edge",
    "text.parse_math": False,  # a class may be called $
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        name: of its file, and what its ids begin with.
        title: a few words.
        says: what it shows, with the figures that matter, in a sentence.
        figure: of matplotlib.
    """

    name: str
    title: str
    says: str
    figure: Figure


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the style of the reports, without touching anybody else's."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure, `height` in pixels, and its axes; call it within `style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / POINTS, height / POINTS), layout="constrained")
    return figure, figure.subplots()


def exit_color(k: int) -> str:
    """Return the colour of exit k, from 1."""
    return EXITS[(k - 1) % len(EXITS)]


def exit_line(k: int) -> dict[str, Any]:
    """Return how the line of exit k is drawn: never told apart by its colour alone."""
    return {
        "color": exit_color(k),
        "marker": MARKERS[(k - 1) % len(MARKERS)],
        "linestyle": LINES[(k - 1) % len(LINES)],
    }


def stacked_bars(name: str, title: str, says: str, shares: dict[str, tuple[float, ...]]) -> Plot:
    """Draw each row's shares of the exits as a bar, the first on top; call it within `style`."""
    figure, axes = new_figure(height=78 + ROW * len(shares))
    num_exits = len(next(iter(shares.values())))
    places = np.arange(len(shares))
    lefts = np.zeros(len(shares))
    for k in range(1, num_exits + 1):
        widths = np.asarray([100 * row[k - 1] for row in shares.values()])
        axes.barh(
            places,
            widths,
            left=lefts,
            height=0.76,
            color=exit_color(k),
            edgecolor=PAPER,
            linewidth=0.6,
            label=f"exit {k}",
        )
        for place, (left, width) in enumerate(zip(lefts, widths, strict=True)):
            if width >= 9:
                axes.text(left + width / 2, place, f"{width:.0f}", color=PAPER, ha="center",
                          va="center", fontsize=11)  # fmt: skip
        lefts = lefts + widths
    axes.set_yticks(places, list(shares), color=INK)
    axes.set(xlabel="share of images, %", xlim=(0, 100), ylim=(len(shares) - 0.5, -0.5))
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=num_exits,
        columnspacing=1.2, handlelength=0.9,
    )  # fmt: skip
    return Plot(name, title, says, figure)


def plain(text: str, most: int = 16) -> str:
    """Return a name as it fits into a plot: one line of characters that XML allows."""
    kept = "".join(character if character.isprintable() else " " for character in text).strip()
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def plain_names(texts: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return names as they fit into a plot; cut ones that would be equal get their numbers."""
    cut = [plain(text) for text in texts]
    return [
        name if cut.count(name) == 1 else f"{plain(name, 10)} #{number}"
        for name, number in zip(cut, numbers, strict=True)
    ]


def to_png(plot: Plot) -> bytes:
    """Return a plot as PNG, on the light theme's paper."""
    buffer = io.BytesIO()
    with style():
        plot.figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor=PAPER)
    return buffer.getvalue()


def to_svg(plot: Plot) -> bytes:
    """Return a plot as an SVG file of its own, on the light theme's paper."""
    root = _read_svg(plot, PAPER)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _own_font(element.get("style", ""), "system-ui, sans-serif"))
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


def to_inline(plot: Plot) -> str:
    """Return a plot as SVG to stand in a page, its colours CSS variables of the page."""
    root = _read_svg(plot, "none")
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _themed(_own_font(element.get("style", ""), "inherit")))
    return ElementTree.tostring(root, encoding="unicode")


def _read_svg(plot: Plot, background: str) -> ElementTree.Element:
    """Draw a plot, and make it a good neighbour: ids of its own, a title for who cannot see it."""
    buffer = io.BytesIO()
    with style():
        plot.figure.savefig(buffer, format="svg", dpi=POINTS, facecolor=background,
                            metadata={"Date": None, "Creator": None})  # fmt: skip
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib's own
    for name in ("metadata", "defs"):
        for child in root.findall(f"{{{SVG}}}{name}"):
            if name == "metadata" or not len(child) or child.find(f"{{{SVG}}}style") is not None:
                root.remove(child)
    _own_ids(root, plot.name)
    _shorten(root)
    label, description = f"{plot.name}-title", f"{plot.name}-says"
    root.set("role", "img")
    root.set("aria-labelledby", f"{label} {description}")
    for tag, ident, words in (("desc", description, plot.says), ("title", label, plot.title)):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": ident})
        element.text = "".join(c if c.isprintable() else " " for c in words)
        root.insert(0, element)
    return root


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Begin the ids that something refers to with the plot's name; remove the others."""
    links = (f"{{{XLINK}}}href", "href")
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used |= set(re.findall(r"url\(#([^)]+)\)", value))
        used |= {element.get(link, "").lstrip("#") for link in links}
    for element in root.iter():
        if "id" in element.attrib:
            ident = element.attrib.pop("id")
            if ident in used:
                element.set("id", f"{name}-{ident}")
        for key, value in element.attrib.items():
            if key in links and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _own_font(css: str, family: str) -> str:
    """Name another font family; older matplotlib writes all of `font:`, newer its parts."""
    css = re.sub(r"font: ((?:\w+ )*?)([\d.]+px)[^;]*", _font_parts, css)
    return re.sub(r"font-family: [^;]*", f"font-family: {family}", css)


def _font_parts(found: re.Match[str]) -> str:
    weight = "font-weight: 700; " if "bold" in found[1] or "700" in found[1] else ""
    return f"{weight}font-size: {found[2]}; font-family: sans-serif"


def _themed(css: str) -> str:
    """Replace the light theme's colours by the page's variables."""
    return re.sub(
        r"#[0-9a-f]{6}",
        lambda found: f"var(--{NAMES[found[0]]})" if found[0] in NAMES else found[0],
        css,
    )


def _shorten(root: ElementTree.Element) -> None:
    """Round coordinates to hundredths of a pixel, and drop what draws nothing."""
    for element in root.iter():
        for key in ("d", "x", "y", "transform", "width", "height"):
            if key in element.attrib:
                element.set(key, re.sub(r"-?\d+\.\d{3,}", _hundredths, element.attrib[key]))
        for child in list(element):
            child.tail = None
            if child.tag == f"{{{SVG}}}g" and not len(child):
                element.remove(child)
        if len(element):
            element.text = None


def _hundredths(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
