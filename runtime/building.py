"""Engines that are built on the device: the command line builds what is missing, and says so."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, EngineNotBuilt
from mate_edge.runtime.engines import NEEDS, Say, choose_engine

T = TypeVar("T")
BAR = 30  # characters


def build_if_needed(bundle: Bundle, use: Callable[[], T], say: Say) -> T:
    """Return `use()`; when it needs an engine that is not built yet, build them and try again.

    Args:
        bundle: whose engines `use` makes or opens.
        use: called a second time, from its start, after building.
        say: told what is going on.

    Raises:
        EngineError: they cannot be built.
    """
    try:
        return use()
    except EngineNotBuilt:
        say(f"the engines of {bundle.folder} are not built on this device: building them, once")
        _build(bundle, say)
        return use()


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
    try:
        usable = choose_engine(bundle, lambda line: None) in NEEDS
    except EngineError:  # a GPU without TensorRT: no reason to fail an export
        return False
    if usable:
        _build(bundle, say)
    return usable


def _build(bundle: Bundle, say: Say) -> None:
    from mate_edge.runtime.build import build_engines

    bar = Bar(say)
    build_engines(bundle, say=bar.say, progress=bar.show)


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
