"""Engines by name. To add one: a file with an `Engine`, and a line here; imported when used."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError
from mate_edge.machine import has_nvidia_gpu
from mate_edge.names import look_up
from mate_edge.runtime.engines.engine import Engine

Say = Callable[[str], object]

ENGINES: dict[str, str] = {
    "onnxruntime": "mate_edge.runtime.engines.onnxruntime:OnnxRuntimeEngine",
    "tensorrt": "mate_edge.runtime.engines.tensorrt:TensorRTEngine",
    "tensorrt_rtx": "mate_edge.runtime.engines.tensorrt:TensorRTRTXEngine",
}

EVERYWHERE = "onnxruntime"
"""The engine that needs no GPU and runs every bundle."""

NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tensorrt": (("tensorrt",), ("cuda.bindings", "pycuda")),
    "tensorrt_rtx": (("tensorrt_rtx",), ("cuda.bindings", "pycuda")),
}
"""What an engine on a GPU imports: of each group, any one."""


def make_engine(
    name: str | None,
    bundle: Bundle,
    threads: int | None,
    shared_pool: bool,
    warn: Say = warnings.warn,
) -> Engine:
    """Make the engine called `name`, or the one that `choose_engine` chooses.

    Raises:
        UsageError: an unknown name.
        EngineError: it cannot be had here; the message says what to do.
    """
    name = name or choose_engine(bundle, warn)
    module, _, kind = look_up("--engine", name, ENGINES).partition(":")
    engine: Engine = getattr(import_module(module), kind)(
        bundle, threads=threads, shared_pool=shared_pool
    )
    return engine


def choose_engine(bundle: Bundle, warn: Say = warnings.warn) -> str:
    """Return the name of the engine that the bundle was exported for, if it is usable here.

    Without a GPU that is onnxruntime, which runs every bundle, and `warn` is told so. With a GPU
    there is no falling back: who bought one wants to hear why it is not used.

    Raises:
        EngineError: there is a GPU, but not what the engine needs beside it.
    """
    name = bundle.manifest.build.engine
    if name not in NEEDS:
        return name
    if not has_nvidia_gpu():
        precision = bundle.manifest.precision
        slower = "" if precision == "fp32" else ", more slowly than fp32 ones would"
        warn(
            f"no NVIDIA GPU here: {EVERYWHERE} on the CPU runs the {precision} segments instead"
            f"{slower}"
        )
        return EVERYWHERE
    missing = [" or ".join(group) for group in NEEDS[name] if not any(map(_importable, group))]
    if missing:
        raise EngineError(
            f"this machine has an NVIDIA GPU, but {' and '.join(missing)} cannot be imported: "
            f"type mate-edge doctor to see how to get it, or give --engine {EVERYWHERE}"
        )
    return name


def _importable(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is missing
        return False
