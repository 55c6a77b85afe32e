"""`mate-edge build`: options in, a line an engine and a bar out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import msgspec

from mate_edge.bundle import find_bundle, read_bundle
from mate_edge.errors import UsageError
from mate_edge.runtime.build import build_engines, parse_capabilities, parse_frame

BAR = 30  # characters


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
    size = parse_frame(frame, "bgr" if color == "bgr" else "rgb")
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


class Bar:
    """A bar that grows on a terminal's last line; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def say(self, line: str) -> None:
        """Print a line in the bar's place."""
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def show(self, what: str, share: float) -> None:
        """Draw the bar at `share`, 0 to 1."""
        filled = int(share * BAR)
        text = f"{what} [{'#' * filled}{' ' * (BAR - filled)}] {share:4.0%}"
        if sys.stderr.isatty() and text != self._shown:
            self._clear()
            print(text, end="", file=sys.stderr, flush=True)
            self._shown = text

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr)
            self._shown = ""
