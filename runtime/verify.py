"""`mate-edge verify`: does this device compute what the exported network computes?"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge import __version__, files
from mate_edge.bundle import Bundle, find_bundle, read_bundle
from mate_edge.decide.softmax import Logits
from mate_edge.errors import EngineError, EngineNotBuilt, UsageError
from mate_edge.extras import installed_versions
from mate_edge.report.verification import Comparison, ExitVerification, Verification
from mate_edge.runtime.agreement import compare, compare_exits, tolerance
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.engines import NEEDS, Say, choose_engine, make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.golden import Golden, Reference, read_golden, run_reference
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.state import VERIFICATION, read_state, state_folder, write_state
from mate_edge.times import Times, now_utc

PACKAGES = (
    "numpy",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
)
WARM_UP_ROUNDS = 3
MOST_ROUNDS, FEWEST_ROUNDS = 500, 10
TIMING_S = 5.0
"""Timing goes on until `MOST_ROUNDS`, or for this long and `FEWEST_ROUNDS` at least."""

SLOW = 1.5
SLOW_MS = 0.1
"""A segment is refused when it takes longer at best than `SLOW` times what the whole unsplit
network takes at best (times its own FLOPs over the network's, if a heavy head makes them more),
and this beyond it for the launch. At best, since other load makes any median long."""


def verify(
    bundle: Path | None, engine: str | None, say: Say, threads: int | None = None
) -> Verification:
    """Run a bundle's golden inputs through an engine, judge them and keep the result.

    Args:
        bundle: the folder; None means the newest.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        say: told what is going on.
        threads: of the CPU engine.

    Raises:
        BundleError: a file of the bundle is missing, altered or damaged.
        UsageError: an unknown engine.
        EngineError: the engine cannot be had here. One that fails later is refused instead.
    """
    opened = read_bundle(find_bundle(bundle))
    opened.check_files()
    golden = read_golden(opened)
    name = engine or choose_engine(opened, say)

    def start(one: Bundle) -> Engine:
        with ExitStack() as when_it_fails:
            engine = when_it_fails.enter_context(make_engine(name, one, threads, True))
            for k in range(1, engine.num_segments + 1):
                engine.open(k)
            when_it_fails.pop_all()
        return engine

    with (
        build_if_needed(opened, name, partial(start, opened), say, unsplit=True) as whole,
        build_if_needed(
            opened, name, partial(start, opened.unsplit()), say, unsplit=True
        ) as unsplit,
    ):
        found = verify_engine(whole, unsplit, golden, name)
        try:
            write_state(state_folder(opened.id, whole.device_key), VERIFICATION, found)
        except UsageError as error:  # the verdict is worth more than its record
            say(f"the result is not kept: {error}")
    return found


def verified_before(engine: Engine) -> bool:
    """Say whether this bundle was accepted on this device, with the versions of now."""
    found = read_state(
        state_folder(engine.bundle.id, engine.device_key), VERIFICATION, Verification
    )
    return (
        found is not None
        and found.accepted
        and found.bundle_id == engine.bundle.id
        and found.versions == package_versions()
        and found.gpu == engine.gpu
    )


def verify_engine(whole: Engine, unsplit: Engine, golden: Golden, name: str) -> Verification:
    """Judge an engine, all its segments open, by the golden inputs of its bundle.

    Args:
        whole: of the bundle.
        unsplit: of the same bundle's unsplit network, for comparison.
        golden: of the bundle.
        name: the engine's, which the tolerance depends on.
    """
    findings = _Findings()
    try:
        figures = _judge(whole, unsplit, golden, name, findings)
    except EngineNotBuilt:
        raise
    except EngineError as error:
        findings.refusals.insert(0, str(error))
        figures = {}
    manifest = whole.bundle.manifest
    return Verification(
        accepted=not findings.refusals,
        refusals=tuple(findings.refusals),
        remarks=tuple(findings.remarks),
        bundle=files.shown(whole.bundle.folder),
        bundle_id=whole.bundle.id,
        precision=manifest.precision,
        engine=name,
        device=whole.device,
        device_key=whole.device_key,
        versions=package_versions(),
        gpu=whole.gpu,
        created=now_utc(),
        max_batch=whole.max_batch,
        **figures,
    )


@dataclass
class _Findings:
    refusals: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def compare(self, what: str, found: Logits, expected: Logits, allowed: float) -> Comparison:
        """Compare logits [n, classes], and note what is wrong or excused."""
        result = compare(found, expected, allowed)
        wrong = result.images - result.agree - result.excused
        if result.share is None:
            self.refusals.append(f"{what} returns a logit that is no number")
        elif wrong:
            self.refusals.append(
                f"{what} answers another class than the exported network on {wrong} of "
                f"{result.images} golden images"
            )
        elif result.share > allowed:
            self.refusals.append(
                f"{what} differs by {result.share:.2g} of the largest logit, more than the "
                f"{allowed:g} allowed"
            )
        if result.share is not None and result.excused:
            self.remarks.append(
                f"{what} answers another class on {result.excused} of {result.images} golden "
                "images, excused: the exported network hesitates between the two"
            )
        return result


def _judge(
    whole: Engine, unsplit: Engine, golden: Golden, name: str, findings: _Findings
) -> dict[str, Any]:
    """Return the figures of `Verification`; the verdict's reasons go to `findings`."""
    bundle, num_exits = whole.bundle, whole.num_segments
    allowed = tolerance(bundle.manifest.precision, name)
    reference = _reference(bundle, golden, findings)
    found = _run_chain(whole, golden)
    numbers = range(num_exits)
    chained = [
        findings.compare(f"exit {k + 1}", found[:, k], golden.logits[:, k], allowed)
        for k in numbers
    ]
    points = {}
    if np.isfinite(found).all():
        for point in bundle.manifest.operating_points:
            policy = resolve_policy(bundle, point)
            points[point], wrong = compare_exits(policy, found, golden.logits, allowed)
            if wrong:
                findings.refusals.append(
                    f"at operating point {point} {len(wrong)} of {len(found)} golden images take "
                    f"another exit: {', '.join(wrong[:3])}"
                )
    alone: list[Comparison | None] = [None] * num_exits
    for k, part in enumerate(reference):
        logits = _run_alone(whole, k + 1, part.inputs)
        alone[k] = findings.compare(f"segment {k + 1} alone", logits, part.logits, allowed)
    batches: list[Comparison | None] = [None] * num_exits
    size = min(whole.max_batch, len(found))
    if size > 1:
        batches = _compare_batches(whole, golden, size, allowed, findings)
    _explain(chained, alone, reference, golden, allowed, findings)
    segments_ms, unsplit_ms = _time(whole, unsplit, golden, found, allowed, findings)
    times = [Times.of(samples) for samples in segments_ms]
    _judge_times(whole, segments_ms, unsplit_ms, findings)
    meant = bundle.manifest.build.engine
    if name != meant and meant in NEEDS:
        findings.remarks.append(
            f"this was {name}, not {meant}, which the bundle is for: verify it on its device, too"
        )
    if whole.graphs not in ("", "on"):
        findings.remarks.append(
            f"no CUDA graphs ({whole.graphs}): kernels are launched one by one, which takes longer"
        )
    return {
        "exits": tuple(
            ExitVerification(chained=c, alone=a, batch=b, times=t)
            for c, a, b, t in zip(chained, alone, batches, times, strict=True)
        ),
        "operating_points": points,
        "graphs": whole.graphs,
        "segments_ms": Times.of([sum(parts) for parts in zip(*segments_ms, strict=True)]),
        "unsplit_ms": Times.of(unsplit_ms),
    }


def _run_chain(engine: Engine, golden: Golden) -> Logits:
    """Run the golden images one by one through all segments: [n, K, classes]."""
    found = np.empty_like(golden.logits)
    for row in range(len(found)):
        engine.load(golden.inputs[row : row + 1])
        for k in range(1, engine.num_segments + 1):
            found[row, k - 1] = engine.run(k)[0]
    return found


def _run_alone(engine: Engine, k: int, inputs: NDArray[np.generic]) -> Logits:
    """Run segment k by itself on one sample after another: [n, classes]."""
    found = []
    for row in range(len(inputs)):
        engine.load(inputs[row : row + 1], k)
        found.append(engine.run(k)[0].copy())
    return np.stack(found)


def _compare_batches(
    engine: Engine, golden: Golden, size: int, allowed: float, findings: _Findings
) -> list[Comparison | None]:
    """Run batches of `size`, of which every third sample leaves after each segment."""
    found: list[list[Logits]] = [[] for _ in range(engine.num_segments)]
    expected: list[list[Logits]] = [[] for _ in range(engine.num_segments)]
    for first in range(0, len(golden.inputs), size):
        rows = np.arange(first, min(first + size, len(golden.inputs)))
        engine.load(golden.inputs[rows])
        for k in range(1, engine.num_segments + 1):
            found[k - 1].append(engine.run(k).copy())
            expected[k - 1].append(golden.logits[rows, k - 1])
            if k < engine.num_segments and len(rows) > 1:
                stay = np.flatnonzero(np.arange(len(rows)) % 3)
                rows = rows[stay]
                engine.keep(stay)
    return [
        findings.compare(
            f"exit {k} in batches of {size}", np.concatenate(f), np.concatenate(e), allowed
        )
        for k, (f, e) in enumerate(zip(found, expected, strict=True), start=1)
    ]


def _reference(bundle: Bundle, golden: Golden, findings: _Findings) -> list[Reference]:
    """Run the reference; return nothing, and say so, where onnxruntime is no reference."""
    try:
        return run_reference(bundle, golden)
    except EngineError as error:
        findings.remarks.append(f"the segments are not checked one by one: {error}")
        return []


def _explain(
    chained: Sequence[Comparison],
    alone: Sequence[Comparison | None],
    reference: Sequence[Reference],
    golden: Golden,
    allowed: float,
    findings: _Findings,
) -> None:
    """Say where to look when the chain is wrong: at the bundle, or at a border."""
    for k, (chain, own) in enumerate(zip(chained, alone, strict=True), start=1):
        if chain.passed:
            continue
        if own is None:
            return
        if not compare(reference[k - 1].logits, golden.logits[:, k - 1], allowed).passed:
            findings.remarks.append(
                f"onnxruntime on this CPU does not give the golden logits of exit {k} either: "
                "suspect the bundle's golden.npz before the device"
            )
        elif k > 1 and own.passed and all(before.passed for before in chained[: k - 1]):
            findings.remarks.append(
                f"segment {k} alone is right: suspect the features that segment {k - 1} hands over"
            )
        return


def _time(
    whole: Engine,
    unsplit: Engine,
    golden: Golden,
    first: Logits,
    allowed: float,
    findings: _Findings,
) -> tuple[list[list[float]], list[float]]:
    """Time each segment and the unsplit network in turns, warm, at batch 1.

    The images alternate, so that an answer left over from the image before is noticed: the logits
    must be those of the `first` run, [n, K, classes], every time.

    Returns:
        ms of each segment and of the unsplit network, one a round.
    """
    segments: list[list[float]] = [[] for _ in range(whole.num_segments)]
    unsplit_ms: list[float] = []
    changed: set[int] = set()
    scales = np.abs(golden.logits).max(axis=(0, 2))
    began = time.monotonic()
    for turn in range(WARM_UP_ROUNDS + MOST_ROUNDS):
        warm = turn >= WARM_UP_ROUNDS
        row = turn % len(golden.inputs)
        images = golden.inputs[row : row + 1]
        whole.load(images)
        for k in range(1, whole.num_segments + 1):
            started = time.perf_counter_ns()
            logits = whole.run(k)
            elapsed = (time.perf_counter_ns() - started) / 1e6
            if warm:
                segments[k - 1].append(elapsed)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                moved = np.abs(logits[0] - first[row, k - 1]).max()
            if not moved <= allowed * scales[k - 1]:
                changed.add(k)
        unsplit.load(images)
        started = time.perf_counter_ns()
        logits = unsplit.run(1)
        elapsed = (time.perf_counter_ns() - started) / 1e6
        if warm:
            unsplit_ms.append(elapsed)
        if not np.isfinite(logits).all():
            raise EngineError("the unsplit network returns a logit that is no number")
        if len(unsplit_ms) >= FEWEST_ROUNDS and time.monotonic() - began > TIMING_S:
            break
    findings.refusals += [
        f"exit {k} gives other logits for the same image from run to run"
        for k in sorted(changed)
        if np.isfinite(first[:, k - 1]).all()
    ]
    return segments, unsplit_ms


def _judge_times(
    whole: Engine,
    segments_ms: Sequence[Sequence[float]],
    unsplit_ms: Sequence[float],
    findings: _Findings,
) -> None:
    manifest, unsplit = whole.bundle.manifest, min(unsplit_ms)
    for k, (own_ms, exit_) in enumerate(zip(segments_ms, manifest.exits, strict=True), start=1):
        work = max(1.0, exit_.flops / max(manifest.unsplit_flops, 1))
        if min(own_ms) > SLOW * work * unsplit + SLOW_MS:
            findings.refusals.append(
                f"segment {k} takes {min(own_ms):.3g} ms at best, more than {SLOW * work:.2g} "
                f"times the {unsplit:.3g} ms of the whole unsplit network"
            )


def package_versions() -> dict[str, str]:
    """Return the versions that a verification holds for."""
    own = {"python": platform.python_version(), "mate-edge": __version__}
    return own | installed_versions(PACKAGES)
