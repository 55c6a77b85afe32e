"""The acceptance of a bundle on a device: the record that is kept, and how it is printed."""

from __future__ import annotations

import msgspec

from mate_edge.times import Times


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One exit's logits beside the reference's, over the golden images.

    Attributes:
        images: n.
        agree: how many have the reference's top-1 answer.
        excused: of the others, those where the reference itself hesitates between its two best by
            less than the tolerance.
        difference: the largest of a logit; None when one is no number.
        share: `difference` over the reference's largest logit: the tolerance that would pass.
        allowed: the tolerance that was applied to `share`.
    """

    images: int
    agree: int
    excused: int
    difference: float | None
    share: float | None
    allowed: float

    @property
    def answers_agree(self) -> bool:
        """Whether every top-1 answer is the reference's or excused."""
        return self.agree + self.excused == self.images

    @property
    def passed(self) -> bool:
        """Whether answers and logits are the reference's."""
        return self.share is not None and self.answers_agree and self.share <= self.allowed


class ExitVerification(msgspec.Struct, frozen=True, kw_only=True):
    """One exit: chained behind the other segments, its segment alone, in a batch, and its times.

    What was not compared is None: `alone` where onnxruntime is no reference, `batch` where the
    engine takes one image at a time.
    """

    chained: Comparison
    alone: Comparison | None
    batch: Comparison | None
    times: Times


class PointVerification(msgspec.Struct, frozen=True, kw_only=True):
    """How many golden images take the reference's exit at an operating point; see `Comparison`."""

    images: int
    agree: int
    excused: int

    @property
    def passed(self) -> bool:
        """Whether every image takes the reference's exit or is excused."""
        return self.agree + self.excused == self.images


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """`verification.json` of the device state.

    Attributes:
        accepted: the verdict.
        refusals: why not, in the order of the checks; empty when accepted.
        remarks: what the owner should know all the same.
        exits: empty when a segment failed, as are `operating_points`.
        graphs: whether segments ran as CUDA graphs, `on`, or `off:` and why; empty on a CPU.
        segments_ms: all segments of one image.
        unsplit_ms: the unsplit network in the same engine.
    """

    accepted: bool
    refusals: tuple[str, ...]
    remarks: tuple[str, ...]
    bundle: str
    bundle_id: str
    precision: str
    engine: str
    device: str
    device_key: str
    versions: dict[str, str]
    gpu: str | None = None
    created: str
    max_batch: int
    exits: tuple[ExitVerification, ...] = ()
    operating_points: dict[str, PointVerification] = {}
    graphs: str = ""
    segments_ms: Times | None = None
    unsplit_ms: Times | None = None


def print_verification(found: Verification) -> None:
    """Print the verdict, then the figures behind it."""
    from mate_edge.report.text import print_table

    for refusal in found.refusals:
        print(f"refused: {refusal}")
    if found.accepted:
        print(f"accepted: {found.bundle} on {found.device}")
    for remark in found.remarks:
        print(f"note: {remark}")
    if not found.exits:
        return
    batch = any(exit_.batch for exit_ in found.exits)
    rows = []
    for k, exit_ in enumerate(found.exits, start=1):
        compared = [exit_.chained, exit_.alone, *[exit_.batch] * batch]
        rows.append(
            [
                f"exit {k}",
                _of(exit_.chained),
                *map(_share, compared),
                f"{exit_.chained.allowed:g}",
                *_ms(exit_.times),
            ]
        )
    blanks = [""] * (len(rows[0]) - 3)
    for name, times in (("all segments", found.segments_ms), ("unsplit", found.unsplit_ms)):
        if times is not None:
            rows.append([name, *blanks, *_ms(times)])
    samples = found.exits[0].times.samples
    tail = "p90 ms" if found.exits[0].times.p90_ms is not None else f"max ms of {samples}"
    headers = ["", "top-1", "chained", "alone"]
    headers += ["in a batch"] * batch + ["allowed", "median ms", tail]
    precision = found.precision
    print_table(f"differences as shares of the largest logit, {precision}", headers, rows)
    if found.operating_points:
        rows = [[name, _of(point)] for name, point in found.operating_points.items()]
        print_table("", ["operating point", "same exit"], rows)
    print(f"golden images: {found.exits[0].chained.images}; times: warm, batch 1, n = {samples}")
    if found.graphs:
        print(f"CUDA graphs: {found.graphs}")


def _of(found: Comparison | PointVerification) -> str:
    excused = f" ({found.excused} excused)" if found.excused else ""
    return f"{found.agree}/{found.images}{excused}"


def _share(found: Comparison | None) -> str:
    return "-" if found is None or found.share is None else f"{found.share:.1e}"


def _ms(times: Times) -> list[str]:
    tail = times.max_ms if times.p90_ms is None else times.p90_ms
    return [f"{times.median_ms:.3f}", f"{tail:.3f}"]
