"""What an operating point promises, in words, and what `mate-edge tune` prints."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mate_edge import __version__
from mate_edge.bundle import Guarantee, Manifest, OperatingPoint
from mate_edge.decide.drift import FINE

SCHEMA = 1

LOST = {
    "worse": "wrong where the last exit is right",
    "differs": "other ones than the last exit's",
}

IN_TIME = "whether an answer is in time is no part of it"
"""What a guarantee together with a deadline does not say."""


class TunedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The file of an operating point.

    Attributes:
        name: what `run --policy` calls it.
        bundle: the id of the bundle that it is for.
        goal: what was asked for, in the words of the command line.
        last_accuracy: the last exit's on the samples that `point` is reported on.
        samples: how many those are: the half of the images that chose nothing.
        images: the folder of the labelled images that chose and certified it; None: the bundle's
            validation images.
        images_sha256: of these images; None for the bundle's.
        confidences: how sure exit 1 was of them, counted as `decide.drift` does; empty for the
            bundle's. What the policy sees later is compared with it.
        mean_ms: of a prediction on the device that was measured; None when none was.
    """

    schema: int = SCHEMA
    name: str
    bundle: str
    goal: str
    point: OperatingPoint
    last_accuracy: float
    samples: int
    images: str | None = None
    images_sha256: str | None = None
    confidences: tuple[int, ...] = ()
    mean_ms: float | None = None
    created: str
    version: str = __version__

    def __post_init__(self) -> None:
        if self.confidences and (len(self.confidences) != FINE or min(self.confidences) < 0):
            raise ValueError(f"confidences must be {FINE} counts, or none")


def bound(guarantee: Guarantee) -> str:
    """Say what is bounded, of which images, and how surely: one clause."""
    like = f"on images like the {guarantee.n} held back"
    if guarantee.rounds is not None:
        like += f" and in times like those of {guarantee.rounds} measured rounds"
    lost = f"{like}, at most {100 * guarantee.epsilon:.6g} % of answers are {LOST[guarantee.loss]}"
    if guarantee.delta is None:
        return f"{lost} on average over such sets of {guarantee.n}, which says less of this one set"
    return f"{lost}, with {100 * (1 - guarantee.delta):.6g} % confidence"


def promise(guarantee: Guarantee) -> str:
    """Say what is guaranteed, and what becomes of it under a deadline."""
    said = bound(guarantee)
    if guarantee.max_ms is None:
        return f"{said}; a deadline voids this"
    return (
        f"{said}, under a deadline of {guarantee.max_ms:g} ms or longer, or none, on this device "
        f"while it is as fast as it was measured; a shorter deadline voids this, and {IN_TIME}"
    )


def fewer(whole: float, flops: float) -> str:
    """Compare FLOPs with those of the whole network, in words."""
    return (
        f"{whole / flops:.2f} times fewer" if flops <= whole else f"{flops / whole:.2f} times more"
    )


def threshold(value: float) -> str:
    """Format a threshold; above 1 no score reaches it."""
    return f"{value:.4f}" if value <= 1 else "never"


def print_kept(kept: Mapping[str, TunedPoint | None], manifest: Manifest) -> None:
    """Print the operating points stored on this device; None stands for a damaged one."""
    from mate_edge.report.text import percent, print_table

    rows = []
    for name, found in kept.items():
        if found is None:
            rows.append([name, "damaged, or of another version: tune it again", *[""] * 4])
            continue
        point, whole = found.point, manifest.unsplit_flops
        rows.append(
            [
                name,
                found.goal,
                percent(point.val_accuracy),
                f"{whole / point.val_mean_flops:.2f}x",
                "no" if point.guarantee is None else "yes",
                found.created[:10],
            ]
        )
    headers = ["name", "goal", "accuracy %", "fewer FLOPs", "guaranteed", "tuned"]
    print_table(f"{manifest.name}, stored on this device", headers, rows)


def print_tuned(found: TunedPoint, manifest: Manifest) -> None:
    """Print thresholds, what they did on the samples held back, and what is guaranteed."""
    from mate_edge.report.text import count, percent, print_table

    point: OperatingPoint = found.point
    temperatures = point.parameters["temperatures"]
    thresholds = [threshold(value) for value in point.parameters["thresholds"]]
    rows = [
        [f"exit {k}", f"{temperature:.3f}", leaves, percent(share)]
        for k, (temperature, leaves, share) in enumerate(
            zip(temperatures, [*thresholds, "-"], point.val_exit_shares, strict=True), start=1
        )
    ]
    headers = ["", "temperature", "leaves from", "share %"]
    print_table(f"{manifest.name}, {point.policy}, {found.goal}", headers, rows)
    whose = "validation images" if found.images is None else f"images of {found.images}"
    drop = 100 * (found.last_accuracy - point.val_accuracy)
    flops = point.val_mean_flops
    guarantee = point.guarantee
    under = None
    if guarantee and guarantee.max_ms:
        under = f", each as deep as the measured rounds surely go in {guarantee.max_ms:g} ms"
    print(
        f"on the {found.samples} {whose} held back{under or ''}: accuracy "
        f"{percent(point.val_accuracy)} %, {abs(drop):.2f} points "
        f"{'below' if drop >= 0 else 'above'} the last exit; mean {count(flops)} FLOPs, "
        f"{fewer(manifest.unsplit_flops, flops)} than unsplit"
        + ("" if found.mean_ms is None else f"; mean {found.mean_ms:.3g} ms on this device")
    )
    if guarantee is None:
        print("guaranteed: nothing; the thresholds are a search on the other half")
    else:
        print(f"guaranteed: {promise(guarantee)}")
        print(f"            ({guarantee.losses} of {guarantee.n} were lost)")
