"""Engines that are built on the device: the command line builds what is missing, and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineNotBuilt
from mate_edge.runtime.engines import Say

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
        from mate_edge.runtime.build import build_engines

        bar = Bar()
        build_engines(bundle, say=bar.say, progress=bar.show)
        return use()


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
