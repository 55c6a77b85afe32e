"""What `mate-edge bench` found on a device: the figures, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mate_edge.times import Times

UNSPLIT = "unsplit"


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One contender in one way of running, from the encoded image in memory to the label.

    Attributes:
        times: of all rounds.
        mean_ms: of the same.
        exit_shares: of the images shown, which are few; empty for the unsplit network.
    """

    times: Times
    mean_ms: float
    exit_shares: tuple[float, ...] = ()


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one prediction through all segments goes."""

    decode: Times
    preprocess: Times
    segments: tuple[Times, ...]
    rest: Times
    unsplit: Times
    """The unsplit network alone, without decoding and preprocessing."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What an operating point takes if images leave as those of the validation split did.

    Attributes:
        exit_shares: on the validation images.
        expected_ms: the exits' medians, weighted by these shares.
        saved_ms: beside the unsplit network's median; below 0: it costs.
    """

    exit_shares: tuple[float, ...]
    expected_ms: float
    saved_ms: float


class ExitPays(msgspec.Struct, frozen=True, kw_only=True):
    """What an early exit brings at the operating point that is judged.

    Attributes:
        exit: its number.
        leave: the share of images that leave there.
        saved_ms: of an image on average: the best network with it against the best without it.
    """

    exit: int
    leave: float
    saved_ms: float


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on this device.

    Attributes:
        verdict: the answer first, in words.
        diagnoses: what is wrong or remarkable, in words, with what to do.
        images: how many different ones were shown.
        source: which ones.
        max_ms: the deadline that the verdict is about.
        fps: at which `paced` ran; None: it did not.
        load: busy processes beside it.
        back_to_back: by the contenders' names.
        paced: the same contenders at `fps` predictions a second; empty without.
        parts: of the paced rounds if there are any.
        judged: the operating point that the verdict and `exits` are about; None: there is none.
        ceiling: the unsplit network's median over segment 1's.
        keep: the exits worth keeping, and the last one.
        kept: whether the rounds went into the device state, for deadlines to rest on.
    """

    verdict: tuple[str, ...]
    diagnoses: tuple[str, ...]
    bundle: str
    bundle_id: str
    target: str
    precision: str
    engine: str
    device: str
    created: str
    images: int
    source: str
    max_ms: float | None
    fps: float | None
    load: int
    back_to_back: dict[str, Contender]
    paced: dict[str, Contender]
    parts: Parts
    points: dict[str, Point]
    judged: str | None
    exits: tuple[ExitPays, ...]
    keep: tuple[int, ...]
    ceiling: float
    kept: bool


def tail(times: Times) -> tuple[float, str]:
    """Return the 99th percentile and its name, or the maximum where there are too few samples."""
    if times.p99_ms is not None:
        return times.p99_ms, "p99"
    return times.max_ms, f"max of {times.samples}"


def print_bench(found: Bench) -> None:
    """Print the verdict, then what is wrong, then the figures."""
    from mate_edge.report.text import print_table

    for line in found.verdict:
        print(line)
    for line in found.diagnoses:
        print(f"note: {line}")
    print(f"{found.bundle}: {found.device}")
    phases = [("one after another", found.back_to_back)]
    if found.paced:
        phases.append((f"{found.fps:g} a second", found.paced))
    for how, contenders in phases:
        _print_contenders(f"ms from the encoded image to the label, {how}", contenders)
    parts = found.parts
    named = [("decode", parts.decode), ("preprocess", parts.preprocess)]
    named += [(f"segment {k}", times) for k, times in enumerate(parts.segments, start=1)]
    named += [("the rest", parts.rest), ("unsplit network", parts.unsplit)]
    some = parts.rest
    rows = [[name, *_cells(times)] for name, times in named]
    print_table("where it goes, all segments", ["", *_headers(some)], rows)
    if found.points:
        rows = [
            [
                name,
                " ".join(f"{100 * share:.0f}" for share in point.exit_shares),
                f"{point.expected_ms:.3f}",
                f"{point.saved_ms:+.3f}",
            ]
            for name, point in found.points.items()
        ]
        headers = ["operating point", "exits' shares %", "expected ms", "saved ms"]
        print_table("if images leave as the validation images did", headers, rows)
    print(f"images: {found.images}, {found.source}; batch 1, warm, contenders in turns")
    if found.kept:
        paced = "paced" if found.paced else "back-to-back"
        print(f"deadlines on this device rest on the {paced} rounds from now on")


def print_engines(found: Sequence[Bench]) -> None:
    """Print what several engines take side by side; they ran in the same rounds."""
    from mate_edge.report.text import print_table

    rows = []
    for bench in found:
        contenders = bench.paced or bench.back_to_back
        expected = bench.points[bench.judged].expected_ms if bench.judged else None
        rows.append(
            [
                bench.device,
                f"{contenders[UNSPLIT].times.median_ms:.3f}",
                f"{contenders['deepest'].times.median_ms:.3f}",
                "-" if expected is None else f"{expected:.3f}",
            ]
        )
    judged = next((bench.judged for bench in found if bench.judged), "no operating point")
    headers = ["engine", "unsplit ms", "deepest ms", f"{judged}, expected ms"]
    print_table("engines, medians", headers, rows)
    print("--engine NAME takes one of them; mate-edge build remembers the fastest of a CPU's")


def _print_contenders(title: str, contenders: dict[str, Contender]) -> None:
    from mate_edge.report.text import print_table

    some = contenders[UNSPLIT].times
    rows = [
        [
            name,
            f"{contender.mean_ms:.3f}",
            *_cells(contender.times),
            " ".join(f"{100 * share:.0f}" for share in contender.exit_shares) or "-",
        ]
        for name, contender in contenders.items()
    ]
    print_table(title, ["", "mean", *_headers(some), "exits here %"], rows)


def _headers(some: Times) -> list[str]:
    headers = ["median"] + ["p90"] * (some.p90_ms is not None) + ["p99"] * (some.p99_ms is not None)
    return headers if some.p99_ms is not None else [*headers, f"max of {some.samples}"]


def _cells(times: Times) -> list[str]:
    found = [ms for ms in (times.median_ms, times.p90_ms, times.p99_ms) if ms is not None]
    if times.p99_ms is None:
        found.append(times.max_ms)
    return [f"{ms:.3f}" for ms in found]
