"""`cuda.bindings.runtime` on a `FakeGpu`: the names and conventions of NVIDIA's own."""

from __future__ import annotations

import enum
import functools
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

from fake_gpu import DeviceFault, Event, FakeGpu, Graph, Stream


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


TEXTS = {
    cudaError_t.cudaErrorMemoryAllocation: b"out of memory",
    cudaError_t.cudaErrorInsufficientDriver: b"CUDA driver version is insufficient",
    cudaError_t.cudaErrorNoDevice: b"no CUDA-capable device is detected",
    cudaError_t.cudaErrorIllegalAddress: b"an illegal memory access was encountered",
}


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


SIDES = {
    cudaMemcpyKind.cudaMemcpyHostToDevice: ("device", "pinned"),
    cudaMemcpyKind.cudaMemcpyDeviceToHost: ("pinned", "device"),
    cudaMemcpyKind.cudaMemcpyDeviceToDevice: ("device", "device"),
    cudaMemcpyKind.cudaMemcpyDefault: ("device", "device"),
}
NOT_IN_CAPTURES = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost",
                   "cudaStreamSynchronize", "cudaEventSynchronize")  # fmt: skip
ALWAYS = ("cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetErrorString")
RELEASES = ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy",
            "cudaGraphDestroy", "cudaGraphExecDestroy")  # fmt: skip
"""A release that returns an error, mostly of earlier work, has released all the same."""
VOID = ("cudaSetDevice", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaEventRecord",
        "cudaEventSynchronize", "cudaStreamBeginCapture", "cudaGraphLaunch", *RELEASES)  # fmt: skip


class Runtime:
    """The functions; each raises `DeviceFault` or returns its result."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def cudaGetDeviceCount(self) -> int:
        if self.gpu.driver < self.gpu.runtime // 1000 * 1000:
            raise DeviceFault("cudaErrorInsufficientDriver")
        return 1

    def cudaSetDevice(self, device: int) -> None:
        self.gpu.make_current(device)

    def cudaGetDeviceProperties(self, device: int) -> Any:
        assert device == 0
        return SimpleNamespace(
            name=self.gpu.name.encode() + b"\0" * 9,
            major=self.gpu.capability[0],
            minor=self.gpu.capability[1],
            multiProcessorCount=self.gpu.multiprocessors,
            totalGlobalMem=self.gpu.memory_bytes,
            integrated=int(self.gpu.integrated),
        )

    def cudaDriverGetVersion(self) -> int:
        return self.gpu.driver

    def cudaRuntimeGetVersion(self) -> int:
        return self.gpu.runtime

    def cudaGetErrorString(self, error: cudaError_t) -> bytes:
        return TEXTS.get(error, b"an error")

    def cudaMalloc(self, size: int) -> int:
        self.gpu.needs_to_be_current("cudaMalloc")
        return self.gpu.allocate(size).base

    def cudaFree(self, devPtr: int) -> None:
        self.gpu.release("device", devPtr)

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        return self.gpu.allocate_host(size).base

    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> int:
        return self.gpu.map(pHost)

    def cudaFreeHost(self, ptr: int) -> None:
        self.gpu.release("pinned", ptr)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == 1, "the default stream waits for others"
        self.gpu.needs_to_be_current("cudaStreamCreateWithFlags")
        return self.gpu.new_stream().handle

    def cudaStreamDestroy(self, stream: int) -> None:
        self._stream(stream)
        del self.gpu.streams[int(stream)]

    def cudaStreamSynchronize(self, stream: int) -> None:
        if not self.gpu.dropped("cudaStreamSynchronize"):
            self.gpu.drain(self._stream(stream))

    def cudaEventCreateWithFlags(self, flags: int) -> Event:
        event = Event()
        self.gpu.events.append(event)
        return event

    def cudaEventDestroy(self, event: Event) -> None:
        self.gpu.events.remove(event)

    def cudaEventRecord(self, event: Event, stream: int) -> None:
        if not self.gpu.dropped("cudaEventRecord"):
            event.stream, event.mark = self._stream(stream), object()
            event.stream.queue.append(event.mark)

    def cudaEventSynchronize(self, event: Event) -> None:
        if not self.gpu.dropped("cudaEventSynchronize") and event.stream is not None:
            self.gpu.drain(event.stream, event.mark)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
        to, source = SIDES[cudaMemcpyKind(kind)]
        self.gpu.copy(self._stream(stream), (int(dst), to), (int(src), source), count)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        self._stream(stream).captured = []

    def cudaStreamEndCapture(self, stream: int) -> Graph:
        found = self._stream(stream)
        works, found.captured = found.captured, None
        if works is None:
            raise DeviceFault("cudaErrorStreamCaptureInvalidated")
        return self._graph(Graph(works))

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> Graph:
        return self._graph(Graph(list(graph.works), executable=True))

    def cudaGraphDestroy(self, graph: Graph) -> None:
        assert not graph.executable
        self.gpu.graphs.remove(graph)

    def cudaGraphExecDestroy(self, graphExec: Graph) -> None:
        assert graphExec.executable
        self.gpu.graphs.remove(graphExec)

    def cudaGraphLaunch(self, graphExec: Graph, stream: int) -> None:
        assert graphExec in self.gpu.graphs
        assert graphExec.executable
        for work in graphExec.works:
            if not work.name.startswith("copy"):
                self.gpu.launched.append(work.name)
            self.gpu.enqueue(self._stream(stream), work)

    def _graph(self, graph: Graph) -> Graph:
        self.gpu.graphs.append(graph)
        return graph

    def _stream(self, handle: int) -> Stream:
        if int(handle) not in self.gpu.streams:
            self.gpu.violations.append(f"use of stream {handle}, which is none")
            raise DeviceFault("cudaErrorInvalidResourceHandle")
        return self.gpu.streams[int(handle)]


def make_runtime(gpu: FakeGpu) -> ModuleType:
    """Return the module: every function gives its error, then its result."""
    module: Any = ModuleType("cuda.bindings.runtime")
    module.cudaError_t, module.cudaMemcpyKind = cudaError_t, cudaMemcpyKind
    module.cudaStreamCaptureMode = cudaStreamCaptureMode
    module.cudaStreamNonBlocking, module.cudaEventDisableTiming = 1, 2
    module.cudaHostAllocDefault, module.cudaHostAllocMapped = 0, 2
    runtime = Runtime(gpu)
    for name, function in inspect.getmembers(runtime, inspect.ismethod):
        if name.startswith("cuda"):
            setattr(module, name, _with_errors(gpu, name, function))
    return module


def _with_errors(gpu: FakeGpu, name: str, function: Any) -> Any:
    @functools.wraps(function)
    def call(*arguments: Any) -> tuple[Any, ...]:
        with gpu.lock:
            found, error = None, cudaError_t.cudaSuccess
            if name not in ALWAYS and gpu.fails(name):
                if name in RELEASES:
                    function(*arguments)
                if name == "cudaStreamEndCapture":
                    gpu.streams[int(arguments[0])].captured = None
                error = (
                    cudaError_t.cudaErrorMemoryAllocation
                    if "Alloc" in name or name == "cudaMalloc"
                    else cudaError_t.cudaErrorUnknown
                )
            elif gpu.lost is not None and name not in ALWAYS:
                if name in RELEASES:
                    function(*arguments)
                error = cudaError_t[gpu.lost]
            else:
                capturing = [s for s in gpu.streams.values() if s.captured is not None]
                if capturing and name in NOT_IN_CAPTURES:
                    gpu.violations.append(f"{name} while a graph is recorded")
                try:
                    found = function(*arguments)
                except DeviceFault as fault:
                    error = cudaError_t[str(fault)]
            return (error,) if name in VOID else (error, found)

    return call
