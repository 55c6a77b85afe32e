"""`mate-edge bench`: what a bundle takes on this device, beside what its user had without exits."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from mate_edge.bundle import Bundle, find_bundle, read_bundle
from mate_edge.errors import UsageError
from mate_edge.files import shown
from mate_edge.images import decode, read_image
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench.load import CpuUse, busy_processes
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.result import GOLDEN, Measured, Use, judge_subject
from mate_edge.runtime.bench.rounds import Pace, Samples, run_rounds
from mate_edge.runtime.bench.subjects import (
    Subject,
    contenders_of,
    open_all_subjects,
    open_subject,
)
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.deadline import rounds_needed
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines import EVERYWHERE, Say, choose_engine
from mate_edge.runtime.golden import read_golden
from mate_edge.runtime.sources.images import find_images

ALL = "all"
ROUNDS = 500
"""Enough for a 99th percentile."""
FEWEST_ROUNDS = 30
LIMIT_S = 60.0
PACED_LIMIT_S = 180.0
MOST_IMAGES = 64


def bench(
    bundle: Path | None,
    options: Options,
    *,
    engine: str | None,
    engines: str | None,
    images: str | None,
    say: Say,
    progress: Callable[[str, float], object],
    threads: int | None = None,
) -> list[Bench]:
    """Measure a bundle on this device and keep its latencies.

    Args:
        bundle: the folder; None means the newest.
        options: what to measure.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        engines: `all` for every engine that can be had here, in the same rounds.
        images: a file, folder or glob to show; None: the golden images.
        say: told what is going on.
        progress: told what is being done, and the share that is done.
        threads: of the CPU engine.

    Returns:
        A result for each engine.

    Raises:
        UsageError: options that make no sense.
        ImageError: an image that cannot be read.
        MateEdgeError: as `find_bundle`, `read_bundle` and `make_engine`.
    """
    if engines not in (None, ALL):
        raise UsageError(f"--engines takes {ALL}, not {engines!r}: one is chosen by --engine")
    if engine is not None and engines is not None:
        raise UsageError("give --engine or --engines, not both")
    opened = read_bundle(find_bundle(bundle))
    frames, source = _frames(opened, images)
    if source == GOLDEN and options.max_ms is not None:
        say(
            "these images are the bundle's own, as small as the network sees them: for files of "
            "yours, which take longer to decode, give --images"
        )
    name = EVERYWHERE if engines == ALL else engine or choose_engine(opened, say)
    with ExitStack() as stack:
        if engines == ALL:
            subjects = open_all_subjects(opened, threads, say)
        else:
            start = partial(open_subject, name, opened, threads)
            subjects = [build_if_needed(opened, name, start, say, unsplit=True)]
        for subject in subjects:
            stack.callback(subject.whole.close)
            stack.callback(subject.unsplit.close)
        stack.enter_context(busy_processes(options.load))
        return measure(subjects, frames, source, options, say=say, progress=progress)


def _frames(bundle: Bundle, images: str | None) -> tuple[list[bytes], str]:
    """Return encoded images, and how to call them."""
    if images is not None:
        paths = list(find_images([images]))[:MOST_IMAGES]
        frames = [read_image(path) for path in paths]
        for frame, path in zip(frames, paths, strict=True):
            decode(frame, str(path))
        return frames, f"of {shown(images)}"
    frames = []
    for pixels in read_golden(bundle).images:
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        frames.append(buffer.getvalue())
    return frames, GOLDEN


def measure(
    subjects: Sequence[Subject],
    frames: Sequence[bytes],
    source: str,
    options: Options,
    *,
    say: Say,
    progress: Callable[[str, float], object] = lambda what, share: None,
    sleep: Callable[[float], object] = time.sleep,
    machine: Machine | None = None,
) -> list[Bench]:
    """Measure opened engines, back to back and, with `fps`, paced, and judge each of them.

    Args:
        subjects: warmed up.
        frames: encoded images.
        source: how to call them.
        options: what to measure; its load is the caller's to start.
        say: told how long it will take.
        progress: see `bench`.
        sleep: see `run_rounds`.
        machine: that is measured; this one when None.
    """
    machine = machine or Machine()
    contenders = [contender for subject in subjects for contender in contenders_of(subject)]
    table = max(rounds_needed(subject.whole.engine.num_segments) for subject in subjects)
    least = min(FEWEST_ROUNDS, options.rounds or FEWEST_ROUNDS)
    limit_s = LIMIT_S if options.rounds is None else math.inf
    pace = Pace(options.rounds or max(ROUNDS, table), least, limit_s)
    threads = max(getattr(subject.whole.engine, "threads", 1) for subject in subjects)
    for contender in contenders:  # the first image loads decoders
        contender.predictor.predict(frames[0], policy=contender.policy)

    def run(pace: Pace, what: str) -> tuple[Samples, Use]:
        use, began = CpuUse(), contenders[0].predictor.clock()
        found = run_rounds(contenders, frames, pace, sleep=sleep, progress=partial(progress, what))
        passed_ms = (contenders[0].predictor.clock() - began) / 1e6
        busy_ms = sum(
            sample.elapsed_ms + sample.unmeasured_ms
            for samples in found.values()
            for sample in samples
        )
        share = busy_ms / max(passed_ms, 1e-9)
        return found, Use(threads, share, use.own(), use.others(options.load))

    back_to_back, use = run(pace, "back to back")
    paced: Samples = {}
    if options.fps is not None:
        limit_s = PACED_LIMIT_S if options.rounds is None else math.inf
        pace = replace(pace, fps=options.fps, limit_s=limit_s)
        round_s = len(contenders) / options.fps
        seconds = max(min(pace.rounds * round_s, limit_s), pace.least * round_s)
        say(f"pacing {len(contenders)} contenders at {options.fps:g} a second: {seconds:.0f} s")
        paced, use = run(pace, "paced")
    measured = Measured(len(frames), source, back_to_back, paced, use)
    return [judge_subject(subject, measured, options, machine, say) for subject in subjects]
