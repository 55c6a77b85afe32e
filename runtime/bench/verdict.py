"""What a measurement means for who wants to decide, in words, the answer first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from mate_edge.bundle import Manifest
from mate_edge.report.bench import UNSPLIT, Contender, ExitPays, Point, tail
from mate_edge.runs import RUNS
from mate_edge.runtime.points import DEEPEST
from mate_edge.times import samples_needed


def exit_name(k: int, num_exits: int) -> str:
    """Return the contender that always leaves at exit k."""
    return DEEPEST if k == num_exits else f"exit {k}"


def judge(
    manifest: Manifest,
    contenders: Mapping[str, Contender],
    points: Mapping[str, Point],
    judged: str | None,
    exits: Sequence[ExitPays],
    keep: Sequence[int],
    ceiling: float,
    noise_ms: float,
    max_ms: float | None,
) -> tuple[str, ...]:
    """Say whether exits are needed, what they save, which of them pay, and what is possible.

    Args:
        manifest: of the bundle.
        contenders: times by name.
        points: what the operating points save.
        judged: the one that is judged.
        exits: what each early exit saves there.
        keep: the exits worth keeping, the last one among them.
        ceiling: of the speed-up.
        noise_ms: what an exit saves or costs below that is not told.
        max_ms: a deadline, if there is one.
    """
    point = points.get(judged) if judged is not None else None
    lines = []
    late = max_ms is not None and tail(contenders[UNSPLIT].times)[0] > max_ms
    if max_ms is not None:
        lines.append(_for_deadline(contenders, len(manifest.exits), point, max_ms))
    elif point is not None:
        lines.append(_on_average(contenders, judged, point))
    for exit_ in exits:
        share = f"{100 * exit_.leave:.0f} % of the images leave there at {judged}"
        verb = "pays" if exit_.exit in keep else "does not pay"
        if abs(exit_.saved_ms) < noise_ms and exit_.exit in keep:
            verb = "makes no difference beyond noise"
        sign = "saves" if exit_.saved_ms > 0 else "costs"
        lines.append(
            f"exit {exit_.exit} {verb}: {share}, and it {sign} {abs(exit_.saved_ms):.3f} ms of an "
            "image on average"
        )
    if exits and len(keep) == 1 and not late:  # or they may be what answers in time
        lines.append(
            "no exit pays on this device: run the unsplit network, or train with --exits "
            f"elsewhere; without early exits, where the run is: {_merge(manifest, keep)}"
        )
    elif len(keep) <= len(exits) and not late:
        lines.append(f"merge what does not pay, where the run is: {_merge(manifest, keep)}")
    if exits and ceiling <= 1:
        lines.append(
            "no policy can be faster than the unsplit network here: segment 1 alone takes "
            f"{1 / ceiling:.2f} times its time"
        )
    elif exits:
        lines.append(
            f"no policy can be more than {ceiling:.2f} times faster than the unsplit network here "
            "(unsplit / segment 1)"
        )
    return tuple(lines)


def _merge(manifest: Manifest, keep: Sequence[int]) -> str:
    """Return the command that exports the bundle anew, with these exits alone."""
    return (
        f"mate-edge export {_of_run(manifest, keep)} --target {shlex.quote(manifest.target)} "
        f"--precision {manifest.precision}{_batch(manifest)}"
    )


def _of_run(manifest: Manifest, keep: Sequence[int]) -> str:
    """Return the run that a bundle was exported from, and these of its exits as the run's."""
    known, count = manifest.provenance, len(manifest.exits)
    numbers, name = known.get("exits"), known.get("run")
    if not (isinstance(numbers, list) and [type(one) for one in numbers] == [int] * count):
        numbers = list(range(1, count + 1))
    exits = ",".join(str(numbers[k - 1]) for k in keep)
    if not (isinstance(name, str) and name.isprintable()):
        return f"--exits {exits}"
    return f"{shlex.quote(str(RUNS / name))} --exits {exits}"


def _batch(manifest: Manifest) -> str:
    size = manifest.build.max_batch
    return f" --max-batch {size}" if size > 1 else ""


def _for_deadline(
    contenders: Mapping[str, Contender], num_exits: int, point: Point | None, max_ms: float
) -> str:
    """Say which network or exit answers within the deadline."""
    unsplit_ms, what = tail(contenders[UNSPLIT].times)
    saved = ""
    if point is not None:
        verb = "save" if point.saved_ms > 0 else "cost"
        saved = f"they would {verb} {abs(point.saved_ms):.2g} ms on average"
    times = contenders[UNSPLIT].times
    enough = samples_needed(0.99)
    few = "" if times.p99_ms is not None else f" ({enough} rounds show the p99)"
    if unsplit_ms <= max_ms:
        return (
            f"unsplit {what} is {unsplit_ms:.3g} ms{few}, under your {max_ms:g} ms: you need no "
            f"exits for this deadline{saved and '; ' + saved}"
        )
    over = f"unsplit {what} is {unsplit_ms:.3g} ms{few}, over your {max_ms:g} ms"
    if times.p99_ms is None and times.median_ms <= max_ms:
        return (
            f"{over}, but its median is {times.median_ms:.3g} ms: so few rounds cannot tell "
            f"whether you need exits for this deadline; leave --rounds out, or give {enough}"
        )
    for k in range(num_exits, 0, -1):
        ms, what = tail(contenders[exit_name(k, num_exits)].times)
        if ms <= max_ms and k == num_exits:
            return (
                f"{over}, but with all exits it is {ms:.3g} ms ({what}): the deadline is about "
                f"what the network takes; --max-ms {max_ms:g} leaves earlier whenever it must"
            )
        if ms <= max_ms:
            return (
                f"{over}: you need exits for this deadline; exit {k} answers in time ({what}: "
                f"{ms:.3g} ms), and --max-ms {max_ms:g} goes deeper whenever that fits"
            )
    first = contenders[exit_name(1, num_exits)].times
    if first.p99_ms is None and first.median_ms <= max_ms:
        return (
            f"{over}, and so is exit 1 ({what}: {ms:.3g} ms), but the median of exit 1 is "
            f"{first.median_ms:.3g} ms: so few rounds cannot tell whether it answers in time; "
            f"leave --rounds out, or give {enough}"
        )
    return (
        f"{over}, and so is exit 1 ({what}: {ms:.3g} ms): no exit of this network meets this "
        "deadline here; train with an earlier first exit or a smaller network, lower the "
        "precision, or allow more"
    )


def _on_average(contenders: Mapping[str, Contender], judged: str | None, point: Point) -> str:
    """Say what the exits save when there is no deadline."""
    unsplit_ms = contenders[UNSPLIT].times.median_ms
    times = f"{point.expected_ms:.3g} ms against {unsplit_ms:.3g} ms unsplit"
    if point.saved_ms > 0:
        faster = unsplit_ms / point.expected_ms
        return (
            f"at {judged} the exits save {point.saved_ms:.2g} ms on average: {times}, "
            f"{faster:.2f} times faster"
        )
    return (
        f"at {judged} the exits cost {-point.saved_ms:.2g} ms on average: {times}; without a "
        "deadline the unsplit network is the better choice here"
    )
