"""`pycuda.driver` on a `FakeGpu`: objects that free themselves, and a stack of contexts."""

from __future__ import annotations

import builtins
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import DeviceFault, Event, FakeGpu

TEXTS = {
    "cudaErrorMemoryAllocation": "out of memory",
    "cudaErrorIllegalAddress": "an illegal memory access was encountered",
}


def make_driver(gpu: FakeGpu) -> ModuleType:
    """Return the module."""
    module: Any = ModuleType("pycuda.driver")
    stack = threading.local()

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    class MemoryError(Error):  # noqa: A001
        pass

    def call(name: str) -> None:
        """Check what holds for every call."""
        if not getattr(stack, "depth", 0):
            raise LogicError(f"{name} failed: invalid device context")
        if gpu.fails(name):
            kind = MemoryError if "Alloc" in name else LogicError
            raise kind(f"{name} failed: {'out of memory' if 'Alloc' in name else 'unknown error'}")
        if gpu.lost is not None:
            raise LogicError(f"{name} failed: {TEXTS[gpu.lost]}")

    def guarded(name: str, function: Any) -> Any:
        try:
            return function()
        except DeviceFault as fault:
            kind = MemoryError if "Memory" in str(fault) else LogicError
            raise kind(f"{name} failed: {TEXTS.get(str(fault), 'unknown error')}") from None

    class Context:
        def push(self) -> None:
            stack.depth = getattr(stack, "depth", 0) + 1

        def pop(self) -> None:
            stack.depth -= 1

        @staticmethod
        def synchronize() -> None:
            call("cuCtxSynchronize")
            if not gpu.dropped("cuCtxSynchronize"):
                for stream in builtins.list(gpu.streams.values()):
                    gpu.drain(stream)

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return gpu.capability

        def total_memory(self) -> int:
            return gpu.memory_bytes

        def get_attribute(self, attribute: str) -> int:
            return {
                "INTEGRATED": int(gpu.integrated),
                "MULTIPROCESSOR_COUNT": gpu.multiprocessors,
            }[attribute]

        def retain_primary_context(self) -> Context:
            return Context()

    class DeviceAllocation:
        def __init__(self, base: int) -> None:
            self.base: int | None = base

        def __int__(self) -> int:
            assert self.base is not None
            return self.base

        def free(self) -> None:
            base, self.base = self.base, None
            gpu.release("device", base or 0)
            call("cuMemFree")

        def __del__(self) -> None:
            if self.base is not None:
                self.free()

    class PagelockedHostAllocation:
        def __init__(self, size: int) -> None:
            self.region: Any = gpu.allocate_host(size)
            self.__array_interface__ = self.region.array.__array_interface__

        def get_device_pointer(self) -> int:
            call("cuMemHostGetDevicePointer")
            return gpu.map(self.region.base)

        def free(self) -> None:
            region, self.region = self.region, None
            gpu.release("pinned", region.base)
            call("cuMemFreeHost")

        def __del__(self) -> None:
            if self.region is not None:
                gpu.release("pinned", self.region.base)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert flags == 1, "the default stream waits for others"
            call("cuStreamCreate")
            self.stream = gpu.new_stream()
            self.handle = self.stream.handle

        def synchronize(self) -> None:
            call("cuStreamSynchronize")
            if not gpu.dropped("cuStreamSynchronize"):
                guarded("cuStreamSynchronize", lambda: gpu.drain(self.stream))

        def __del__(self) -> None:
            if hasattr(self, "stream"):
                del gpu.streams[self.handle]

    class PyEvent:
        def __init__(self, flags: int = 0) -> None:
            call("cuEventCreate")
            self.event = Event()
            gpu.events.append(self.event)

        def record(self, stream: Any = None) -> None:
            call("cuEventRecord")
            if not gpu.dropped("cuEventRecord"):
                self.event.stream, self.event.mark = stream.stream, object()
                stream.stream.queue.append(self.event.mark)

        def synchronize(self) -> None:
            call("cuEventSynchronize")
            if not gpu.dropped("cuEventSynchronize") and self.event.stream is not None:
                stream, mark = self.event.stream, self.event.mark
                guarded("cuEventSynchronize", lambda: gpu.drain(stream, mark))

        def __del__(self) -> None:
            if hasattr(self, "event"):
                gpu.events.remove(self.event)

    def mem_alloc(size: int) -> DeviceAllocation:
        call("cuMemAlloc")
        return DeviceAllocation(guarded("cuMemAlloc", lambda: gpu.allocate(size).base))

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        call("cuMemHostAlloc")
        return np.asarray(PagelockedHostAllocation(shape * np.dtype(dtype).itemsize))

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Any = None) -> None:
        call("cuMemcpyHtoDAsync")
        gpu.copy(stream.stream, (dest, "device"), (src.ctypes.data, "pinned"), src.nbytes)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Any = None) -> None:
        call("cuMemcpyDtoHAsync")
        gpu.copy(stream.stream, (dest.ctypes.data, "pinned"), (src, "device"), dest.nbytes)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Any = None) -> None:
        call("cuMemcpyDtoDAsync")
        gpu.copy(stream.stream, (dest, "device"), (src, "device"), size)

    module.Error, module.LogicError, module.MemoryError = Error, LogicError, MemoryError
    module.init = lambda flags=0: None
    module.Device, module.Context, module.Stream, module.Event = Device, Context, Stream, PyEvent
    module.DeviceAllocation = DeviceAllocation
    module.device_attribute = SimpleNamespace(
        INTEGRATED="INTEGRATED", MULTIPROCESSOR_COUNT="MULTIPROCESSOR_COUNT"
    )
    module.event_flags = SimpleNamespace(DISABLE_TIMING=2)
    module.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    module.get_driver_version = lambda: gpu.driver
    module.get_version = lambda: (gpu.runtime // 1000, gpu.runtime % 1000 // 10, 0)
    module.mem_alloc, module.pagelocked_empty = mem_alloc, pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.memcpy_dtod_async = memcpy_dtod_async
    return module
