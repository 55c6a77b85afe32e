"""Engines that are built on the device: the command line builds what is missing, and says so."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineNotBuilt
from mate_edge.runtime.engines import Say

T = TypeVar("T")


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
        import_module("mate_edge.runtime.build").build_engines(bundle, say=say)
        return use()
