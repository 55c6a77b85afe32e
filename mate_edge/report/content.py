"""What a report consists of, whatever it is written as: words, tables, plots and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mate_edge import __version__
from mate_edge.report.class_plots import MOST_CONFUSED, WRITTEN
from mate_edge.report.drawing import Plot, plain
from mate_edge.report.figures import Figures, count_figures
from mate_edge.report.gallery import Row, choose_rows
from mate_edge.report.plots import draw_all
from mate_edge.report.subject import Subject
from mate_edge.report.text import count
from mate_edge.report.tuned import threshold
from mate_edge.report.words import Verdict, capital, confusion_rows, give_verdict, percent
from mate_edge.times import now_utc

LONGEST_NAME, LONGEST_TEXT = 60, 600
"""Characters of a name, and of a value of the provenance: a manifest may hold anything."""


@dataclass(frozen=True)
class Table:
    """A table; the first `words` columns are text, the others are figures."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class Part:
    """A part of the report: a heading, sentences, tables, plots and rows of pictures.

    Attributes:
        name: its anchor.
        title: its heading.
        says: sentences, each a paragraph.
        tables: to be shown.
        plots: likewise.
        folded: tables that are long, shown on demand.
        rows: of pictures.
        dense: whether the plots have much in them and need room.
    """

    name: str
    title: str
    says: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    folded: tuple[Table, ...] = ()
    rows: tuple[Row, ...] = ()
    dense: bool = False

    @property
    def thirds(self) -> bool:
        """Whether three plots stand beside each other on a wide screen, not two."""
        return len(self.plots) % 3 == 0 and not self.dense


@dataclass(frozen=True)
class Content:
    """A whole report.

    Attributes:
        kind: `run` or `bundle`.
        name: its.
        about: what it is, in a few words.
        verdict: to be read first.
        lead: the plot to stand beside it; None: there is one exit only.
        parts: in their order; the first ones matter most.
        provenance: names and values.
        created: when, ISO 8601 in UTC.
        version: of mate-edge.
    """

    kind: str
    name: str
    about: str
    verdict: Verdict
    lead: Plot | None
    parts: tuple[Part, ...]
    provenance: tuple[tuple[str, str], ...]
    created: str
    version: str = __version__

    @property
    def plots(self) -> tuple[Plot, ...]:
        """All of them, in their order."""
        lead = () if self.lead is None else (self.lead,)
        return lead + tuple(plot for part in self.parts for plot in part.plots)


def make_content(subject: Subject) -> tuple[Content, Figures]:
    """Count, draw and choose everything.

    Returns:
        The report, and the figures that it rests on.

    Raises:
        ImageError: one of the pictures cannot be read.
    """
    subject = readable(subject)
    found = count_figures(subject)
    plots = {part: tuple(drawn) for part, drawn in draw_all(subject, found).items()}
    content = Content(
        kind=subject.kind,
        name=subject.name,
        about=subject.about,
        verdict=give_verdict(subject, found),
        lead=plots["cost"][-1] if plots["cost"] else None,
        parts=(
            _points(subject, found, plots["cost"][:-1] + plots["points"]),
            _exits(subject, found),
            _device(subject, plots["deadlines"]),
            _calibration(subject, found, plots["calibration"]),
            _classes(subject, found, plots["classes"]),
            _confusions(subject, found, plots["confusions"]),
            _images(subject),
            _training(subject, plots["training"]),
            *_teachers(subject, plots["teachers"]),
        ),
        provenance=subject.provenance,
        created=now_utc(),
    )
    return content, found


def readable(subject: Subject) -> Subject:
    """Return the subject with names that can be shown: one line each, and not without end."""
    return replace(
        subject,
        name=plain(subject.name, LONGEST_NAME),
        about=plain(subject.about, LONGEST_TEXT),
        classes=tuple(plain(name, LONGEST_NAME) for name in subject.classes),
        provenance=tuple(
            (plain(name, LONGEST_NAME), plain(value, LONGEST_TEXT))
            for name, value in subject.provenance
        ),
    )


def figure(share: float) -> str:
    """Format a share as a figure of a table, in %: `91.34`."""
    return f"{100 * share:.2f}"


def _exits(subject: Subject, found: Figures) -> Part:
    times, costs = subject.times, subject.costs
    columns: dict[str, list[str]] = {
        "": [f"exit {k}" for k in range(1, found.num_exits + 1)],
        "accuracy %": [f"{figure(e.accuracy)} ± {figure(e.reach)}" for e in found.exits],
        "FLOPs": [count(exit_.cumulative_flops) for exit_ in found.exits],
        "of the whole": [f"{e.cumulative_flops / found.whole_flops:.3f}" for e in found.exits],
    }
    if times is not None:
        columns["median ms"] = [f"{ms:.3f}" for ms in times.exit_ms]
    columns["parameters"] = [_or_none(cost.parameters) for cost in costs]
    columns["border"] = [_or_none(cost.border_bytes, "B") for cost in costs]
    if any(cost.fp32_accuracy is not None for cost in costs):
        columns["fp32, validation %"] = [_share(cost.fp32_accuracy) for cost in costs]
    if any(cost.test_accuracy is not None for cost in costs):
        columns["fp32, test %"] = [_share(cost.test_accuracy) for cost in costs]
    rows = list(zip(*columns.values(), strict=True))
    if subject.unsplit_flops is not None and found.num_exits > 1:
        whole = dict.fromkeys(columns, "-") | {
            "": "without early exits",
            "FLOPs": count(subject.unsplit_flops),
            "of the whole": "1.000",
        }
        if times is not None and times.unsplit_ms is not None:
            whole["median ms"] = f"{times.unsplit_ms:.3f}"
        rows.append(tuple(whole.values()))
    says = [
        "Each exit, were it to answer all images. FLOPs are as fvcore counts them (one "
        "multiply-add = 1), at batch 1 and with all segments before the exit; the border is what "
        "a segment hands to the next one; ± reaches the farther limit of the 95\u00a0% interval."
    ]
    if found.num_exits > 1:
        says.append(
            f"The mean of all exits' logits gets {percent(found.ensemble, 2)}; "
            f"{percent(found.overthinking, 2)} of the images are right at some exit and wrong at "
            "the last one."
        )
    return Part("exits", "Exits", tuple(says), (Table("", tuple(columns), tuple(rows)),))


def _or_none(number: int | None, unit: str = "") -> str:
    return f"{count(number)}{unit}" if number else "-"


def _share(share: float | None) -> str:
    return "-" if share is None else figure(share)


def _points(subject: Subject, found: Figures, plots: tuple[Plot, ...]) -> Part:
    if found.num_exits == 1:
        return Part("points", "Operating points", ("With one exit there is nothing to choose.",))
    headers = ["", "accuracy %", "points to the last exit", "mean FLOPs", "times fewer"]
    headers += ["mean ms"] * (subject.times is not None)
    headers += ["lost %", "mended %", "leaves from"]
    rows = []
    for name, point in found.points.items():
        thresholds = getattr(subject.points[name].policy, "thresholds", ())
        row = [
            name,
            figure(point.accuracy),
            f"{_signed(-100 * point.drop)} ± {100 * point.drop_half:.2f}",
            count(point.mean_flops),
            f"{found.whole_flops / point.mean_flops:.2f}",
        ]
        row += [] if point.mean_ms is None else [f"{point.mean_ms:.3f}"]
        row += [figure(point.lost), figure(point.mended)]
        row.append("  ".join(threshold(value) for value in thresholds) or "-")
        rows.append(tuple(row))
    goals = [f"{name}: {point.goal}" for name, point in subject.points.items() if point.goal]
    rule = (
        "Each is a policy: leave an exit when its score is at least the exit's threshold. Lost are "
        "the images that are wrong where the last exit is right, mended those that are right where "
        "it is wrong."
    )
    says = [rule, *([f"Chosen as {'; '.join(goals)}."] if goals else [])]
    says += [
        f"{name} is guaranteed: {point.promise}."
        for name, point in subject.points.items()
        if point.promise
    ]
    return Part(
        "points", "Operating points", tuple(says), (Table("", tuple(headers), tuple(rows)),), plots
    )


def _signed(points: float) -> str:
    """Format points with their sign; what rounds to nothing has none."""
    return f"{points:+.2f}" if abs(points) >= 0.005 else "0.00"


def _device(subject: Subject, plots: tuple[Plot, ...]) -> Part:
    times = subject.times
    if times is None:
        without = f"Costs are stated in FLOPs only. {subject.no_times}"
        return Part("device", "Milliseconds and deadlines", (without,))
    bench = "; ".join(times.verdict)
    says = (
        f"{times.device}; {times.measured}.",
        f"mate-edge bench says: {bench}."
        if bench
        else "The segments were measured here, and the network without early exits was not: "
        "mate-edge bench compares them.",
        *(f"{capital(line)}." for line in times.diagnoses),
        "The curves replay the runtime's own rule on the rounds that were measured: after each "
        "exit it goes on only if the next one still fits, from the encoded image to the label.",
    )
    return Part("device", "Milliseconds and deadlines", says, plots=plots)


def _calibration(subject: Subject, found: Figures, plots: tuple[Plot, ...]) -> Part:
    says = (
        "Each exit's logits are divided by one number, its temperature, fitted on "
        f"{subject.fitted_on}. The error is the mean gap between confidence and accuracy (ECE, 15 "
        "bins).",
    )
    rows = tuple(
        (f"exit {k}", f"{e.temperature:.3f}", figure(e.ece), figure(e.calibrated_ece))
        for k, e in enumerate(found.exits, start=1)
    )
    table = Table("", ("", "temperature", "error before %", "error after %"), rows)
    return Part("calibration", "Calibration", says, (table,), plots)


def _classes(subject: Subject, found: Figures, plots: tuple[Plot, ...]) -> Part:
    exits = range(1, found.num_exits + 1)
    headers = ("", "images", f"{subject.judged} %", *(f"exit {k} %" for k in exits),
               *(f"leave at {k} %" for k in exits))  # fmt: skip
    rows = tuple(
        (
            subject.classes[c],
            f"{figures.images:,}",
            *(
                figure(share) if figures.images else "-"
                for share in (figures.accuracy, *figures.exit_accuracy, *figures.exit_shares)
            ),
        )
        for c, figures in enumerate(found.classes)
    )
    folded = Table(f"All {len(rows)} classes", headers, rows)
    return Part("classes", "Classes", plots=plots, folded=(folded,))


def _confusions(subject: Subject, found: Figures, plots: tuple[Plot, ...]) -> Part:
    says: tuple[str, ...] = (
        "Rows are the true classes, columns the answers, figures the share of the row in %.",
    )
    if len(subject.classes) > MOST_CONFUSED:
        says = (
            f"A matrix of {len(subject.classes)} classes could not be read: here are the "
            "confusions that happen most.",
        )
    rows = tuple(tuple(row) for row in confusion_rows(subject, found))
    exits = range(1, found.num_exits + 1)
    headers = ("is", "taken for", *(f"by exit {k}, images" for k in exits))
    table = Table("The most frequent confusions of all exits together", headers, rows, words=2)
    shown = (table,) if rows else ()
    if plots:
        dense = len(subject.classes) > WRITTEN
        return Part("confusions", "Confusions", says, plots=plots, folded=shown, dense=dense)
    return Part("confusions", "Confusions", says, shown)


def _images(subject: Subject) -> Part:
    rows = tuple(row for row in choose_rows(subject) if row.tiles)
    if not rows:
        return Part("images", "Images", (subject.no_pictures,))
    says = (
        f"Of the {subject.images}, at {subject.judged}: the true class, where the image leaves, "
        "and what each exit answers with which confidence.",
    )
    return Part("images", "Images", says, rows=rows)


def _training(subject: Subject, plots: tuple[Plot, ...]) -> Part:
    says = (subject.no_training,) if subject.no_training else ()
    return Part("training", "Training", says, plots=plots)


def _teachers(subject: Subject, plots: tuple[Plot, ...]) -> tuple[Part, ...]:
    """Return the part about MATE's teachers, where they were logged."""
    if not plots:
        return ()
    says = (
        "MATE, reconstructed from the published abstract, trains each exit with teachers, one an "
        "exit; teacher i is a mixture of all exits' "
        "logits, and the weights of the mixture, the rows of A, are learned.",
    )
    return (Part("teachers", "MATE's teachers", says, plots=plots),)
