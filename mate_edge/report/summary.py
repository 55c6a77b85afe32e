"""The figures of a report, for `--json`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mate_edge import files
from mate_edge.report.content import Content
from mate_edge.report.figures import Figures, PointFigures


class ExitSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One exit; see `ExitFigures`."""

    accuracy: float
    cumulative_flops: int
    temperature: float
    ece: float
    calibrated_ece: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `report --json` prints.

    Attributes:
        report: the file or folder.
        verdict: its sentences, the headline first.
        images: how many the figures are counted on.
        whole_flops: of the network without exits.
        exits: one an exit.
        points: the operating points, by name.
    """

    report: str
    kind: str
    name: str
    verdict: tuple[str, ...]
    images: int
    whole_flops: int
    exits: tuple[ExitSummary, ...]
    points: dict[str, PointFigures]


def summarize(content: Content, found: Figures, where: Path) -> Summary:
    """Sum up a report that was written to `where`."""
    return Summary(
        report=files.shown(where),
        kind=content.kind,
        name=content.name,
        verdict=(content.verdict.headline, *content.verdict.lines),
        images=found.images,
        whole_flops=found.whole_flops,
        exits=tuple(
            ExitSummary(
                accuracy=exit_.accuracy,
                cumulative_flops=exit_.cumulative_flops,
                temperature=exit_.temperature,
                ece=exit_.ece,
                calibrated_ece=exit_.calibrated_ece,
            )
            for exit_ in found.exits
        ),
        points=found.points,
    )
