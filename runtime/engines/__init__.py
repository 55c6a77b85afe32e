"""Engines by name. To add one: a file with an `Engine`, and a line here; imported when used."""

from __future__ import annotations

from importlib import import_module

from mate_edge.bundle import Bundle
from mate_edge.names import look_up
from mate_edge.runtime.engines.engine import Engine

ENGINES: dict[str, str] = {
    "onnxruntime": "mate_edge.runtime.engines.onnxruntime:OnnxRuntimeEngine",
    "tensorrt": "mate_edge.runtime.engines.tensorrt:TensorRTEngine",
    "tensorrt_rtx": "mate_edge.runtime.engines.tensorrt:TensorRTRTXEngine",
}
"""In the order in which they are tried."""


def make_engine(name: str | None, bundle: Bundle, threads: int | None, shared_pool: bool) -> Engine:
    """Make the engine called `name`, or the first usable one.

    Raises:
        UsageError: an unknown name.
    """
    path = look_up("--engine", name, ENGINES) if name else next(iter(ENGINES.values()))
    module, _, kind = path.partition(":")
    engine: Engine = getattr(import_module(module), kind)(
        bundle, threads=threads, shared_pool=shared_pool
    )
    return engine
