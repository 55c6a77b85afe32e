"""The fakes have the signatures of NVIDIA's own bindings, as far as those are installed."""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import Runtime, make_runtime
from fake_gpu import FakeGpu
from fake_tensorrt import make_tensorrt

TENSORRT = ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy")
CLASSES = ("ILogger", "Runtime", "ICudaEngine", "IExecutionContext")


def signatures(documentation: str, name: str) -> Iterator[list[str]]:
    """Yield the parameters' names of each overload in a pybind11 docstring."""
    for found in re.finditer(rf"\b{name}\(self: [^,)]+(.*)\) ->", documentation):
        yield re.findall(r", (\w+): ", re.sub(r"\[[^\]]*\]", "", found[1]))


def fake_members() -> list[tuple[str, str]]:
    module: Any = make_tensorrt(FakeGpu())
    return [
        (kind, name)
        for kind in CLASSES
        for name, member in vars(getattr(module, kind)).items()
        if not name.startswith("_") and inspect.isfunction(member)
    ]


@pytest.mark.parametrize(("kind", "name"), fake_members())
def test_a_fake_method_takes_what_tensorrts_takes(kind: str, name: str) -> None:
    real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    documentation = getattr(getattr(real, kind), name).__doc__
    fake = inspect.signature(getattr(getattr(make_tensorrt(FakeGpu()), kind), name))
    mine = list(fake.parameters)[1:]
    theirs = list(signatures(documentation, name))
    assert theirs, documentation
    assert any(overload == mine for overload in theirs), (mine, theirs)


def test_fake_attributes_and_enumerations_are_tensorrts() -> None:
    real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    fake: Any = make_tensorrt(FakeGpu())
    for kind in TENSORRT:
        for member in getattr(fake, kind):
            assert hasattr(getattr(real, kind), member.name), f"{kind}.{member.name}"
    for name in ("device_memory_size_v2", "num_io_tensors"):
        assert isinstance(inspect.getattr_static(real.ICudaEngine, name), property)
    for name in ("ERROR", "INTERNAL_ERROR"):
        assert hasattr(real.ILogger, name)
    strategy = real.ICudaEngine.create_execution_context.__doc__
    assert "(self: " in strategy
    assert ", strategy: " in strategy


def runtime_functions() -> list[str]:
    return [name for name in vars(Runtime) if name.startswith("cuda")]


@pytest.mark.parametrize("name", runtime_functions())
def test_a_fake_function_takes_what_cudas_takes(name: str) -> None:
    real = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    documentation = getattr(real, name).__doc__
    first = documentation.splitlines()[0]
    inside = first[first.index("(") + 1 : first.rindex(")")]
    theirs = [part.split(":")[0].split()[-1] for part in inside.split(",") if part.strip()]
    mine = list(inspect.signature(getattr(Runtime, name)).parameters)[1:]
    assert mine == theirs
    results = documentation.partition("Returns\n-------\n")[2].partition("\n\n")[0]
    returned = [line for line in results.splitlines() if line and not line.startswith(" ")]
    assert returned[0].startswith("cudaError_t") or name == "cudaGetErrorString"
    gives_a_value = inspect.signature(getattr(Runtime, name)).return_annotation != "None"
    assert len(returned) == 1 + gives_a_value, returned


def test_fake_constants_are_cudas() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    fake: Any = make_runtime(FakeGpu())
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        for member in getattr(fake, kind):
            assert int(getattr(getattr(real, kind), member.name)) == int(member)
    for name in ("cudaStreamNonBlocking", "cudaEventDisableTiming", "cudaHostAllocMapped",
                 "cudaHostAllocDefault"):  # fmt: skip
        assert getattr(real, name) == getattr(fake, name)
    properties = real.cudaDeviceProp()
    for name in ("name", "major", "minor", "totalGlobalMem", "integrated"):
        assert hasattr(properties, name)


def test_work_is_not_done_before_it_is_waited_for() -> None:
    runtime: Any = make_runtime(FakeGpu())
    kinds = runtime.cudaMemcpyKind
    _, stream = runtime.cudaStreamCreateWithFlags(1)
    _, address = runtime.cudaMalloc(4)
    _, pinned = runtime.cudaHostAlloc(4, 0)
    _, other = runtime.cudaHostAlloc(4, 0)
    ctypes.memset(pinned, 7, 4)
    runtime.cudaMemcpyAsync(address, pinned, 4, kinds.cudaMemcpyHostToDevice, stream)
    runtime.cudaMemcpyAsync(other, address, 4, kinds.cudaMemcpyDeviceToHost, stream)
    assert ctypes.string_at(other, 4) == b"\xff" * 4
    runtime.cudaStreamSynchronize(stream)
    assert ctypes.string_at(other, 4) == b"\x07" * 4


@pytest.mark.parametrize("misuse", ["overrun", "use after free", "overlap", "pageable"])
def test_misuse_of_memory_is_told(misuse: str) -> None:
    gpu = FakeGpu()
    runtime: Any = make_runtime(gpu)
    kinds = runtime.cudaMemcpyKind
    _, stream = runtime.cudaStreamCreateWithFlags(1)
    _, address = runtime.cudaMalloc(64)
    _, other = runtime.cudaMalloc(64)
    if misuse == "overrun":
        runtime.cudaMemcpyAsync(address, other, 65, kinds.cudaMemcpyDefault, stream)
    elif misuse == "use after free":
        runtime.cudaMemcpyAsync(address, other, 64, kinds.cudaMemcpyDefault, stream)
        runtime.cudaFree(other)
    elif misuse == "overlap":
        runtime.cudaMemcpyAsync(address, address + 8, 16, kinds.cudaMemcpyDefault, stream)
    else:
        pageable = bytearray(8)
        runtime.cudaMemcpyAsync(address, id(pageable), 8, kinds.cudaMemcpyHostToDevice, stream)
    (error,) = runtime.cudaStreamSynchronize(stream)
    assert gpu.violations
    assert (error.name == "cudaSuccess") == (misuse == "overlap")


def test_nvidias_binding_takes_the_arguments_that_it_is_given() -> None:
    """Without a driver every call fails in CUDA itself, not in the binding."""
    real = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    if real.cudaDriverGetVersion()[1]:
        pytest.skip("there is a driver, and wild addresses are no good idea with one")
    from mate_edge.errors import EngineError
    from mate_edge.runtime.cuda.bindings import Bindings
    from mate_edge.runtime.cuda.cuda import HostMemory

    cuda = object.__new__(Bindings)
    cuda._api = real
    host = np.zeros(8, np.uint8)
    calls: dict[str, tuple[Any, ...]] = {
        "device": (), "use": (), "malloc": (8,), "free": (4096,), "host_alloc": (8, True),
        "host_free": (HostMemory(host, None),), "stream_create": (), "stream_destroy": (4096,),
        "stream_wait": (1,), "event_create": (), "event_destroy": (real.cudaEvent_t(0),),
        "event_record": (real.cudaEvent_t(0), 4096), "event_wait": (real.cudaEvent_t(0),),
        "to_device": (4096, host, 4096), "to_host": (host, 4096, 4096),
        "on_device": (4096, 8192, 8, 4096), "graph_begin": (4096,), "graph_end": (4096,),
        "graph_launch": (real.cudaGraphExec_t(0), 4096),
        "graph_destroy": (real.cudaGraphExec_t(0),),
    }  # fmt: skip
    assert set(calls) == {name for name in vars(Bindings) if not name.startswith("_")} - {
        "name", "has_graphs"
    }  # fmt: skip
    for name, arguments in calls.items():
        with pytest.raises(EngineError, match="no NVIDIA driver"):
            getattr(cuda, name)(*arguments)


@pytest.mark.parametrize("backend", ["bindings", "pycuda"])
def test_both_backends_have_every_call_of_the_protocol(backend: str) -> None:
    from importlib import import_module

    from mate_edge.runtime.cuda import BACKENDS
    from mate_edge.runtime.cuda.cuda import Cuda

    path = next(path for path in BACKENDS.values() if f".{backend}:" in path)
    module, _, kind = path.partition(":")
    found = getattr(import_module(module), kind)
    for name, member in vars(Cuda).items():
        if not name.startswith("_") and inspect.isfunction(member):
            assert inspect.signature(getattr(found, name)) == inspect.signature(member), name
