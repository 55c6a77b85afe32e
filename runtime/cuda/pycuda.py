"""CUDA through `pycuda`: the driver API, on the context that TensorRT uses; without graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from mate_edge.errors import EngineError
from mate_edge.runtime.cuda.cuda import Bytes, Device, HostMemory, cuda_error, version_text

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name


class PyCuda:
    """See `Cuda`. Holds the device's primary context, the one of the CUDA runtime API.

    A context is pushed for each call and popped after it: pycuda aborts the process when a thread
    ends and leaves one on its stack.

    Raises:
        ImportError: `pycuda` is not installed, or the driver's library is missing.
        EngineError: no GPU.
    """

    name = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        self._api: Any = import_module("pycuda.driver")
        self._context: Any = None
        with self._calling("cuInit"):
            self._api.init()
            self._device = self._api.Device(0)
            self._context = self._device.retain_primary_context()
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    def device(self) -> Device:
        """See `Cuda.device`."""
        attribute = self._api.device_attribute
        with self._calling("cuDeviceGetAttribute"):
            return Device(
                name=self._device.name(),
                compute_capability=self._device.compute_capability(),
                multiprocessors=self._device.get_attribute(attribute.MULTIPROCESSOR_COUNT),
                memory_bytes=self._device.total_memory(),
                integrated=bool(self._device.get_attribute(attribute.INTEGRATED)),
                driver_version=version_text(self._api.get_driver_version()),
                runtime_version=".".join(map(str, self._api.get_version()[:2])),
            )

    def use(self) -> None:
        """Do nothing, since a context that stays on a thread's stack aborts the process later.

        A thread in which another library made another GPU current needs `cuda-bindings`.
        """

    def malloc(self, size: int) -> int:
        """See `Cuda.malloc`."""
        with self._calling("cuMemAlloc", size):
            memory = self._api.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        with self._calling("cuMemFree"):
            self._memory.pop(address).free()

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """See `Cuda.host_alloc`."""
        flags = self._api.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._calling("cuMemHostAlloc", size):
            array = self._api.pagelocked_empty(size, np.uint8, mem_flags=flags)
            return HostMemory(array, int(array.base.get_device_pointer()) if mapped else None)

    def host_free(self, memory: HostMemory) -> None:
        """See `Cuda.host_free`."""
        base: Any = memory.array.base
        with self._calling("cuMemFreeHost"):
            base.free()

    def stream_create(self) -> int:
        """See `Cuda.stream_create`."""
        with self._calling("cuStreamCreate"):
            stream = self._api.Stream(NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def stream_destroy(self, stream: int) -> None:
        """See `Cuda.stream_destroy`: a stream goes with its last reference."""
        with self._calling("cuStreamDestroy"):
            del self._streams[stream]

    def stream_wait(self, stream: int) -> None:
        """See `Cuda.stream_wait`; for another library's stream it waits for the whole device."""
        with self._calling("cuStreamSynchronize"):
            if stream in self._streams:
                self._streams[stream].synchronize()
            else:
                self._api.Context.synchronize()

    def event_create(self) -> Any:
        """See `Cuda.event_create`; in a list, so that `event_destroy` can drop it."""
        with self._calling("cuEventCreate"):
            return [self._api.Event(self._api.event_flags.DISABLE_TIMING)]

    def event_destroy(self, event: Any) -> None:
        """See `Cuda.event_destroy`: an event goes with its last reference."""
        with self._calling("cuEventDestroy"):
            event.clear()

    def event_record(self, event: Any, stream: int) -> None:
        """See `Cuda.event_record`."""
        with self._calling("cuEventRecord"):
            event[0].record(self._streams[stream])

    def event_wait(self, event: Any) -> None:
        """See `Cuda.event_wait`."""
        with self._calling("cuEventSynchronize"):
            event[0].synchronize()

    def to_device(self, address: int, host: Bytes, stream: int) -> None:
        """See `Cuda.to_device`."""
        with self._calling("cuMemcpyHtoDAsync"):
            self._api.memcpy_htod_async(address, host, self._streams[stream])

    def to_host(self, host: Bytes, address: int, stream: int) -> None:
        """See `Cuda.to_host`."""
        with self._calling("cuMemcpyDtoHAsync"):
            self._api.memcpy_dtoh_async(host, address, self._streams[stream])

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.on_device`."""
        with self._calling("cuMemcpyDtoDAsync"):
            self._api.memcpy_dtod_async(address, source, size, self._streams[stream])

    def graph_begin(self, stream: int) -> None:
        """See `Cuda.graph_begin`."""
        raise EngineError("pycuda has no CUDA graphs: pip install 'mate-edge[cuda12]' has them")

    def graph_end(self, stream: int) -> Any:
        """See `Cuda.graph_end`."""
        return self.graph_begin(stream)

    def graph_launch(self, graph: Any, stream: int) -> None:
        """See `Cuda.graph_launch`."""
        self.graph_begin(stream)

    def graph_destroy(self, graph: Any) -> None:
        """See `Cuda.graph_destroy`."""
        self.graph_begin(0)

    @contextmanager
    def _calling(self, function: str, asked_bytes: int | None = None) -> Iterator[None]:
        """Make the context current, and turn pycuda's errors into ours."""
        try:
            if self._context is None:
                yield
                return
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._api.Error as error:
            text = str(error).partition(" failed: ")[2] or str(error)
            raise cuda_error(function, _name(text), text, asked_bytes) from None


NAMES = {
    "out of memory": "cudaErrorMemoryAllocation",
    "no CUDA-capable device is detected": "cudaErrorNoDevice",
    "an illegal memory access was encountered": "cudaErrorIllegalAddress",
    "misaligned address": "cudaErrorMisalignedAddress",
    "unspecified launch failure": "cudaErrorLaunchFailure",
    "the launch timed out and was terminated": "cudaErrorLaunchTimeout",
    "uncorrectable ECC error encountered": "cudaErrorECCUncorrectable",
    "context is destroyed": "cudaErrorContextIsDestroyed",
}
"""The runtime API's names of what CUDA says in words; pycuda does not tell the number."""


def _name(text: str) -> str:
    return next((name for words, name in NAMES.items() if words in text), "cudaErrorUnknown")
