"""What the figures mean, in sentences: the verdict first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mate_edge.report.figures import Figures, PointFigures
from mate_edge.report.subject import Subject
from mate_edge.report.text import count
from mate_edge.report.tuned import fewer


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
    """Format a share in [0, 1]: `91.3 %`, which no line break divides."""
    return f"{100 * share:.{digits}f}\u00a0%"


def points(share: float) -> str:
    """Format a difference of shares, without its sign: `0.9 points`."""
    return f"{abs(100 * share):.1f} points"


def exits_text(number: int) -> str:
    """Return `1 exit` or `3 exits`."""
    return f"{number} exit{'s' if number != 1 else ''}"


def listed(items: Sequence[str]) -> str:
    """Join items: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def give_verdict(subject: Subject, found: Figures) -> Verdict:
    """Say what the exits save, at what accuracy, and how far that can be trusted."""
    point = found.points[subject.judged]
    last = found.exits[-1]
    if found.num_exits == 1:
        return Verdict(
            headline=f"This network has one exit: it classifies {percent(last.accuracy)} of the "
            f"{subject.images} correctly, and there is nothing to save.",
            lines=_cautions(subject),
            key_figures=(KeyFigure(percent(last.accuracy), "accuracy"),),
        )
    compared = "the network without early exits" if subject.unsplit_flops else "the last exit"
    shares = [percent(share, 0) for share in point.exit_shares]
    leave = [f"{share} at exit {k}" for k, share in enumerate(shares[1:], start=2)]
    lines = [
        f"{percent(point.accuracy)} of the {found.images:,} {subject.images} are classified "
        f"correctly; the last exit alone gets {percent(last.accuracy)}, {_interval(point)}.",
        f"{shares[0]} of the images leave at exit 1, {listed(leave)}. {percent(point.lost)} of all "
        "are wrong where the last "
        f"exit is right, {percent(point.mended)} are right where the last exit is wrong.",
        f"An image costs {count(point.mean_flops)} FLOPs on average, {count(found.whole_flops)} in "
        f"{compared}: {fewer(found.whole_flops, point.mean_flops)}. At most "
        f"{found.ceiling:.2f} times fewer are possible: exit 1 alone costs that much.",
    ]
    if subject.times is not None and subject.times.verdict:
        lines.append(f"mate-edge bench says: {subject.times.verdict[0]}.")
    return Verdict(
        _headline(subject, point),
        (*lines, *_cautions(subject)),
        _key_figures(subject, point),
    )


def _headline(subject: Subject, point: PointFigures) -> str:
    """Say what the exits save on this device, or in FLOPs where it was not measured."""
    accuracy, times = _at_what_accuracy(point), subject.times
    if times is None or times.unsplit_ms is None or point.mean_ms is None:
        if point.saved > 0:
            saved = f"save {percent(point.saved, 0)} of the FLOPs"
            return f"At {subject.judged} the exits {saved}{accuracy}."
        saved = f"take {percent(-point.saved, 0)} more FLOPs than the network without them"
        return f"At {subject.judged} the exits {saved}{accuracy}."
    spared = 1 - point.mean_ms / times.unsplit_ms
    if spared > 0:
        saved = f"save {percent(spared, 0)} of the time on this device"
    else:
        saved = f"take {percent(-spared, 0)} more time on this device than the network without them"
    return f"At {subject.judged} the exits {saved}{accuracy}."


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


def _key_figures(subject: Subject, point: PointFigures) -> tuple[KeyFigure, ...]:
    times = subject.times
    cost = KeyFigure(
        f"{'-' if point.saved > 0 else '+'}{percent(abs(point.saved), 0)}",
        f"FLOPs at {subject.judged}",
    )
    if times is not None and point.mean_ms is not None:
        whole = times.unsplit_ms
        without = "" if whole is None else f", {whole:.3g}\u00a0ms without exits"
        cost = KeyFigure(f"{point.mean_ms:.3g}\u00a0ms", f"an image{without}")
    return (
        KeyFigure(percent(point.accuracy), f"accuracy at {subject.judged}"),
        cost,
        KeyFigure(percent(point.exit_shares[0], 0), "leave at exit 1"),
    )


def drop_goal(max_drop: float) -> str:
    """Say what a default operating point was chosen for; `max_drop` is a share of the images."""
    below = f"at most {100 * max_drop:g} points below" if max_drop else "not below"
    return f"{below} the last exit on the validation images"


def capital(sentence: str) -> str:
    """Return a sentence that begins as sentences do."""
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
        f"Exit {k} mistakes {percent(share, 0)} of {subject.classes[row]} for "
        f"{subject.classes[column]}, its most frequent confusion ({n:,} images)."
    )


def confusion_rows(subject: Subject, found: Figures) -> list[list[str]]:
    """Return the most frequent confusions of all exits: true class, answer, images an exit."""
    return [
        [
            subject.classes[confused.label],
            subject.classes[confused.answer],
            *(f"{count:,}" for count in confused.images),
        ]
        for confused in found.frequent
    ]
