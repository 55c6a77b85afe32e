"""What a report says of a bundle: gathered from its files, this device's state, and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge import files
from mate_edge.bundle import Bundle, OperatingPoint
from mate_edge.decide.softmax import Logits
from mate_edge.decide.tune import MAX_DROPS
from mate_edge.errors import EngineError
from mate_edge.images import crop, decode
from mate_edge.report.bench import UNSPLIT, Bench
from mate_edge.report.subject import (
    Deadline,
    DeviceTimes,
    Ending,
    ExitCost,
    NamedPolicy,
    Pixels,
    Subject,
)
from mate_edge.report.tuned import promise
from mate_edge.report.words import drop_goal, exits_text
from mate_edge.runtime.bench.benched import read_bench
from mate_edge.runtime.bench.verdict import exit_name
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.deadline import LatencyTable
from mate_edge.runtime.engines import Say, choose_engine, make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.labelled import record_logits
from mate_edge.runtime.latencies import Latencies, read_latencies
from mate_edge.runtime.points import DEEPEST, kept_points
from mate_edge.runtime.policy import DEFAULT_POLICY, resolve_policy
from mate_edge.runtime.replay import exits_in_time

DEADLINES = 48
"""How many deadlines the curves are made of."""
UNMEASURED = "mate-edge bench measures it, and the report then shows milliseconds and deadlines."


def gather_bundle(
    opened: Bundle, images: Path | None, engine: str | None, threads: int | None, say: Say
) -> Subject:
    """Gather what a report of a bundle on this device is made of.

    Without `images` everything is counted on the validation images' logits in the bundle, on which
    temperatures and thresholds were chosen too; the subject's `caution` says so.

    Args:
        opened: the bundle.
        images: labelled ones to run through the engine instead, DIR/CLASS/*.jpg.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        threads: of the CPU engine.
        say: told what is going on.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: an unknown engine.
        DataError: no image of any class of the bundle, or none that can be read.
        EngineError: `images` are given, and no engine can be had.
    """
    manifest, provenance = opened.manifest, opened.manifest.provenance
    if images is None:
        counted = _validation_images(opened)
    else:
        counted = _run_images(opened, images, engine, threads, say)
    times, no_times = read_times(opened, engine, threads, say)
    points = _points(opened)
    about = f"{provenance.get('arch', 'a network')} with {exits_text(len(manifest.exits))}"
    if provenance.get("data"):
        about += f", trained on {provenance['data']}"
    return Subject(
        kind="bundle",
        name=manifest.name,
        about=f"{about}; {manifest.precision} for {manifest.target}",
        classes=manifest.classes,
        logits=counted.logits,
        labels=counted.labels,
        images=counted.what,
        caution=counted.caution,
        temperatures=manifest.temperatures,
        fitted_on="the validation images",
        costs=tuple(
            ExitCost(
                exit_.cumulative_flops,
                exit_.parameters,
                exit_.border_bytes,
                exit_.fp32_val_accuracy,
                exit_.test_accuracy,
            )
            for exit_ in manifest.exits
        ),
        unsplit_flops=manifest.unsplit_flops,
        points=points,
        judged=DEFAULT_POLICY if DEFAULT_POLICY in points else next(iter(points)),
        times=times,
        no_times=no_times,
        training=None,
        no_training="A bundle does not carry its training: mate-edge report RUN shows the curves "
        f"of {provenance.get('run', 'the run')} and MATE's teachers.",
        pictures=counted.pictures,
        no_pictures="A bundle carries the logits of its validation images and not the images: "
        "--images DIR shows labelled images of your own, DIR/CLASS/*.jpg, and mate-edge report "
        "RUN those of the test split.",
        provenance=_provenance(opened),
    )


def _points(opened: Bundle) -> dict[str, NamedPolicy]:
    """Return the bundle's operating points and those tuned on this device; at least `deepest`."""
    own = {
        name: NamedPolicy(
            resolve_policy(opened, name),
            drop_goal(MAX_DROPS[name]) if name in MAX_DROPS else "",
            _promise(point),
        )
        for name, point in opened.manifest.operating_points.items()
    }
    tuned = {
        name: NamedPolicy(
            resolve_policy(opened, name), f"mate-edge tune {found.goal}", _promise(found.point)
        )
        for name, found in kept_points(opened).items()
    }
    points = own | tuned
    return points or {DEEPEST: NamedPolicy(resolve_policy(opened, DEEPEST), "never leaves early")}


def _promise(point: OperatingPoint) -> str:
    return "" if point.guarantee is None else promise(point.guarantee)


@dataclass(frozen=True)
class _Images:
    """The images that everything is counted on; see `Subject`, whose `images` is `what`."""

    logits: Logits
    labels: NDArray[np.int64]
    what: str
    caution: str
    pictures: Callable[[Sequence[int]], Pixels] | None


def _validation_images(opened: Bundle) -> _Images:
    """Return those whose logits are in the bundle."""
    logits, labels = read_calibration(opened)
    caution = (
        f"These are the {len(labels):,} validation images whose logits are in the bundle. They "
        "also chose its temperatures and thresholds, so the figures are a little too good; "
        "--images DIR counts on labelled images of your own instead."
    )
    return _Images(logits, labels, "validation images", caution, None)


def _run_images(
    opened: Bundle, folder: Path, engine: str | None, threads: int | None, say: Say
) -> _Images:
    """Run a labelled folder through all exits; images that cannot be read are said and left out."""
    found, pre = record_logits(opened, folder, engine, threads, say), opened.manifest.preprocessing

    def pictures(indices: Sequence[int]) -> Pixels:
        paths = [found.paths[i] for i in indices]
        return np.stack([crop(decode(path, preprocessing=pre), pre, str(path)) for path in paths])

    cautions = []
    if found.left_out:
        cautions.append(f"{found.left_out} more could not be read and are left out.")
    kept = kept_points(opened).items()
    if tuned := [name for name, one in kept if one.images_sha256 == found.sha256]:
        cautions.append(
            f"These images also chose the thresholds of {', '.join(tuned)}, whose figures are "
            "therefore a little too good."
        )
    what, caution = f"images in {folder}", " ".join(cautions)
    return _Images(found.logits, found.labels, what, caution, pictures)


def read_times(
    opened: Bundle, engine: str | None, threads: int | None, say: Say
) -> tuple[DeviceTimes | None, str]:
    """Return what is known of this device's times, or None and why nothing is."""
    try:
        made = make_engine(engine or choose_engine(opened, say), opened, threads, True)
    except EngineError as error:
        return None, f"This device's times are not known ({error})."
    with made:
        measured, bench = read_latencies(opened, made), read_bench(opened, made)
    if measured is None:
        return None, f"The bundle was not measured on this device as it is now: {UNMEASURED}"
    return _times(opened, made, measured, bench), ""


def _times(opened: Bundle, engine: Engine, measured: Latencies, bench: Bench | None) -> DeviceTimes:
    ends = ends_ms(measured)
    exit_ms = tuple(float(ms) for ms in np.median(ends, axis=0))
    unsplit_ms = None
    if bench is not None:  # its contenders really left there; the rounds above went all the way
        contenders = bench.paced or bench.back_to_back
        names = [exit_name(k, len(exit_ms)) for k in range(1, len(exit_ms) + 1)]
        if {*names, UNSPLIT} <= contenders.keys():
            exit_ms = tuple(contenders[name].times.median_ms for name in names)
            unsplit_ms = contenders[UNSPLIT].times.median_ms
    how = "one after another" if measured.fps is None else f"{measured.fps:g} a second"
    day, clock = measured.created[:10], measured.created[11:16]
    return DeviceTimes(
        device=f"{measured.fingerprint.cpu}, {engine.device}",
        measured=f"{measured.rounds:,} rounds, {how}, on {day} at {clock} UTC",
        exit_ms=exit_ms,
        unsplit_ms=unsplit_ms,
        verdict=() if bench is None else bench.verdict,
        diagnoses=() if bench is None else bench.diagnoses,
        deadlines=deadlines_of(measured, ends),
    )


def ends_ms(measured: Latencies) -> NDArray[np.float64]:
    """Return when each measured round could have answered at each exit, float64 [n, K].

    All that a round spent outside of its segments counts from the start, as in `exits_in_time`.
    """
    outside = np.asarray(measured.rest_ms)
    for row in (measured.decode_ms, measured.preprocess_ms):
        if row:
            outside = outside + np.asarray(row)
    ends: NDArray[np.float64] = outside[:, None] + np.asarray(measured.segments_ms).T.cumsum(axis=1)
    return ends


def deadlines_of(measured: Latencies, ends: NDArray[np.float64]) -> tuple[Deadline, ...]:
    """Replay the runtime's rule on the measured rounds, for deadlines from too short to ample."""
    table = LatencyTable.from_samples(measured.segments_ms, measured.rest_ms)
    before = median(ends[:, 0]) - table.median_ms[0]
    ample = before + sum(table.median_ms[:-1]) + table.finish_ms[-1]
    longest = 1.15 * max(ample, float(np.quantile(ends[:, -1], 0.99)))
    shortest = 0.6 * float(ends[:, 0].min())
    found = []
    for max_ms in np.geomspace(shortest, longest, DEADLINES):
        allowed = np.asarray(exits_in_time(measured, float(max_ms)))
        timely = np.minimum((ends <= max_ms).sum(axis=1), allowed)
        pairs = Counter(zip(allowed.tolist(), timely.tolist(), strict=True))
        found.append(
            Deadline(
                float(max_ms),
                tuple(
                    Ending(reached, in_time, count / len(allowed))
                    for (reached, in_time), count in sorted(pairs.items())
                ),
            )
        )
    return tuple(found)


def _provenance(opened: Bundle) -> tuple[tuple[str, str], ...]:
    manifest, pre = opened.manifest, opened.manifest.preprocessing
    pairs: dict[str, Any] = {
        "bundle": files.shown(opened.folder),
        "bundle id": opened.id,
        "target": f"{manifest.target}, {manifest.precision}, {manifest.build.engine}",
        "input": f"{pre.channels} x {pre.size} x {pre.size} pixels",
    }
    for key, value in manifest.provenance.items():  # which may claim anything
        pairs.setdefault(str(key).replace("_", " "), text(value))
    return tuple(pairs.items())


def text(value: object, depth: int = 3) -> str:
    """Return a value of a manifest's provenance, which may be anything, as plain text."""
    if value is None:
        return "-"
    if isinstance(value, dict | list | tuple) and not depth:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(entry, depth - 1)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(entry, depth - 1) for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
