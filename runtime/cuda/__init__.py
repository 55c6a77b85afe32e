"""CUDA from Python. To add a backend: a file with a `Cuda`, and a line here; imported when used."""

from __future__ import annotations

from importlib import import_module

from mate_edge.errors import EngineError
from mate_edge.runtime.cuda.cuda import Cuda

BACKENDS: dict[str, str] = {
    "cuda-bindings": "mate_edge.runtime.cuda.bindings:Bindings",
    "pycuda": "mate_edge.runtime.cuda.pycuda:PyCuda",
}
"""In the order in which they are tried."""

INSTALL = "pip install 'mate-edge[cuda12]' (JetPack 6, CUDA 12) or 'mate-edge[cuda13]'"


def open_cuda() -> Cuda:
    """Return the first backend that works.

    Raises:
        EngineError: none is installed, or none finds a GPU that it can use.
    """
    failed: list[EngineError] = []
    for path in BACKENDS.values():
        module, _, kind = path.partition(":")
        try:
            backend: Cuda = getattr(import_module(module), kind)()
        except ImportError:  # not installed, or without the driver's library that it is linked to
            continue
        except EngineError as error:
            failed.append(error)
        else:
            return backend
    if failed:
        raise failed[0]
    raise EngineError(f"neither {' nor '.join(BACKENDS)} can be imported: {INSTALL}")
