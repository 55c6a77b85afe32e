"""`mate-edge build`: options in, a line an engine and a bar out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from mate_edge.bundle import find_bundle, read_bundle
from mate_edge.errors import UsageError
from mate_edge.runtime.build import build_engines, parse_capabilities
from mate_edge.runtime.building import Bar
from mate_edge.runtime.frames import parse_frame
from mate_edge.runtime.plans import Frame


def build_bundle(
    bundle: Path | None,
    max_batch: int | None,
    compute_capability: str | None,
    frame: str | None,
    color: str,
    json: bool,
) -> None:
    """Build the engines of a bundle; print JSON lines on stdout, or what was done on stderr.

    Raises:
        MateEdgeError: as `find_bundle`, `read_bundle` and `build_engines`, or options that cannot
            be read.
    """
    if color not in ("rgb", "bgr"):
        raise UsageError(f"--color must be rgb or bgr, not {color!r}")
    size = None
    if frame is not None:
        width, height = parse_frame(frame)
        size = Frame(width=width, height=height, color="bgr" if color == "bgr" else "rgb")
    capabilities = parse_capabilities(compute_capability)
    opened = read_bundle(find_bundle(bundle))
    bar = Bar()
    report = build_engines(
        opened,
        max_batch=max_batch,
        capabilities=capabilities,
        frame=size,
        say=bar.say,
        progress=bar.show,
    )
    if json:
        for engine in report.engines:
            line = {**asdict(engine), "path": str(engine.path)}
            print(msgspec.json.encode(line).decode())
