"""`mate-edge run`: classify, print a line an image and a summary."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import TextIO

import msgspec

from mate_edge.bundle import find_bundle, read_bundle
from mate_edge.errors import BundleError, ImageError, MateEdgeError, UsageError
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.deadline import check_max_ms, check_reachable, samples_needed
from mate_edge.runtime.engines import choose_engine, make_engine
from mate_edge.runtime.predictor import Prediction, Predictor
from mate_edge.runtime.sources import find_images, shown
from mate_edge.runtime.standing import standing

LONGEST_SOURCE = 48  # characters of a path that the table shows


def classify(
    sources: Sequence[str],
    bundle: Path | None,
    *,
    policy: str | float | None,
    max_ms: float | None,
    engine: str | None,
    threads: int | None,
    json: bool,
    strict: bool = False,
) -> int:
    """Classify all images that `sources` name.

    One image without a deadline opens each segment only when it is reached; otherwise all are
    opened and warmed up first, and under a deadline measured unless they were before. Engines that
    are not built on this device are built first.

    Returns:
        The exit code: 0, or 1 when some images could not be read, or 2 when none could.

    Raises:
        MateEdgeError: as `find_images` and `Predictor.load`; or, when `strict`, exit 1 may need
            longer than the deadline.
    """
    check_max_ms(max_ms)
    if strict and max_ms is None:
        raise UsageError("--strict goes with --max-ms")
    images = list(find_images(sources))
    opened = read_bundle(find_bundle(bundle))
    engine = engine or choose_engine(opened, say)
    lazy = len(images) == 1 and max_ms is None
    notes: list[str] = []

    def start() -> tuple[Predictor, Iterator[tuple[str, Prediction | ImageError]]]:
        made = make_engine(engine, opened, threads, True)
        with ExitStack() as when_it_fails:
            predictor = when_it_fails.enter_context(Predictor(made, policy))
            if max_ms is not None:
                notes.clear()
                table = predictor.know_latencies(notes.append)
                frame_ms = _frame_ms(predictor, images)
                check_reachable(table, max_ms, strict, notes.append, frame_ms)
            elif not lazy:
                predictor.warm_up()
            predictor.reset_stats()
            results = predictor.stream(images, max_ms=max_ms)
            first = next(results)
            when_it_fails.pop_all()
        return predictor, chain([first], results)

    predictor, results = build_if_needed(opened, start, say)
    summary = Summary(predictor, max_ms)
    with predictor:
        table = None if json else Table(images, predictor.manifest.classes)
        for path, result in results:
            source = shown(path)
            if isinstance(result, MateEdgeError):
                summary.failures += 1
                say(str(result))
                continue
            if summary.count == 0:
                announce(predictor, max_ms)
                for note in notes:
                    say(note)
            summary.add(result)
            if table is None:
                print(_json_line(source, result), flush=True)
            else:
                table.row(source, result)
    if summary.count > 1 or (summary.count and max_ms is not None):
        summary.print(sys.stderr if json else sys.stdout)
    if summary.failures == 0:
        return 0
    return 1 if summary.count else 2


def say(message: str) -> None:
    """Print a line for the user beside the answers."""
    print(f"mate-edge: {message}", file=sys.stderr)


def _frame_ms(predictor: Predictor, images: Sequence[Path]) -> float:
    """Return what decoding and preprocessing the first image takes; 0 when it cannot be read."""
    found: list[float] = []
    with suppress(ImageError):  # the first time loads the decoder
        for _ in range(2):
            prediction = predictor.predict(images[0], policy=0.0)
            found.append(prediction.decode_ms + prediction.preprocess_ms)
    return found[-1] if found else 0.0


def announce(predictor: Predictor, max_ms: float | None) -> None:
    """Name bundle and engine, and say what the deadline rests on."""
    print(f"{predictor.bundle.folder}: {predictor.engine.device}", file=sys.stderr)
    table, measured = predictor.latencies, predictor.measured
    if max_ms is None or table is None or measured is None:
        return
    kind = "a high quantile" if table.exact else "the maximum"
    times = " ".join(f"{ms:.2f}" for ms in table.quantile_ms)
    paced = "one after another" if measured.fps is None else f"{measured.fps:g} a second"
    print(
        f"the deadline rests on {table.samples} rounds, {paced}, measured here at "
        f"{measured.created}: {kind} of segments {times} ms",
        file=sys.stderr,
    )
    if not table.exact:
        needed = samples_needed(len(table.quantile_ms))
        print(f"a quantile needs {needed} rounds: mate-edge bench measures them", file=sys.stderr)


class Table:
    """Lines of fixed columns, printed as they come."""

    def __init__(self, sources: Sequence[Path], classes: Sequence[str]) -> None:
        widest = max((len(str(source)) for source in sources), default=0)
        self.source = max(6, min(widest, LONGEST_SOURCE))
        self.label = max(5, min(max(len(name) for name in classes), 24))
        self.headed = False

    def row(self, source: str, prediction: Prediction) -> None:
        """Print one prediction."""
        if not self.headed:
            self.headed = True
            print(
                f"{'source':<{self.source}}  {'label':<{self.label}}  confidence  exit  "
                f"{'halted by':<9}        ms"
            )
        shown = source if len(source) <= self.source else "…" + source[1 - self.source :]
        missed = "  missed" if prediction.deadline_missed else ""
        print(
            f"{shown:<{self.source}}  {prediction.label:<{self.label}}  "
            f"{prediction.confidence:>10.3f}  {prediction.exit:>4}  {prediction.halted_by:<9}  "
            f"{prediction.elapsed_ms:>8.2f}{missed}",
            flush=True,
        )


class Summary:
    """What to say at the end."""

    def __init__(self, predictor: Predictor, max_ms: float | None) -> None:
        self.predictor = predictor
        self.num_exits = predictor.engine.num_segments
        self.max_ms = max_ms
        self.exits: Counter[int] = Counter()
        self.failures = self.misses = self.by_deadline = 0
        self.total_ms = 0.0

    @property
    def count(self) -> int:
        """How many images were classified."""
        return sum(self.exits.values())

    def add(self, prediction: Prediction) -> None:
        """Take in one prediction."""
        self.exits[prediction.exit] += 1
        self.misses += prediction.deadline_missed
        self.by_deadline += prediction.halted_by == "deadline"
        self.total_ms += prediction.elapsed_ms

    def print(self, file: TextIO) -> None:
        """Print the exits' shares, the mean time, the misses, what is guaranteed, and drift."""
        count = max(self.count, 1)
        shares = ", ".join(
            f"exit {k} {100 * self.exits[k] / count:.0f} %" for k in range(1, self.num_exits + 1)
        )
        lines = [f"{self.count} images: {shares}; mean {self.total_ms / count:.2f} ms"]
        if self.max_ms is not None:
            lines.append(
                f"deadline {self.max_ms:g} ms: {self.misses} missed, "
                f"{self.by_deadline} halted by it"
            )
        measured = self.predictor.measured
        device = None if measured is None else measured.fingerprint
        lines.append(
            standing(self.predictor.chosen, self.max_ms, device, self.count, self.by_deadline)
        )
        lines += self._drift()
        if self.failures:
            lines.append(f"{self.failures} could not be read")
        print("\n".join(lines), file=file)

    def _drift(self) -> list[str]:
        try:
            drift = self.predictor.stats().drift
        except BundleError as error:  # what was answered stays answered
            return [f"whether the images have drifted is unknown: {error}"]
        if drift is None or not drift.warns:
            return []
        return [
            f"the images have drifted: exit 1's confidence is not spread as on the validation "
            f"images (PSI {drift.psi:.2f} on {drift.samples}, above {drift.limit:.2f}), so no "
            "accuracy stated holds: label some of them and type mate-edge evaluate"
        ]


class _Line(msgspec.Struct):
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


def _json_line(source: str, prediction: Prediction) -> str:
    fields = {
        name: getattr(prediction, name) for name in _Line.__struct_fields__ if name != "source"
    }
    return msgspec.json.encode(_Line(source=source, **fields)).decode()
