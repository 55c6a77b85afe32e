"""What the rounds of `bench` say of one engine: its figures, its verdict, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from mate_edge import files
from mate_edge.bundle import Bundle
from mate_edge.errors import UsageError
from mate_edge.report import bench as report
from mate_edge.report.bench import UNSPLIT, Bench
from mate_edge.runtime.bench.benched import keep_bench, read_bench
from mate_edge.runtime.bench.diagnoses import Observed, diagnose
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.paying import NOISE, judge_exits
from mate_edge.runtime.bench.rounds import Sample, Samples
from mate_edge.runtime.bench.subjects import Subject
from mate_edge.runtime.bench.verdict import exit_name, judge
from mate_edge.runtime.deadline import rounds_needed
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines import NEEDS, Say
from mate_edge.runtime.latencies import keep_latencies, read_latencies, record_latencies
from mate_edge.runtime.points import DEEPEST, all_points
from mate_edge.runtime.policy import DEFAULT_POLICY
from mate_edge.runtime.timing import is_enough
from mate_edge.times import Times, now_utc

GOLDEN = "the bundle's golden images as PNG, of the network's own size"


@dataclass(frozen=True)
class Use:
    """What was used of the machine, by all engines together; see `Observed`."""

    threads: int
    busy_share: float
    own_cpus: float
    other_cpus: float | None


@dataclass(frozen=True)
class Measured:
    """What the rounds of all engines together gave.

    Attributes:
        images: how many different ones were shown.
        source: which ones; `GOLDEN`, or the user's own.
        back_to_back: one prediction after another.
        paced: the same contenders at the `fps` of the options; empty without.
        use: of the machine, in the paced rounds if there are any.
    """

    images: int
    source: str
    back_to_back: Samples
    paced: Samples
    use: Use

    def of(self, subject: Subject) -> tuple[Samples, Samples]:
        """Return what belongs to one engine of both, under plain names."""
        start = f"{subject.name}/"
        unpaced, paced = (
            {
                name.removeprefix(start): found
                for name, found in samples.items()
                if name.startswith(start)
            }
            for samples in (self.back_to_back, self.paced)
        )
        return unpaced, paced


def judge_subject(
    subject: Subject, measured: Measured, options: Options, machine: Machine, say: Say
) -> Bench:
    """Say what was measured of one engine, and keep it in the device state.

    Args:
        subject: the engine.
        measured: all engines' rounds.
        options: what was asked for.
        machine: that was measured.
        say: told what is kept, and what is not.
    """
    manifest, engine = subject.whole.manifest, subject.whole.engine
    num_exits, use = len(manifest.exits), measured.use
    unpaced, paced = measured.of(subject)
    samples = paced or unpaced
    deepest = samples[DEEPEST]
    back_to_back, at_fps = _contenders(unpaced, num_exits), _contenders(paced, num_exits)
    contenders = at_fps or back_to_back
    segments = [[sample.segment_ms[k] for sample in deepest] for k in range(num_exits)]
    up_to = [contenders[exit_name(k, num_exits)].times.median_ms for k in range(1, num_exits + 1)]
    unsplit_median = contenders[UNSPLIT].times.median_ms
    points = _points(subject.whole.bundle, up_to, unsplit_median)
    judged = DEFAULT_POLICY if DEFAULT_POLICY in points else next(iter(points), None)
    shares = points[judged].exit_shares if judged is not None else ()
    parts = report.Parts(
        decode=Times.of([sample.decode_ms for sample in deepest]),
        preprocess=Times.of([sample.preprocess_ms for sample in deepest]),
        segments=tuple(Times.of(row) for row in segments),
        rest=Times.of([sample.rest_ms for sample in deepest]),
        unsplit=Times.of([sample.segment_ms[0] for sample in samples[UNSPLIT]]),
    )
    noise_ms = NOISE * parts.unsplit.median_ms  # of the network: decoding is no part of it
    exits, keep = _paying(up_to, unsplit_median, shares, noise_ms)
    ceiling = parts.unsplit.median_ms / parts.segments[0].median_ms
    found = Bench(
        verdict=judge(
            manifest, contenders, points, judged, exits, keep, ceiling, noise_ms, options.max_ms
        ),
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
        bundle=files.shown(subject.whole.bundle.folder),
        bundle_id=subject.whole.bundle.id,
        target=manifest.target,
        precision=manifest.precision,
        engine=subject.name,
        device=engine.device,
        created=now_utc(),
        images=measured.images,
        source=measured.source,
        max_ms=options.max_ms,
        fps=options.fps,
        load=options.load,
        back_to_back=back_to_back,
        paced=at_fps,
        parts=parts,
        points=points,
        judged=judged,
        exits=exits,
        keep=keep,
        ceiling=ceiling,
        kept=_keep(subject, segments, deepest, measured.source, options, machine, say),
    )
    if found.kept or (not options.load and read_bench(engine.bundle, engine, machine) is None):
        with suppress(UsageError):  # a report can do without
            keep_bench(found, engine, machine)
    return found


def _contenders(samples: Samples, num_exits: int) -> dict[str, report.Contender]:
    found = {}
    for name, of_one in samples.items():
        ms = [sample.elapsed_ms for sample in of_one]
        exits = [sample.exit for sample in of_one]
        shares = tuple(exits.count(k) / len(exits) for k in range(1, num_exits + 1))
        found[name] = report.Contender(
            times=Times.of(ms), mean_ms=fmean(ms), exit_shares=() if name == UNSPLIT else shares
        )
    return found


def _points(
    bundle: Bundle, up_to_ms: Sequence[float], unsplit_ms: float
) -> dict[str, report.Point]:
    """Return what the operating points take if images leave as the validation images did.

    Args:
        bundle: theirs.
        up_to_ms: [K], what a prediction takes that leaves at each exit.
        unsplit_ms: and one by the network without early heads.
    """
    found = {}
    for name, point in all_points(bundle).items():
        under = point.guarantee and point.guarantee.max_ms  # the shares are those of that deadline
        if under is None and len(point.val_exit_shares) == len(up_to_ms):
            weighted = zip(point.val_exit_shares, up_to_ms, strict=True)
            expected = sum(share * ms for share, ms in weighted)
            found[name] = report.Point(
                exit_shares=point.val_exit_shares,
                expected_ms=expected,
                saved_ms=unsplit_ms - expected,
            )
    return found


def _paying(
    up_to_ms: Sequence[float], unsplit_ms: float, shares: Sequence[float], noise_ms: float
) -> tuple[tuple[report.ExitPays, ...], tuple[int, ...]]:
    """Return what each early exit saves, and the exits worth keeping; times as in `_points`.

    Without `shares`, or with too many exits to judge, none is judged and all are kept.
    """
    took = [ms - before for ms, before in zip(up_to_ms, [0.0, *up_to_ms], strict=False)]
    paying = judge_exits(took, unsplit_ms, shares, noise_ms) if shares else None
    if paying is None:
        return (), tuple(range(1, len(up_to_ms) + 1))
    exits = tuple(
        report.ExitPays(exit=k, leave=shares[k - 1], saved_ms=saved)
        for k, saved in enumerate(paying.saved_ms, start=1)
    )
    return exits, paying.keep


def _keep(
    subject: Subject,
    segments: Sequence[Sequence[float]],
    deepest: Sequence[Sample],
    source: str,
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
        images=None if source == GOLDEN else source,
        fps=options.fps,
        machine=machine,
    )
    before = read_latencies(engine.bundle, engine, machine)
    needed = rounds_needed(engine.num_segments)
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
    if before is not None and before.images is not None and latencies.images is None:
        say(
            f"these rounds, of {GOLDEN}, replace those of {before.created} {before.images}: bench "
            "--images if such files come"
        )
    try:
        keep_latencies(latencies)
    except UsageError as error:  # the figures are worth more than their record
        say(f"the latencies are not kept: {error}")
        return False
    return True
