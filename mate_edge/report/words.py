"""What the figures mean, in sentences: the verdict first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mate_edge.report.figures import Figures, PointFigures
from mate_edge.report.subject import Subject
from mate_edge.report.text import count


@dataclass(frozen=True)
class KeyFigure:
    """A figure to be seen first, and what it is."""

    value: str
    what: str


@dataclass(frozen=True)
class Verdict:
    """What a reader in a hurry should know.

    Attributes:
        headline: one sentence.
        lines: what stands behind it.
        key_figures: three or four.
    """

    headline: str
    lines: tuple[str, ...]
    key_figures: tuple[KeyFigure, ...]


def percent(share: float, digits: int = 1) -> str:
    """Format a share in [0, 1]: `91.3 %`."""
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """Format a difference of shares, without its sign: `0.9 points`."""
    return f"{abs(100 * share):.1f} points"


def listed(items: Sequence[str]) -> str:
    """Join items: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def give_verdict(subject: Subject, found: Figures) -> Verdict:
    """Say what the exits save, at what accuracy, and how far that can be trusted."""
    point = found.points[subject.judged]
    last = found.exits[-1]
    if found.num_exits == 1:
        return Verdict(
            headline=f"This network has one exit: it answers {percent(last.accuracy)} of the "
            f"{subject.images} rightly, and there is nothing to save.",
            lines=_cautions(subject),
            key_figures=(KeyFigure(percent(last.accuracy), "accuracy"),),
        )
    compared = "the network without early exits" if subject.unsplit_flops else "the last exit"
    lines = []
    if subject.times is not None and subject.times.verdict:
        headline = f"On this device, {subject.times.verdict[0]}."
        lines += [f"{_capital(line)}." for line in subject.times.verdict[1:]]
        lines.append(
            f"At {subject.judged} an image costs {count(point.mean_flops)} FLOPs on average, "
            f"{count(found.whole_flops)} in {compared}."
        )
    else:
        saved = f"save {percent(point.saved, 0)} of the FLOPs"
        if point.saved <= 0:
            saved = f"cost {percent(-point.saved, 0)} more FLOPs than they save"
        headline = f"At {subject.judged} the exits {saved}{_at_what_accuracy(point)}."
        lines.append(
            f"An image costs {count(point.mean_flops)} FLOPs on average instead of "
            f"{count(found.whole_flops)} in {compared}; no policy can be more than "
            f"{found.ceiling:.2f} times cheaper, which is where exit 1 stands."
        )
    lines.append(
        f"{percent(point.accuracy)} of the {found.images:,} {subject.images} are answered rightly; "
        f"the last exit alone gets {percent(last.accuracy)}, {_interval(point)}."
    )
    leave = [f"{percent(share, 0)} at exit {k}" for k, share in enumerate(point.exit_shares, 1)]
    lines.append(
        f"Of the images, {listed(leave)} leave. {percent(point.lost)} are wrong where the last "
        f"exit is right; {percent(point.mended)} are right where the last exit is wrong."
    )
    if subject.times is None:
        lines.append(subject.no_times)
    elif subject.times.unsplit_ms is None:
        lines.append(
            "The segments were measured on this device, and the network without exits was not: "
            "mate-edge bench compares them."
        )
    return Verdict(headline, (*lines, *_cautions(subject)), _key_figures(subject, found, point))


def _at_what_accuracy(point: PointFigures) -> str:
    if abs(point.drop) < 0.0005:
        return " at the last exit's accuracy"
    if point.drop > 0:
        return f" and cost {points(point.drop)} of accuracy"
    return f" and gain {points(point.drop)} of accuracy"


def _interval(point: PointFigures) -> str:
    """Say how sure the difference to the last exit is."""
    if point.lost + point.mended == 0:
        return "image for image the same"
    which = "more" if point.drop > 0 else "less"
    if abs(point.drop) <= point.drop_half:
        return (
            f"{points(point.drop)} {which}, which chance explains "
            f"(± {100 * point.drop_half:.1f}, 95 % interval)"
        )
    return f"{points(point.drop)} {which} (± {100 * point.drop_half:.1f}, 95 % interval)"


def _cautions(subject: Subject) -> tuple[str, ...]:
    return (subject.caution,) if subject.caution else ()


def _key_figures(subject: Subject, found: Figures, point: PointFigures) -> tuple[KeyFigure, ...]:
    saved = f"{'-' if point.saved > 0 else '+'}{abs(100 * point.saved):.0f} %"
    figures = [
        KeyFigure(percent(point.accuracy), f"accuracy at {subject.judged}"),
        KeyFigure(saved, f"FLOPs at {subject.judged}"),
    ]
    if point.mean_ms is not None:
        figures.append(KeyFigure(f"{point.mean_ms:.3g} ms", "an image on this device"))
    figures.append(KeyFigure(percent(point.exit_shares[0], 0), "leave at exit 1"))
    return tuple(figures)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def worst_confusion(subject: Subject, found: Figures, k: int) -> str:
    """Say what exit k confuses most often."""
    counts = found.confusions[k - 1].copy()
    for c in range(len(counts)):
        counts[c, c] = 0
    row, column = divmod(int(counts.argmax()), len(counts))
    n = int(counts[row, column])
    if n == 0:
        return f"Exit {k} confuses nothing."
    share = n / found.classes[row].images
    return (
        f"Exit {k} takes {percent(share, 0)} of {subject.classes[row]} for "
        f"{subject.classes[column]}, its most frequent confusion ({n:,} images)."
    )


def confusion_rows(subject: Subject, found: Figures, most: int) -> list[list[str]]:
    """Return the most frequent confusions of all exits: true class, answer, counts an exit."""
    total = found.confusions.sum(axis=0)
    for c in range(len(total)):
        total[c, c] = 0
    order = total.ravel().argsort(kind="stable")[::-1][:most]
    rows = []
    for place in order.tolist():
        row, column = divmod(place, len(total))
        if total[row, column]:
            counts = [f"{found.confusions[k, row, column]:,}" for k in range(found.num_exits)]
            rows.append([subject.classes[row], subject.classes[column], *counts])
    return rows
