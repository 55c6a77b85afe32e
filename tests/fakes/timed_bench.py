"""Benches on a clock of their own: engines whose segments take what is said."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import msgspec
from PIL import Image
from timed import Clock, TimedEngine

from mate_edge.bundle import Bundle
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench.subjects import Subject
from mate_edge.runtime.predictor import Predictor


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), 90).save(buffer, "PNG")
    return buffer.getvalue()


def subject(
    bundle: Bundle, clock: Clock, segments_ms: list[float], unsplit_ms: float, name: str = "a test"
) -> Subject:
    pair = [
        Predictor(TimedEngine(one, clock, ms), "deepest", clock)
        for one, ms in ((bundle, segments_ms), (bundle.unsplit(), [unsplit_ms]))
    ]
    return Subject(name, *pair)


def with_shares(bundle: Bundle, *shares: float) -> Bundle:
    """Return the bundle with operating points whose images left so on the validation split."""
    points = {
        name: msgspec.structs.replace(point, val_exit_shares=shares)
        for name, point in bundle.manifest.operating_points.items()
    }
    return replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, operating_points=points)
    )


Measure = Callable[..., Bench]
