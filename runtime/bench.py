"""`mate-edge bench`: what a bundle takes on this device, beside what its user had without exits."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import fmean, median

from PIL import Image

from mate_edge.bundle import Bundle, find_bundle, read_bundle
from mate_edge.decide.policy import Deepest, FixedExit, Policy
from mate_edge.errors import EngineError, UsageError
from mate_edge.images import decode, read_image
from mate_edge.report import bench as report
from mate_edge.report.bench import UNSPLIT, Bench
from mate_edge.runtime.benched import keep_bench, read_bench
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.deadline import check_max_ms, samples_needed
from mate_edge.runtime.diagnoses import Observed, diagnose
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines import ENGINES, NEEDS, Say, choose_engine, make_engine
from mate_edge.runtime.latencies import keep_latencies, read_latencies, record_latencies
from mate_edge.runtime.load import CpuUse, busy_processes
from mate_edge.runtime.paying import judge_exits
from mate_edge.runtime.points import DEEPEST, all_points
from mate_edge.runtime.policy import DEFAULT_POLICY, resolve_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.rounds import Contender, Plan, Sample, run_rounds
from mate_edge.runtime.sources.images import find_images
from mate_edge.runtime.timing import is_enough
from mate_edge.runtime.verdict import exit_name, judge
from mate_edge.times import Times

ALL = "all"
ROUNDS = 500
"""Enough for a 99th percentile."""
FEWEST_ROUNDS = 30
LIMIT_S = 60.0
PACED_LIMIT_S = 180.0
SLOWEST_FPS = 0.001
MOST_LOAD = 256
MOST_IMAGES = 64
GOLDEN = "the bundle's golden images as PNG, of the network's own size"

Samples = dict[str, list[Sample]]


@dataclass(frozen=True)
class Options:
    """What to measure, and how.

    Attributes:
        rounds: of each contender, exactly; None: `ROUNDS`, or as many as `LIMIT_S` allows.
        fps: measure at so many predictions a second too.
        load: busy processes beside it.
        max_ms: the deadline that the verdict is about.
    """

    rounds: int | None = None
    fps: float | None = None
    load: int = 0
    max_ms: float | None = None

    def __post_init__(self) -> None:
        check_max_ms(self.max_ms)
        if self.fps is not None and not SLOWEST_FPS <= self.fps < math.inf:
            raise UsageError(f"--fps must be a number from {SLOWEST_FPS} on, not {self.fps}")
        if self.rounds is not None and self.rounds < 1:
            raise UsageError(f"--rounds must be 1 or more, not {self.rounds}")
        if not 0 <= self.load <= MOST_LOAD:
            raise UsageError(f"--load must lie between 0 and {MOST_LOAD}, not {self.load}")


@dataclass(frozen=True)
class Subject:
    """One engine that is measured: the bundle and its unsplit network in it."""

    name: str
    whole: Predictor
    unsplit: Predictor


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
    with ExitStack() as stack:
        if engines == ALL:
            subjects = _all_subjects(opened, threads, say)
        else:
            name = engine or choose_engine(opened, say)
            start = partial(open_subject, name, opened, threads)
            subjects = [build_if_needed(opened, start, say, unsplit=True)]
        for subject in subjects:
            stack.callback(subject.whole.close)
            stack.callback(subject.unsplit.close)
        stack.enter_context(busy_processes(options.load))
        return measure(subjects, frames, source, options, say=say, progress=progress)


def open_subject(name: str, bundle: Bundle, threads: int | None) -> Subject:
    """Open and warm up the bundle and its unsplit network in the engine called `name`."""
    pair = [
        Predictor(make_engine(name, one, threads, shared_pool=True), DEEPEST)
        for one in (bundle, bundle.unsplit())
    ]
    for predictor in pair:
        predictor.warm_up()
    return Subject(name, *pair)


def _all_subjects(bundle: Bundle, threads: int | None, say: Say) -> list[Subject]:
    """Open every engine that can be had here; say why not of the others."""
    found = []
    for name in ENGINES:
        if name in NEEDS and name != bundle.manifest.build.engine:
            continue  # another target's
        start = partial(open_subject, name, bundle, threads)
        try:
            found.append(build_if_needed(bundle, start, say, unsplit=True))
        except (EngineError, ModuleNotFoundError) as error:
            say(f"without {name}: {error}")
    if not found:
        raise EngineError(f"no engine here runs {bundle.folder}: type mate-edge doctor")
    return found


def _frames(bundle: Bundle, images: str | None) -> tuple[list[bytes], str]:
    """Return encoded images, and how to call them."""
    if images is not None:
        paths = list(find_images([images]))[:MOST_IMAGES]
        frames = [read_image(path) for path in paths]
        for frame, path in zip(frames, paths, strict=True):
            decode(frame, str(path))
        return frames, f"of {images}"
    frames = []
    for pixels in bundle.arrays(bundle.manifest.golden)["images"]:
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        frames.append(buffer.getvalue())
    return frames, GOLDEN


def contenders_of(subject: Subject) -> list[Contender]:
    """Return the network cut at each exit, the operating points and the unsplit network."""
    manifest = subject.whole.manifest
    temperatures = tuple(exit_.temperature for exit_ in manifest.exits)
    last = len(temperatures)
    policies: dict[str, Policy] = {
        exit_name(k, last): FixedExit(k, temperatures) for k in range(1, last)
    }
    policies[DEEPEST] = Deepest(temperatures)
    bundle = subject.whole.bundle
    policies |= {name: resolve_policy(bundle, name) for name in all_points(bundle)}
    ours = [
        Contender(f"{subject.name}/{name}", subject.whole, policy)
        for name, policy in policies.items()
    ]
    whole = Deepest(temperatures[-1:])
    return [*ours, Contender(f"{subject.name}/{UNSPLIT}", subject.unsplit, whole)]


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
    table = max(samples_needed(subject.whole.engine.num_segments) for subject in subjects)
    least = min(FEWEST_ROUNDS, options.rounds or FEWEST_ROUNDS)
    limit_s = LIMIT_S if options.rounds is None else math.inf
    plan = Plan(options.rounds or max(ROUNDS, table), least, limit_s)
    threads = max(getattr(subject.whole.engine, "threads", 1) for subject in subjects)
    for contender in contenders:  # the first image loads decoders
        contender.predictor.predict(frames[0], policy=contender.policy)

    def run(plan: Plan, what: str) -> tuple[Samples, _Use]:
        use, began = CpuUse(), contenders[0].predictor.clock()
        found = run_rounds(contenders, frames, plan, sleep=sleep, progress=partial(progress, what))
        passed_ms = (contenders[0].predictor.clock() - began) / 1e6
        busy_ms = sum(
            sample.elapsed_ms + sample.unmeasured_ms
            for samples in found.values()
            for sample in samples
        )
        others = None if options.load else use.others()
        return found, _Use(threads, busy_ms / max(passed_ms, 1e-9), use.own(), others)

    unpaced, use = run(plan, "back to back")
    paced: Samples = {}
    if options.fps is not None:
        limit_s = PACED_LIMIT_S if options.rounds is None else math.inf
        plan = replace(plan, fps=options.fps, limit_s=limit_s)
        round_s = len(contenders) / options.fps
        seconds = max(min(plan.rounds * round_s, limit_s), plan.least * round_s)
        say(f"pacing {len(contenders)} contenders at {options.fps:g} a second: {seconds:.0f} s")
        paced, use = run(plan, "paced")
    return [
        _judge_subject(subject, frames, source, options, unpaced, paced, use, machine, say)
        for subject in subjects
    ]


@dataclass(frozen=True)
class _Use:
    """What was used of the machine, by all engines together; see `Observed`."""

    threads: int
    busy_share: float
    own_cpus: float
    other_cpus: float | None


def _judge_subject(
    subject: Subject,
    frames: Sequence[bytes],
    source: str,
    options: Options,
    unpaced: Samples,
    paced: Samples,
    use: _Use,
    machine: Machine,
    say: Say,
) -> Bench:
    manifest, engine = subject.whole.manifest, subject.whole.engine
    num_exits = len(manifest.exits)

    def own(samples: Samples) -> Samples:
        """Return this engine's samples under plain names."""
        start = f"{subject.name}/"
        return {
            name.removeprefix(start): found
            for name, found in samples.items()
            if name.startswith(start)
        }

    unpaced, paced = own(unpaced), own(paced)
    samples = paced or unpaced
    deepest = samples[DEEPEST]
    contenders = {name: _contender(found, name, num_exits) for name, found in samples.items()}
    segments = [[sample.segment_ms[k] for sample in deepest] for k in range(num_exits)]
    unsplit_ms = [sample.segment_ms[0] for sample in samples[UNSPLIT]]
    points = _points(subject.whole.bundle, contenders)
    judged = DEFAULT_POLICY if DEFAULT_POLICY in points else next(iter(points), None)
    shares = points[judged].exit_shares if judged is not None else ()
    up_to = [contenders[exit_name(k, num_exits)].times.median_ms for k in range(1, num_exits + 1)]
    took = [ms - before for ms, before in zip(up_to, [0.0, *up_to], strict=False)]
    whole_ms = contenders[UNSPLIT].times.median_ms
    paying = judge_exits(took, whole_ms, shares) if judged is not None else None
    keep = paying.keep if paying else tuple(range(1, num_exits + 1))
    exits = tuple(
        report.ExitPays(exit=k, leave=shares[k - 1], saved_ms=saved)
        for k, saved in enumerate(paying.saved_ms if paying else (), start=1)
    )
    ceiling = median(unsplit_ms) / median(segments[0])
    found = Bench(
        verdict=judge(manifest, contenders, points, judged, exits, keep, ceiling, options.max_ms),
        diagnoses=diagnose(
            Observed(
                deepest=deepest,
                unpaced=unpaced[DEEPEST],
                fps=options.fps,
                busy_share=use.busy_share,
                threads=use.threads,
                own_cpus=use.own_cpus,
                other_cpus=use.other_cpus,
                judged=judged,
                shares=shares,
                on_gpu=subject.name in NEEDS,
                machine=machine,
            )
        ),
        bundle=str(subject.whole.bundle.folder),
        bundle_id=subject.whole.bundle.id,
        target=manifest.target,
        precision=manifest.precision,
        engine=subject.name,
        device=engine.device,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        images=len(frames),
        source=source,
        max_ms=options.max_ms,
        fps=options.fps,
        load=options.load,
        back_to_back={name: _contender(found, name, num_exits) for name, found in unpaced.items()},
        paced={name: _contender(found, name, num_exits) for name, found in paced.items()},
        parts=report.Parts(
            decode=Times.of([sample.decode_ms for sample in deepest]),
            preprocess=Times.of([sample.preprocess_ms for sample in deepest]),
            segments=tuple(Times.of(row) for row in segments),
            rest=Times.of([sample.rest_ms for sample in deepest]),
            unsplit=Times.of(unsplit_ms),
        ),
        points=points,
        judged=judged,
        exits=exits,
        keep=keep,
        ceiling=ceiling,
        kept=_keep(subject, segments, deepest, options, machine, say),
    )
    if found.kept or (not options.load and read_bench(engine.bundle, engine, machine) is None):
        with suppress(UsageError):  # a report can do without
            keep_bench(found, engine, machine)
    return found


def _contender(samples: Sequence[Sample], name: str, num_exits: int) -> report.Contender:
    ms = [sample.elapsed_ms for sample in samples]
    exits = [sample.exit for sample in samples]
    shares = tuple(exits.count(k) / len(exits) for k in range(1, num_exits + 1))
    return report.Contender(
        times=Times.of(ms), mean_ms=fmean(ms), exit_shares=() if name == UNSPLIT else shares
    )


def _points(bundle: Bundle, contenders: dict[str, report.Contender]) -> dict[str, report.Point]:
    """Return what the operating points take if images leave as the validation images did."""
    num_exits = len(bundle.manifest.exits)
    medians = [contenders[exit_name(k, num_exits)].times.median_ms for k in range(1, num_exits + 1)]
    found = {}
    for name, point in all_points(bundle).items():
        if len(point.val_exit_shares) == num_exits:
            weighted = zip(point.val_exit_shares, medians, strict=True)
            expected = sum(share * ms for share, ms in weighted)
            found[name] = report.Point(
                exit_shares=point.val_exit_shares,
                expected_ms=expected,
                saved_ms=contenders[UNSPLIT].times.median_ms - expected,
            )
    return found


def _keep(
    subject: Subject,
    segments: Sequence[Sequence[float]],
    deepest: Sequence[Sample],
    options: Options,
    machine: Machine,
    say: Say,
) -> bool:
    """Put the rounds into the device state, unless there are better ones or a load was beside."""
    if options.load:
        say("these latencies are not kept for deadlines: they were taken beside --load")
        return False
    engine = subject.whole.engine
    latencies = record_latencies(
        engine,
        segments,
        [sample.rest_ms for sample in deepest],
        decode_ms=[sample.decode_ms for sample in deepest],
        preprocess_ms=[sample.preprocess_ms for sample in deepest],
        fps=options.fps,
        machine=machine,
    )
    before = read_latencies(engine.bundle, engine, machine)
    needed = samples_needed(engine.num_segments)
    if before is None and not is_enough(latencies):
        say(
            f"{latencies.rounds} rounds are not kept for deadlines, which measure more by "
            f"themselves when they need them: a quantile needs {needed}"
        )
        return False
    if before is not None and latencies.rounds < min(needed, before.rounds):
        say(
            f"deadlines go on resting on the {before.rounds} rounds of {before.created}: "
            f"{latencies.rounds} are fewer, and a quantile needs {needed}"
        )
        return False
    if before is not None and before.fps is not None and options.fps is None:
        say(
            f"these rounds, one after another, replace those of {before.created} at "
            f"{before.fps:g} a second: bench --fps {before.fps:g} if frames come at that pace"
        )
    try:
        keep_latencies(latencies)
    except UsageError as error:  # the figures are worth more than their record
        say(f"the latencies are not kept: {error}")
        return False
    return True
