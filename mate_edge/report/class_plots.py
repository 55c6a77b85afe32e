"""A report's plots of classes: where each leaves, how right each exit is, what is confused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mate_edge.report import drawing
from mate_edge.report.drawing import BAD, GOOD, GRID, INK, Plot, plain
from mate_edge.report.figures import Figures
from mate_edge.report.subject import Subject
from mate_edge.report.words import percent, worst_confusion

MOST_CLASSES = 30
"""More are not all drawn: those that leave first and last are."""
MOST_CONFUSED = 20
"""A confusion matrix of more classes could not be read."""
WRITTEN = 12
"""Up to so many classes its cells have figures."""


def class_exits(subject: Subject, found: Figures) -> list[Plot]:
    """Draw where the images of each class leave."""
    chosen = _shown_classes(subject, found)
    if found.num_exits == 1 or not chosen:
        return []
    shares = (found.classes[c].exit_shares for c in chosen)
    named = dict(zip(_class_names(subject, chosen), shares, strict=True))
    first, last = chosen[0], chosen[-1]
    says = (
        f"At {subject.judged}, {percent(found.classes[first].exit_shares[0], 0)} of "
        f"{subject.classes[first]} leave at exit 1, and "
        f"{percent(found.classes[last].exit_shares[0], 0)} of {subject.classes[last]}."
    )
    if len(chosen) < len(found.classes):
        says += f" Shown: the {len(chosen)} classes that leave first and last."
    return [drawing.stacked_bars("exits-by-class", "Where images leave, by class", says, named)]


def class_accuracy(subject: Subject, found: Figures) -> list[Plot]:
    """Draw how right each exit is about each class."""
    chosen = _shown_classes(subject, found)
    if not chosen:
        return []
    figure, axes = drawing.new_figure(height=78 + drawing.ROW * len(chosen))
    places = np.arange(len(chosen))
    rows = [[100 * share for share in found.classes[c].exit_accuracy] for c in chosen]
    axes.hlines(places, [min(row) for row in rows], [max(row) for row in rows], color=GRID,
                linewidth=3)  # fmt: skip
    for k in range(found.num_exits, 0, -1):
        line = drawing.exit_line(k) | {"linestyle": "none"}
        axes.plot([row[k - 1] for row in rows], places, label=f"exit {k}", **line)
    axes.set_yticks(places, _class_names(subject, chosen), color=INK)
    axes.set(xlabel="accuracy, %", ylim=(len(chosen) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=found.num_exits,
        columnspacing=1.2, handlelength=0.9,
    )  # fmt: skip
    shown = [c for c, figures in enumerate(found.classes) if figures.images]
    gains = {
        c: found.classes[c].exit_accuracy[-1] - found.classes[c].exit_accuracy[0] for c in shown
    }
    hardest = min(shown, key=lambda c: found.classes[c].exit_accuracy[-1])
    most = max(shown, key=lambda c: gains[c])
    says = (
        f"The hardest class is {subject.classes[hardest]}: the last exit gets "
        f"{percent(found.classes[hardest].exit_accuracy[-1], 0)} of its images right."
    )
    if gains[most] > 0:
        says += (
            f" Depth helps {subject.classes[most]} the most, by {100 * gains[most]:.1f} points "
            "from the first exit to the last."
        )
    return [Plot("accuracy-by-class", "Accuracy by class and exit", says, figure)]


def confusions(subject: Subject, found: Figures) -> list[Plot]:
    """Draw a confusion matrix for each exit, as shares of the true class."""
    num_classes = len(subject.classes)
    if num_classes > MOST_CONFUSED:
        return []
    return [_confusion(subject, found, k) for k in range(1, found.num_exits + 1)]


def _confusion(subject: Subject, found: Figures, k: int) -> Plot:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    counts = found.confusions[k - 1]
    n = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = shares - np.diag(np.diag(shares))
    most = max(float(wrong.max()), 1e-9)
    figure, axes = drawing.new_figure(height=370)
    cells, colors = [], []
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = float(shares[row, column])
        cells.append([(column + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))])
        if row == column:
            colors.append(to_rgba(GOOD, 0.06 + 0.34 * share))
        else:
            colors.append(to_rgba(BAD, 0.06 + 0.4 * math.sqrt(share / most)))
        if n <= WRITTEN and share >= 0.0095:
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center",
                      fontsize=11)  # fmt: skip
    axes.add_collection(PolyCollection(cells, facecolors=colors, edgecolors="none"))
    ticks = np.arange(n) + 0.5
    names = [plain(name, 12) for name in subject.classes]
    axes.set_xticks(ticks, names, rotation=90, color=INK)
    axes.set_yticks(ticks, names, color=INK)
    axes.set(xlabel=f"answered by exit {k}", ylabel="true class, %", xlim=(0, n), ylim=(n, 0))
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    says = worst_confusion(subject, found, k)
    return Plot(f"confusion-{k}", f"Confusion at exit {k}", says, figure)


def _shown_classes(subject: Subject, found: Figures) -> list[int]:
    """Return the classes that have images, from the first to leave to the last; at most 30."""
    depth = np.arange(1, found.num_exits + 1)
    seen = [c for c, figures in enumerate(found.classes) if figures.images]
    seen.sort(key=lambda c: float(np.dot(depth, found.classes[c].exit_shares)))
    half = MOST_CLASSES // 2
    return seen if len(seen) <= MOST_CLASSES else [*seen[:half], *seen[-half:]]


def _class_names(subject: Subject, chosen: Sequence[int]) -> list[str]:
    return drawing.plain_names([subject.classes[c] for c in chosen], chosen)
