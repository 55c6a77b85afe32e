"""Engines by name. To add one: a file with an `Engine`, and a line here; imported when used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError
from mate_edge.machine import check_threads, has_nvidia_gpu
from mate_edge.names import look_up
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.fastest import read_fastest
from mate_edge.stop import was_interrupted
from mate_edge.warn import warn

Say = Callable[[str], object]

ENGINES: dict[str, str] = {
    "onnxruntime": "mate_edge.runtime.engines.onnxruntime:OnnxRuntimeEngine",
    "openvino": "mate_edge.runtime.engines.openvino:OpenVinoEngine",
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

ON_CPU = tuple(name for name in ENGINES if name not in NEEDS)
"""The engines that need no GPU; but for `EVERYWHERE`, each is an extra and imports its own name."""


def make_engine(name: str | None, bundle: Bundle, threads: int | None, shared_pool: bool) -> Engine:
    """Make the engine called `name`, or the one that `choose_engine` chooses.

    Raises:
        UsageError: an unknown name, or a number of threads that makes no sense.
        EngineError: it cannot be had here; the message says what to do.
    """
    check_threads(threads)
    name = choose_engine(bundle, warn) if name is None else name
    module, _, kind = look_up("--engine", name, ENGINES).partition(":")
    if name in ON_CPU and name != EVERYWHERE and not _importable(name):
        raise EngineError(f"{name} is not installed: pip install 'mate-edge[{name}]'")
    try:
        found = import_module(module)
    except (ImportError, OSError) as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from None
        other = "" if name == EVERYWHERE else f", or give --engine {EVERYWHERE}"
        raise EngineError(
            f"{name} is installed, but cannot be imported ({error}): install it again{other}"
        ) from None
    engine: Engine = getattr(found, kind)(bundle, threads=threads, shared_pool=shared_pool)
    return engine


def choose_engine(bundle: Bundle, say: Say = warn) -> str:
    """Return the name of the engine that the bundle was exported for, if it is usable here.

    On a CPU that is the one that `mate-edge build` found to be the fastest here, else onnxruntime.
    Without a GPU that is onnxruntime, which runs every bundle, and `say` is told so. With a GPU
    there is no falling back: who bought one wants to hear why it is not used.

    Raises:
        EngineError: there is a GPU, but not what the engine needs beside it.
    """
    name = bundle.manifest.build.engine
    if name not in NEEDS:
        fastest = read_fastest(bundle)
        return fastest if fastest is not None and fastest in installed_engines(bundle) else name
    if not has_nvidia_gpu():
        precision = bundle.manifest.precision
        slower = "" if precision == "fp32" else ", more slowly than fp32 ones would"
        say(
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


def installed_engines(bundle: Bundle) -> list[str]:
    """Return the names of the engines that can run the bundle on this machine, its own first.

    Only what can be imported is looked at: an engine on a GPU may still have to be built.
    """
    name = bundle.manifest.build.engine
    if name not in NEEDS:
        return [engine for engine in ON_CPU if engine == EVERYWHERE or _importable(engine)]
    usable = has_nvidia_gpu() and all(any(map(_importable, group)) for group in NEEDS[name])
    return [name, EVERYWHERE] if usable else [EVERYWHERE]


def _importable(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is missing
        return False
