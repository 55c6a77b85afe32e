"""A line an answer on stdout: a table, or JSON; and one line on stderr that lives."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

import msgspec

from mate_edge.errors import UsageError
from mate_edge.files import shown
from mate_edge.runtime.outputs.answer import Answer, Output
from mate_edge.runtime.outputs.plain import plain, print_aside
from mate_edge.runtime.outputs.summary import Summary

LONGEST_SOURCE = 48  # characters of a path that the table shows
REDRAW_S = 0.25


class StdoutError(UsageError):
    """Nothing more can be printed."""


def print_answers(text: str) -> None:
    """Print answers, or what sums them up, at once.

    Raises:
        StdoutError: stdout takes no more, as on a full disk.
        BrokenPipeError: nobody reads it any longer.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdoutError(f"cannot write to stdout: {error.strerror}") from None


class Table(Output):
    """Lines of fixed columns, printed as they come.

    Nobody knows the longest name before the last image has come: the first column begins as wide as
    what is known, and a longer name widens it.

    Args:
        width: of the names, as far as is known.
        classes: the bundle's.
    """

    def __init__(self, width: int, classes: Sequence[str]) -> None:
        self.source = max(6, min(width, LONGEST_SOURCE))
        self.label = max(5, min(max(len(name) for name in classes), 24))
        self.headed = False

    def add(self, answer: Answer) -> None:
        """Print one answer."""
        name, prediction = plain(shown(answer.shot.name)), answer.prediction
        self.source = max(self.source, min(len(name), LONGEST_SOURCE))
        if not self.headed:
            self.headed = True
            print_answers(
                f"{'source':<{self.source}}  {'label':<{self.label}}  confidence  exit  "
                f"{'halted by':<9}        ms"
            )
        cut = name if len(name) <= self.source else "…" + name[1 - self.source :]
        missed = "  missed" if prediction.deadline_missed else ""
        others = "".join(
            f"  {plain(label)} {probability:.3f}"
            for label, probability in answer.top
            if label != answer.label
        )
        print_answers(
            f"{cut:<{self.source}}  {plain(answer.label):<{self.label}}  "
            f"{answer.confidence:>10.3f}  {prediction.exit:>4}  {prediction.halted_by:<9}  "
            f"{prediction.elapsed_ms:>8.2f}{missed}{others}"
        )

    def close(self) -> None:
        """Nothing is left to print."""


class _Likely(msgspec.Struct):
    label: str
    confidence: float


class _Line(msgspec.Struct, omit_defaults=True):
    source: str
    label: str
    index: int
    confidence: float
    exit: int
    halted_by: str
    elapsed_ms: float
    decode_ms: float
    preprocess_ms: float
    segment_ms: tuple[float, ...]
    deadline_missed: bool
    frame: int | None = None
    time_s: float | None = None
    steady: str | None = None
    top: tuple[_Likely, ...] = ()


OF_PREDICTION = _Line.__struct_fields__[1:-4]


class JsonLines(Output):
    """A JSON object a line; `frame`, `time_s` with videos, `steady` with patience, `top` if asked.

    Args:
        patient: whether a steady label is kept.
    """

    def __init__(self, patient: bool) -> None:
        self.patient = patient

    def add(self, answer: Answer) -> None:
        """Print one answer."""
        line = _Line(
            source=shown(answer.shot.source),
            frame=answer.shot.number,
            time_s=answer.shot.time_s,
            steady=answer.label if self.patient else None,
            top=tuple(_Likely(*one) for one in answer.top),
            **{name: getattr(answer.prediction, name) for name in OF_PREDICTION},
        )
        print_answers(msgspec.json.encode(line).decode())

    def close(self) -> None:
        """Nothing is left to print."""


class LiveLine:
    """The last line of a terminal: how fast, which exits, how many misses.

    Args:
        summary: what it is about.
        dropped: how many frames were.
        clock: of seconds.
    """

    def __init__(
        self,
        summary: Summary,
        dropped: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shown, self._visible = "", False
        self._summary, self._dropped, self._clock = summary, dropped, clock
        self._counted, self._since = 0, clock()
        self._rate = 0.0

    def draw(self) -> None:
        """Draw it again; what it says changes a few times a second."""
        count, now = self._summary.count, self._clock()
        passed = now - self._since
        if count > 1 and (passed >= REDRAW_S or not self.shown):
            self._rate = (count - self._counted) / max(passed, 1e-3)
            self._counted, self._since = count, now
            dropped = self._dropped()
            parts = [f"{self._rate:.1f} a second", self._summary.shares()]
            if self._summary.max_ms is not None:
                parts.append(f"{100 * self._summary.misses / count:.1f} % missed")
            if dropped:
                parts.append(f"{dropped} dropped")
            # a line that wraps could not be cleared
            self.shown = "; ".join(parts)[: shutil.get_terminal_size().columns - 1]
            self._visible = False
        if self.shown and not self._visible:
            self._visible = True
            print_aside(f"\r{self.shown}\x1b[K", end="")

    def clear(self) -> None:
        """Make room for other lines."""
        if self._visible:
            self._visible = False
            print_aside("\r\x1b[K", end="")
