"""The plots of a report. To add one: a function, and a line in `PLOTS`.

Each function draws the plots that the figures allow: none when there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mate_edge.report import drawing
from mate_edge.report.class_plots import class_accuracy, class_exits, confusions
from mate_edge.report.drawing import BAD, GOOD, INK, MUTED, PAPER, Plot, plain
from mate_edge.report.figures import DeadlineFigures, Figures
from mate_edge.report.subject import Subject
from mate_edge.report.text import count
from mate_edge.report.training_plots import teacher_weights, teachers, training_curves
from mate_edge.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 10
"""Images below which a share says nothing."""
WIDE_SPAN = 6
"""How many times the shortest deadline the longest may be on an axis of even steps."""
LEGEND_ROW = 17
"""Of an entry in pixels."""
POINT_MARKERS = "*PX^vdh8"


def accuracy_over_flops(subject: Subject, found: Figures) -> list[Plot]:
    """Draw what exits, thresholds and operating points reach for how many FLOPs."""
    if found.num_exits == 1:
        return []
    point, last = found.points[subject.judged], found.exits[-1]
    says = (
        f"{subject.judged} reaches {percent(point.accuracy)} with {count(point.mean_flops)} FLOPs "
        f"an image; the last exit {percent(last.accuracy)} with {count(last.cumulative_flops)}."
    )
    return [
        _over_cost(
            subject,
            found,
            "accuracy-over-flops",
            "Accuracy over FLOPs",
            says,
            "mean MFLOPs of an image (one multiply-add = 1)",
            [exit_.cumulative_flops / 1e6 for exit_ in found.exits],
            [point.mean_flops / 1e6 for point in found.curve],
            {name: point.mean_flops / 1e6 for name, point in found.points.items()},
            None if subject.unsplit_flops is None else subject.unsplit_flops / 1e6,
        )
    ]


def accuracy_over_ms(subject: Subject, found: Figures) -> list[Plot]:
    """Draw the same over the milliseconds of this device, when it was measured."""
    times = subject.times
    if times is None or found.num_exits == 1:
        return []
    point = found.points[subject.judged]
    assert point.mean_ms is not None
    unsplit = "" if times.unsplit_ms is None else f"; without exits it is {times.unsplit_ms:.3g} ms"
    says = (
        f"An image takes {point.mean_ms:.3g} ms at {subject.judged} and {times.exit_ms[-1]:.3g} ms "
        f"to the last exit, from the encoded file to the label{unsplit}."
    )
    return [
        _over_cost(
            subject,
            found,
            "accuracy-over-ms",
            "Accuracy over milliseconds on this device",
            says,
            "mean ms of an image, each exit at its median",
            list(times.exit_ms),
            [point.mean_ms or 0.0 for point in found.curve],
            {name: point.mean_ms or 0.0 for name, point in found.points.items()},
            times.unsplit_ms,
        )
    ]


def _over_cost(
    subject: Subject,
    found: Figures,
    name: str,
    title: str,
    says: str,
    unit: str,
    exits: list[float],
    curve: list[float],
    points: dict[str, float],
    unsplit: float | None,
) -> Plot:
    entries = 1 + len(points) + (unsplit is not None)
    figure, axes = drawing.new_figure(height=drawing.HEIGHT + LEGEND_ROW * (entries - 1) / 2)
    heights = [100 * exit_.accuracy for exit_ in found.exits]
    order = np.argsort(curve)
    axes.plot(
        [curve[i] for i in order],
        [100 * found.curve[i].accuracy for i in order],
        color=MUTED,
        linewidth=1.4,
        label="confidence thresholds",
    )
    for k, (cost, height) in enumerate(zip(exits, heights, strict=True), start=1):
        axes.plot(cost, height, "o", color=drawing.exit_color(k), markersize=6)
        axes.annotate(
            f"exit {k}",
            (cost, height),
            xytext=(-7, -13) if k == len(exits) else (7, -13),
            textcoords="offset points",
            ha="right" if k == len(exits) else "left",
            fontsize=11.5,
            color=drawing.exit_color(k),
        )
    names = drawing.plain_names(list(points), range(1, len(points) + 1))
    for place, (point, cost) in enumerate(points.items()):
        accuracy = found.points[point].accuracy
        axes.plot(
            cost,
            100 * accuracy,
            POINT_MARKERS[place % len(POINT_MARKERS)],
            color=INK,
            markersize=9 if point == subject.judged else 7,
            markerfacecolor=INK if point == subject.judged else PAPER,
            linestyle="none",
            label=f"{names[place]}  {percent(accuracy)}",
        )
    if unsplit is not None:
        axes.plot(unsplit, heights[-1], "s", color=BAD, markersize=6, label="without early exits")
    axes.set(xlabel=unit, ylabel="accuracy, %")
    axes.margins(x=0.08, y=0.14)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return Plot(name, title, says, figure)


def exit_histogram(subject: Subject, found: Figures) -> list[Plot]:
    """Draw where images leave at each operating point."""
    if found.num_exits == 1:
        return []
    names = drawing.plain_names(list(found.points), range(1, len(found.points) + 1))
    shares_of = (point.exit_shares for point in found.points.values())
    named = dict(zip(names, shares_of, strict=True))
    shares = found.points[subject.judged].exit_shares
    says = (
        f"At {subject.judged}, {percent(shares[0], 0)} of the images leave at exit 1 and "
        f"{percent(shares[-1], 0)} go all the way to exit {found.num_exits}."
    )
    return [
        drawing.stacked_bars(
            "exits-by-point", "Where images leave, by operating point", says, named
        )
    ]


def deadline_shares(subject: Subject, found: Figures) -> list[Plot]:
    """Draw which exit answers under which deadline, when no image leaves early."""
    if not found.deadlines:
        return []
    rows = found.deadlines["deepest"]
    figure, axes = drawing.new_figure()
    axes.stackplot(
        [row.max_ms for row in rows],
        [[100 * row.exit_shares[k] for row in rows] for k in range(found.num_exits)],
        colors=[drawing.exit_color(k) for k in range(1, found.num_exits + 1)],
        labels=[f"exit {k}" for k in range(1, found.num_exits + 1)],
    )
    axes.set(xlabel="deadline, ms", ylabel="answered in time, %", ylim=(0, 100))
    _span_deadlines(axes, rows)
    axes.grid(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=found.num_exits,
        columnspacing=1.2, handlelength=0.9,
    )  # fmt: skip
    met = next((row.max_ms for row in rows if row.late <= 0.01), None)
    whole = next((row.max_ms for row in rows if row.exit_shares[-1] >= 0.99), None)
    parts = []
    if met is not None:
        parts.append(f"From {met:.3g} ms on exit 1 answers 99 % of the images in time")
    if whole is not None:
        parts.append(f"from {whole:.3g} ms on the last exit does")
    says = ", and ".join(parts) or "No deadline that was tried is met by 99 % of the images"
    return [Plot("deadline-exits", "Which exit answers under a deadline", f"{says}.", figure)]


def _span_deadlines(axes: Axes, rows: Sequence[DeadlineFigures]) -> None:
    """Let the axis begin and end with the deadlines, in even steps of their logarithm if many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    first, last = rows[0].max_ms, rows[-1].max_ms
    if last > WIDE_SPAN * first:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, place: f"{ms:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(first, last)


def deadline_accuracy(subject: Subject, found: Figures) -> list[Plot]:
    """Draw how many answers are right and in time under which deadline."""
    if not found.deadlines:
        return []
    figure, axes = drawing.new_figure()
    colors = (INK, GOOD)
    for (name, rows), color, line in zip(
        found.deadlines.items(), colors, drawing.LINES, strict=False
    ):
        axes.plot(
            [row.max_ms for row in rows],
            [100 * row.accuracy for row in rows],
            color=color,
            linestyle=line,
            label=plain(name),
        )
    rows = found.deadlines["deepest"]
    reached = [100 * row.accuracy for row in rows]
    lowest = min(100 * exit_.accuracy for exit_ in found.exits)
    # the steep rise to this is what the other plot shows
    bottom = min(lowest - 3 * (max(reached) - lowest), float(np.median(reached))) - 1
    bottom = max(bottom, 0.0)
    axes.set(xlabel="deadline, ms", ylabel="right and in time, %")
    _span_deadlines(axes, rows)
    axes.set_ylim(bottom, max(reached) + 0.12 * (max(reached) - bottom))
    axes.legend(loc="lower right")
    middle = rows[len(rows) // 2]
    says = (
        f"Under {middle.max_ms:.3g} ms, going as deep as the deadline allows gives "
        f"{percent(middle.accuracy)} right answers in time; under {rows[-1].max_ms:.3g} ms "
        f"{percent(rows[-1].accuracy)}. A late answer counts as none."
    )
    return [Plot("deadline-accuracy", "Accuracy under a deadline", says, figure)]


def reliability(subject: Subject, found: Figures) -> list[Plot]:
    """Draw each exit's accuracy over its confidence, before and after the temperature."""
    plots = []
    for name, title, scaled in (
        ("reliability-before", "Reliability as trained", False),
        ("reliability-after", "Reliability after temperature scaling", True),
    ):
        figure, axes = drawing.new_figure()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9)
        errors = []
        for k, exit_ in enumerate(found.exits, start=1):
            bins = exit_.calibrated_bins if scaled else exit_.bins
            bins = tuple(part for part in bins if part.count >= FEW) or bins
            errors.append(exit_.calibrated_ece if scaled else exit_.ece)
            axes.plot(
                [100 * part.confidence for part in bins],
                [100 * part.accuracy for part in bins],
                label=f"exit {k}, error {percent(errors[-1])}",
                **drawing.exit_line(k),
            )
        axes.set(xlabel="confidence, %", ylabel="accuracy, %", xlim=(0, 102), ylim=(0, 102))
        axes.legend(loc="upper left")
        worst = int(np.argmax(errors))
        temperature = f" with T = {found.exits[worst].temperature:.2f}" if scaled else ""
        says = (
            f"Exit {worst + 1} is off the most, by {percent(errors[worst])} on average"
            f"{temperature}; on the diagonal a confidence is what it says. Parts of fewer than "
            f"{FEW} images are left out."
        )
        plots.append(Plot(name, title, says, figure))
    return plots


PLOTS: dict[str, tuple[Callable[[Subject, Figures], list[Plot]], ...]] = {
    "cost": (accuracy_over_flops, accuracy_over_ms),
    "points": (exit_histogram,),
    "deadlines": (deadline_shares, deadline_accuracy),
    "calibration": (reliability,),
    "classes": (class_exits, class_accuracy),
    "confusions": (confusions,),
    "training": (training_curves,),
    "teachers": (teacher_weights, teachers),
}
"""The plots of each part of the page, in its order."""


def draw_all(subject: Subject, found: Figures) -> dict[str, list[Plot]]:
    """Draw every plot that there is something for, by the part of the page."""
    with drawing.style():
        return {
            part: [plot for draw in functions for plot in draw(subject, found)]
            for part, functions in PLOTS.items()
        }
