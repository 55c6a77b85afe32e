"""`mate-edge run`: classify images and frames as they come, and sum up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mate_edge.bundle import Bundle, find_bundle, read_bundle
from mate_edge.errors import BROKEN_PIPE, ImageError, MateEdgeError, UsageError
from mate_edge.extras import extra
from mate_edge.files import resolved
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.deadline import check_max_ms, check_reachable
from mate_edge.runtime.engines import choose_engine, make_engine
from mate_edge.runtime.outputs.answer import Answer, Output, Steady, likeliest
from mate_edge.runtime.outputs.lines import JsonLines, LiveLine, StdoutError, Table, print_answers
from mate_edge.runtime.outputs.plain import plain, print_aside
from mate_edge.runtime.outputs.summary import Summary
from mate_edge.runtime.policy import PolicyChoice
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources import Sources, Wanted, open_sources
from mate_edge.runtime.sources.files import ImageFile
from mate_edge.runtime.sources.source import Item, Shot
from mate_edge.stop import StopSignal

if TYPE_CHECKING:
    from mate_edge.runtime.metrics import Metrics


class ClassifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of `classify`.

    Attributes:
        policy: see `choose_policy`.
        max_ms: the deadline of each image; None: none.
        strict: refuse a deadline that exit 1 may miss.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        threads: of the CPU engine.
        wanted: of cameras and live sources; None: nothing.
        patience: frames in a row that must agree before another label is shown; None: follow each.
        top: show so many of the likeliest classes; None: the answer alone.
        json: print JSON lines, no table.
        csv: write a row an answer into this file.
        save_video: write the frames, with their answers, into this file.
        metrics_port: serve Prometheus metrics there; None: nowhere.
    """

    policy: PolicyChoice = None
    max_ms: float | None = None
    strict: bool = False
    engine: str | None = None
    threads: int | None = None
    wanted: Wanted | None = None
    patience: int | None = None
    top: int | None = None
    json: bool = False
    csv: Path | None = None
    save_video: Path | None = None
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        check_max_ms(self.max_ms)
        if self.strict and self.max_ms is None:
            raise UsageError("--strict goes with --max-ms")
        Steady(1 if self.patience is None else self.patience)
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be 1 or more, not {self.top}")


Result = Answer | ImageError


def classify(names: Sequence[str], bundle: Path | None, run: ClassifyOptions) -> int:
    """Classify all that `names` mean, one after another, in constant memory.

    One image without a deadline opens each segment only when it is reached; otherwise all are
    opened and warmed up first, and under a deadline measured unless they were before. Engines that
    are not built on this device are built first. SIGINT and SIGTERM end it as the last image does:
    what was answered is written, and summed up.

    Returns:
        The exit code: 0; 1 when something could not be read, 2 when nothing could; 130 after
        SIGINT, 143 after SIGTERM, 141 when nobody reads stdout any longer.

    Raises:
        MateEdgeError: as `open_sources` and `Predictor.load`; exit 1 may need longer than a
            strict deadline; or an output cannot be written.
    """
    sources = open_sources(names, run.wanted)
    stop = StopSignal()
    with ExitStack() as stack:
        files = _open_files(run, names, sources, stack)
        metrics = _serve_metrics(run.metrics_port, stack)
        opened = read_bundle(find_bundle(bundle))
        with stop:
            try:
                with stop.interrupts():
                    predictor, results, notes = _load(opened, sources, run, stop)
            except (KeyboardInterrupt, MateEdgeError):  # FFmpeg may hide the first as the second
                if stop.received is None:
                    raise
                return 128 + stop.received
            stack.enter_context(predictor)
            stack.callback(results.close)
            summary = Summary(predictor, run.max_ms)
            delivery = _Delivery(run, sources, predictor, files, summary, metrics)
            delivery.attempt(lambda: delivery.go(results, notes))
            for output in files:
                delivery.attempt(output.close)
            if summary.count > 1 or (summary.count and run.max_ms is not None):
                delivery.sum_up()
        code = delivery.code if stop.received is None else 128 + stop.received
    if delivery.failure is not None:
        raise delivery.failure
    if code:
        return code
    if summary.count + summary.failures == 0:
        raise UsageError(f"{' '.join(names)} named nothing to classify")
    if summary.failures == 0:
        return 0
    return 1 if summary.count else 2


def say(message: str) -> None:
    """Print a line for the user beside the answers."""
    print_aside(f"mate-edge: {plain(message)}")


def _open_files(
    run: ClassifyOptions, names: Sequence[str], sources: Sources, stack: ExitStack
) -> list[Output]:
    """Open what is written beside stdout; `stack` closes it, too, where something fails.

    Raises:
        UsageError: it cannot be written, or would overwrite what is read.
    """
    found: list[Output] = []
    read = {resolved(name) for name in (*names, *(one.name for one in sources.sources))}
    written: set[Path] = set()
    for path in (run.csv, run.save_video):
        if path is not None and resolved(path) in read:
            raise UsageError(f"{path} is what is classified: write to another file")
        if path is not None and resolved(path) in written:
            raise UsageError(f"--csv and --save-video are both {path}: name two files")
        written |= {resolved(path)} if path is not None else set()
    if run.csv is not None:
        from mate_edge.runtime.outputs.csv_file import CsvFile

        found.append(CsvFile(run.csv, run.patience is not None))
        stack.callback(found[-1].close)
    if run.save_video is not None:
        if len(sources.sources) != 1 or not sources.sources[0].has_frames:
            raise UsageError("--save-video goes with one video, camera or stream")
        from mate_edge.runtime.outputs.video_file import SavedVideo

        found.append(SavedVideo(run.save_video, sources.sources[0]))
        stack.callback(found[-1].close)
    return found


def _serve_metrics(port: int | None, stack: ExitStack) -> Metrics | None:
    if port is None:
        return None
    with extra("serve"):
        from mate_edge.runtime.metrics import LOCALHOST, Metrics

    metrics = Metrics()
    port = stack.enter_context(metrics.served(port))
    say(f"metrics: http://{LOCALHOST}:{port}/metrics")
    return metrics


def _load(
    opened: Bundle, sources: Sources, run: ClassifyOptions, stop: StopSignal
) -> tuple[Predictor, Generator[Result], list[str]]:
    """Return a predictor that is ready, the results, and what is to be said before them."""
    engine = run.engine or choose_engine(opened, say)
    lazy = run.max_ms is None and [type(source) for source in sources.sources] == [ImageFile]
    items = iter(sources)
    head: list[Item] = []
    notes: list[str] = []

    def start() -> tuple[Predictor, Generator[Result]]:
        made = make_engine(engine, opened, run.threads, True)
        with ExitStack() as when_it_fails:
            predictor = when_it_fails.enter_context(Predictor(made, run.policy))
            if run.max_ms is not None:
                notes.clear()
                table = predictor.know_latencies(say)
                head[:] = head or islice(items, 1)
                frame_ms = _frame_ms(predictor, head)
                check_reachable(table, run.max_ms, run.strict, notes.append, frame_ms)
                head[:] = [sources.newer(item, items) for item in head]
            elif lazy:  # seen again where its segments turn out not to be built
                head[:] = head or islice(items, 1)
            else:
                predictor.warm_up()
            predictor.reset_stats()
            results = _answers(predictor, chain(head, items), run, stop)
            # where segments are opened as they are reached, this opens them: they may not be built
            first = list(islice(results, 1)) if lazy else []
            when_it_fails.pop_all()
        return predictor, _after(first, results)

    predictor, results = build_if_needed(opened, engine, start, say, lazy=run.max_ms is None)
    return predictor, results, notes


def _after(first: list[Result], results: Iterator[Result]) -> Generator[Result]:
    yield from first
    yield from results


def _frame_ms(predictor: Predictor, items: Sequence[Item]) -> float:
    """Return what decoding and preprocessing the first image takes; 0 when it cannot be read."""
    found = [0.0]
    for item in items:
        if isinstance(item, Shot):
            with suppress(ImageError):  # the first time loads the decoder
                for _ in range(2):
                    began = predictor.clock()
                    frame = item.read()
                    read_ms = (predictor.clock() - began) / 1e6
                    prediction = predictor.predict(frame, policy=0.0)
                    found.append(read_ms + prediction.decode_ms + prediction.preprocess_ms)
    return found[-1]


def _answers(
    predictor: Predictor, items: Iterator[Item], run: ClassifyOptions, stop: StopSignal
) -> Iterator[Result]:
    """Answer one item after another; a signal ends it between two, or while it waits for one."""
    steady = Steady(1 if run.patience is None else run.patience)
    classes = predictor.manifest.classes
    while True:
        try:
            with stop.interrupts():
                item = next(items, None)
        except KeyboardInterrupt:
            if stop.received is None:  # nobody notes signals yet
                raise
            return
        if item is None:
            return
        if isinstance(item, ImageError):
            yield item
            continue
        started_ns = item.arrived_ns
        if started_ns is None and not isinstance(item.content, Path):
            started_ns = predictor.clock()
        try:
            frame = item.read()
            found = predictor.predict(frame, max_ms=run.max_ms, started_ns=started_ns)
        except ImageError as error:
            yield error
            continue
        index = steady.index(item, found.index)
        confidence = found.confidence if index == found.index else float(found.probabilities[index])
        top = likeliest(found.probabilities, classes, run.top) if run.top is not None else ()
        yield Answer(item, frame, found, classes[index], confidence, top)


class _Delivery:
    """Hands each result to whoever wants it.

    Attributes:
        code: `BROKEN_PIPE` once nobody reads stdout any longer, else 0.
        failure: what went wrong first.
    """

    def __init__(
        self,
        run: ClassifyOptions,
        sources: Sources,
        predictor: Predictor,
        files: Sequence[Output],
        summary: Summary,
        metrics: Metrics | None,
    ) -> None:
        self.max_ms, self.sources, self.predictor = run.max_ms, sources, predictor
        classes, patient = predictor.manifest.classes, run.patience is not None
        width = max(source.width for source in sources.sources)
        self.outputs = [*files, JsonLines(patient) if run.json else Table(width, classes)]
        self.summary, self.metrics = summary, metrics
        self.model, self.dropped = predictor.manifest.name, 0
        self.live: LiveLine | None = None
        self.rows_shown, self.sum_on_stderr = sys.stdout.isatty(), run.json
        self.code = 0
        self.failure: MateEdgeError | None = None
        if sys.stderr.isatty():
            self.live = LiveLine(summary, lambda: sources.dropped)
        if metrics is not None:
            metrics.watch(
                self.model,
                lambda: predictor.stats().drift,
                lambda: predictor.timing.slow_down.factor,
            )

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the work; what ends it does not end the rest."""
        try:
            work()
        except (BrokenPipeError, StdoutError) as error:
            # what else is flushed must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.sum_on_stderr = True
            if isinstance(error, StdoutError):
                self.failure = self.failure or error
            else:
                self.code = BROKEN_PIPE
        except MateEdgeError as error:
            self.failure = self.failure or error

    def go(self, results: Iterator[Result], notes: Sequence[str]) -> None:
        """Go on to the end."""
        try:
            for result in results:
                if self.live is not None and (self.rows_shown or isinstance(result, ImageError)):
                    self.live.clear()
                if isinstance(result, ImageError):
                    self._fail(result)
                else:
                    if self.summary.count == 0:
                        announce(self.predictor, self.max_ms)
                        for note in notes:
                            say(note)
                    self._add(result)
                if self.live is not None:
                    self.live.draw()
        finally:
            if self.live is not None:
                self.live.clear()

    def sum_up(self) -> None:
        """Print the summary, on stderr where stdout is for others or takes no more."""
        text = self.summary.text(self.sources.dropped, self.sources.remarks())
        if not self.sum_on_stderr:
            self.attempt(lambda: print_answers(text))
        if self.sum_on_stderr:
            print_aside(text)

    def _fail(self, error: ImageError) -> None:
        self.summary.failures += 1
        if self.metrics is not None:
            self.metrics.add_failure(self.model)
        say(str(error))

    def _add(self, answer: Answer) -> None:
        self.summary.add(answer)
        if self.metrics is not None:
            self.metrics.add(self.model, answer.prediction)
            self.metrics.add_dropped(self.model, self.sources.dropped - self.dropped)
            self.dropped = self.sources.dropped
        for output in self.outputs:
            output.add(answer)


def announce(predictor: Predictor, max_ms: float | None) -> None:
    """Name bundle and engine, and say what the deadline rests on."""
    print_aside(f"{plain(str(predictor.bundle.folder))}: {predictor.engine.device}")
    measured = predictor.timing.measured
    if max_ms is None or predictor.timing.latencies is None or measured is None:
        return
    table = predictor.timing.table(predictor.policy)
    kind = "a high quantile" if table.exact else "the maximum"
    times = " ".join(f"{ms:.2f}" for ms in table.finish_ms)
    paced = "one after another" if measured.fps is None else f"{measured.fps:g} a second"
    print_aside(
        f"the deadline rests on {table.samples} rounds, {paced}, measured here at "
        f"{measured.created}: {kind} of segments {times} ms"
    )
