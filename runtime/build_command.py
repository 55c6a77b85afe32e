"""`mate-edge build`, and the commands that build what is missing and say so.

What builds is imported when it is needed: `run` mostly finds everything built.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from mate_edge.bundle import Bundle, find_bundle, read_bundle
from mate_edge.errors import EngineError, EngineNotBuilt, UsageError
from mate_edge.runtime.engines import EVERYWHERE, NEEDS, Say, choose_engine

T = TypeVar("T")
BAR = 30  # characters


def build_bundle(
    bundle: Path | None,
    max_batch: int | None,
    compute_capability: str | None,
    frame: str | None,
    color: str | None,
    force: bool,
    json: bool,
) -> None:
    """Build the engines of a bundle; print JSON lines on stdout, or what was done on stderr.

    Raises:
        MateEdgeError: as `find_bundle`, `read_bundle` and `build_engines`, or options that cannot
            be read.
    """
    from mate_edge.runtime.build import build_engines, parse_capabilities
    from mate_edge.runtime.frames import parse_frame
    from mate_edge.runtime.plans import FrameFormat

    if color not in (None, "rgb", "bgr"):
        raise UsageError(f"--color must be rgb or bgr, not {color!r}")
    if color is not None and frame is None:
        raise UsageError("--color goes with --frame")
    size = None
    if frame is not None:
        width, height = parse_frame(frame)
        size = FrameFormat(width=width, height=height, color="bgr" if color == "bgr" else "rgb")
    capabilities = parse_capabilities(compute_capability)
    opened = read_bundle(find_bundle(bundle))
    bar = Bar()
    report = build_engines(
        opened,
        max_batch=max_batch,
        capabilities=capabilities,
        frame=size,
        force=force,
        say=bar.say,
        progress=bar.show,
    )
    if json:
        for engine in report.engines:
            line = {**asdict(engine), "path": str(engine.path)}
            print(msgspec.json.encode(line).decode())


def build_if_needed(
    bundle: Bundle,
    engine: str,
    use: Callable[[], T],
    say: Say,
    unsplit: bool = False,
    lazy: bool = False,
) -> T:
    """Return `use()`; when it needs an engine that is not built yet, build them and try again.

    Args:
        bundle: whose engines `use` makes or opens.
        engine: their name.
        use: called a second time, from its start, after building.
        say: told what is going on.
        unsplit: whether `use` needs the unsplit network, too.
        lazy: build only what `use` cannot do without, see `join_if_needed`.

    Raises:
        BundleError: a file of the bundle is missing or altered.
        EngineError: they cannot be built.
    """
    if not lazy:
        join_if_needed(bundle, engine, say)
    try:
        return use()
    except EngineNotBuilt:
        say(f"the engines of {bundle.folder} are not built on this device: building them, once")
        _build(bundle, say, unsplit)
        return use()


def join_if_needed(bundle: Bundle, engine: str, say: Say) -> None:
    """Let the segments of a bundle for the CPU hand over features as this CPU computes them, once.

    What is measured of them is void when it is done later. Only said when it fails: they run as
    they were exported, too.

    Args:
        bundle: an opened bundle.
        engine: that will run it; there is nothing to do for others than onnxruntime.
        say: told what is going on.

    Raises:
        BundleError: a file of the bundle is missing or altered.
    """
    for_gpu = bundle.manifest.build.engine in NEEDS
    if engine != EVERYWHERE or for_gpu or len(bundle.manifest.segments) < 2:
        return
    from mate_edge.runtime.engines.blocked import read_blocked

    if read_blocked(bundle) is None:
        from mate_edge.runtime.join import try_blocked

        try_blocked(bundle, False, say)


def build_at_once(bundle: Bundle, machine: str | None, say: Say) -> bool:
    """Build the engines of a bundle that was just exported, if this machine can run them.

    Args:
        bundle: opened.
        machine: what `platform.machine()` must say; None: anything.
        say: told what is going on.

    Returns:
        Whether they are there now.

    Raises:
        EngineError: they cannot be built although GPU and libraries are there.
    """
    if machine not in (None, platform.machine()):
        return False
    join_if_needed(bundle, EVERYWHERE, say)
    try:
        usable = choose_engine(bundle, lambda line: None) in NEEDS
    except EngineError:  # a GPU without TensorRT: no reason to fail an export
        return False
    if usable:
        _build(bundle, say, unsplit=True)
    return usable


def _build(bundle: Bundle, say: Say, unsplit: bool) -> None:
    from mate_edge.runtime.build import build_engines

    bar = Bar(say)
    build_engines(bundle, unsplit=unsplit, say=bar.say, progress=bar.show)


class Bar:
    """A bar that grows on a terminal's last line; nothing where stderr is no terminal.

    Args:
        say: prints the lines between; on stderr when None.
    """

    def __init__(self, say: Say | None = None) -> None:
        self._shown, self._say = "", say or partial(print, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line in the bar's place."""
        self.clear()
        self._say(line)

    def show(self, what: str, share: float) -> None:
        """Draw the bar at `share`, 0 to 1."""
        filled = int(share * BAR)
        text = f"{what} [{'#' * filled}{' ' * (BAR - filled)}] {share:4.0%}"
        if sys.stderr.isatty() and text != self._shown:
            self.clear()
            print(text, end="", file=sys.stderr, flush=True)
            self._shown = text

    def clear(self) -> None:
        """Take the bar away."""
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr)
            self._shown = ""
