"""CUDA through NVIDIA's own `cuda-bindings`, 12.6 and later: the runtime API."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from mate_edge.errors import EngineError
from mate_edge.runtime.cuda.cuda import (
    Bytes,
    Device,
    HostMemory,
    cuda_error,
    driver_error,
    version_text,
)


class Bindings:
    """See `Cuda`. Every function of the binding returns its error, then its results.

    Raises:
        ImportError: `cuda-bindings` is not installed.
        EngineError: no GPU, no driver, or one that is older than the binding.
    """

    name = "cuda-bindings"
    has_graphs = True

    def __init__(self) -> None:
        self._api: Any = import_module("cuda.bindings.runtime")
        if self._call("cudaGetDeviceCount") == 0:
            raise cuda_error("cudaGetDeviceCount", "cudaErrorNoDevice", "no device is detected")
        self.use()

    def device(self) -> Device:
        """See `Cuda.device`."""
        found = self._call("cudaGetDeviceProperties", 0)
        return Device(
            name=found.name.split(b"\0")[0].decode("utf-8", "replace"),
            compute_capability=(int(found.major), int(found.minor)),
            multiprocessors=int(found.multiProcessorCount),
            memory_bytes=int(found.totalGlobalMem),
            integrated=bool(found.integrated),
            driver_version=version_text(self._call("cudaDriverGetVersion")),
            runtime_version=version_text(self._call("cudaRuntimeGetVersion")),
        )

    def use(self) -> None:
        """See `Cuda.use`; another library may have made another GPU current in this thread."""
        self._call("cudaSetDevice", 0)

    def malloc(self, size: int) -> int:
        """See `Cuda.malloc`."""
        return int(self._call("cudaMalloc", size, asked_bytes=size))

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._call("cudaFree", address)

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """See `Cuda.host_alloc`."""
        flags = self._api.cudaHostAllocMapped if mapped else self._api.cudaHostAllocDefault
        pointer = int(self._call("cudaHostAlloc", size, flags, asked_bytes=size))
        try:
            address = self._call("cudaHostGetDevicePointer", pointer, 0) if mapped else None
        except EngineError:
            self._call("cudaFreeHost", pointer)
            raise
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        return HostMemory(array, None if address is None else int(address))

    def host_free(self, memory: HostMemory) -> None:
        """See `Cuda.host_free`."""
        self._call("cudaFreeHost", memory.array.ctypes.data)

    def stream_create(self) -> int:
        """See `Cuda.stream_create`."""
        return int(self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def stream_destroy(self, stream: int) -> None:
        """See `Cuda.stream_destroy`."""
        self._call("cudaStreamDestroy", stream)

    def stream_wait(self, stream: int) -> None:
        """See `Cuda.stream_wait`."""
        self._call("cudaStreamSynchronize", stream)

    def event_create(self) -> Any:
        """See `Cuda.event_create`."""
        return self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)

    def event_destroy(self, event: Any) -> None:
        """See `Cuda.event_destroy`."""
        self._call("cudaEventDestroy", event)

    def event_record(self, event: Any, stream: int) -> None:
        """See `Cuda.event_record`."""
        self._call("cudaEventRecord", event, stream)

    def event_wait(self, event: Any) -> None:
        """See `Cuda.event_wait`."""
        self._call("cudaEventSynchronize", event)

    def to_device(self, address: int, host: Bytes, stream: int) -> None:
        """See `Cuda.to_device`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: Bytes, address: int, stream: int) -> None:
        """See `Cuda.to_host`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.on_device`; the addresses may be of mapped host memory."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", address, source, size, kind, stream)

    def graph_begin(self, stream: int) -> None:
        """See `Cuda.graph_begin`; what other threads do meanwhile is their own."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def graph_end(self, stream: int) -> Any:
        """See `Cuda.graph_end`."""
        recorded = self._call("cudaStreamEndCapture", stream)
        graph = None
        try:
            graph = self._call("cudaGraphInstantiate", recorded, 0)
            self._call("cudaGraphDestroy", recorded)
        except EngineError:
            with suppress(EngineError):
                self._call(*(("cudaGraphDestroy", recorded) if graph is None
                             else ("cudaGraphExecDestroy", graph)))  # fmt: skip
            raise
        return graph

    def graph_launch(self, graph: Any, stream: int) -> None:
        """See `Cuda.graph_launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: Any) -> None:
        """See `Cuda.graph_destroy`."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any, asked_bytes: int | None = None) -> Any:
        try:
            error, *results = getattr(self._api, function)(*arguments)
        except RuntimeError as reason:  # the driver's library cannot be loaded
            raise EngineError(f"CUDA cannot be used, {function}: {reason}") from None
        if int(error) == 0:
            return results[0] if results else None
        name = error.name
        if name in ("cudaErrorInsufficientDriver", "cudaErrorStubLibrary"):
            versions = (self._api.cudaDriverGetVersion(), self._api.cudaRuntimeGetVersion())
            raise driver_error(*(int(found[1] or 0) for found in versions))
        text = self._api.cudaGetErrorString(error)[1].decode("utf-8", "replace")
        raise cuda_error(function, name, text, asked_bytes)
