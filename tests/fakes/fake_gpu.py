"""A GPU that does its work as late as it may: at synchronisation, and not before.

What real hardware only sometimes does, this one does always: a result that was not waited for is
not there yet, and memory that nobody wrote is NaN. Memory is found by address and checked at every
access; what is freed in use, or never, is told. `fake_cuda`, `fake_pycuda` and `fake_tensorrt` are
its faces.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

UNWRITTEN, FREED = 0xFF, 0xDD
GAP = 1 << 20


def locked(method: Callable[..., Any]) -> Callable[..., Any]:
    """One thread at a time, as a device does."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        with self.lock:
            return method(self, *arguments)

    return call


class DeviceFault(Exception):
    """The name of a CUDA error that kernels or copies met."""


@dataclass(eq=False)
class Region:
    kind: str
    base: int
    array: np.ndarray
    mine: bool = True
    """Whether the engine under test has to free it."""

    def holds(self, address: int, size: int) -> bool:
        return self.base <= address and address + size <= self.base + len(self.array)

    def touches(self, address: int, size: int) -> bool:
        return address < self.base + len(self.array) and self.base < address + size


@dataclass(eq=False)
class Work:
    """A kernel or a copy: what it does, and the memory (address, size) that it touches."""

    name: str
    run: Callable[[], None]
    touches: tuple[tuple[int, int], ...] = ()


@dataclass(eq=False)
class Stream:
    handle: int
    queue: list[Any] = field(default_factory=list)
    captured: list[Work] | None = None
    mine: bool = True


@dataclass(eq=False)
class Event:
    stream: Stream | None = None
    mark: object = None


@dataclass(eq=False)
class Graph:
    works: list[Work]
    executable: bool = False


class FakeGpu:
    """Args: integrated: as a Jetson; memory_bytes: after which allocations fail."""

    def __init__(self, integrated: bool = False, memory_bytes: int = 1 << 30) -> None:
        self.integrated, self.memory_bytes = integrated, memory_bytes
        self.name, self.capability = ("Orin", (8, 7)) if integrated else ("RTX A2000", (8, 6))
        self.multiprocessors = 16
        self.driver, self.runtime = 12060, 12060
        self.lock = threading.RLock()
        self.threads = threading.local()
        self.regions: list[Region] = []
        self.graveyard: list[Region] = []
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []
        self.graphs: list[Graph] = []
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()
        """TensorRT's contexts and engines."""
        self.launched: list[str] = []
        """Kernels that were put into a stream, in order."""
        self.violations: list[str] = []
        """Misuse that real hardware would punish only sometimes."""
        self.lost: str | None = None
        """The error that every call returns since a fault."""
        self.calls: list[str] = []
        self.fail_at: int | None = None
        """The number of the call that fails."""
        self.waits: list[str] = []
        self.drop: int | None = None
        """The number of the synchronisation that does nothing and says that all is well."""
        self._next, self._handles = 0x7_0000_0000, 0x5000

    # what tests ask

    def leaks(self) -> list[str]:
        """Return what the engine under test has not released."""
        return [
            *(
                f"{region.kind} of {len(region.array)} bytes"
                for region in self.regions
                if region.mine
            ),
            *(f"stream {stream.handle}" for stream in self.streams.values() if stream.mine),
            *(["event"] * len(self.events)),
            *(["graph"] * len(self.graphs)),
            *(type(thing).__name__ for thing in self.objects),
        ]

    def put(self, array: np.ndarray) -> int:
        """Give the user of the engine device memory with `array` in it; return its address."""
        region = self.allocate(array.nbytes)
        region.mine = False
        region.array[:] = array.reshape(-1).view(np.uint8)
        return region.base

    def user_stream(self) -> Stream:
        """Make a stream that is not the engine's."""
        stream = self.new_stream()
        stream.mine = False
        return stream

    # calls, failures

    def make_current(self, device: int) -> None:
        """Choose the device of the calling thread; this GPU is 0, which is every thread's first."""
        self.threads.current = device

    def needs_to_be_current(self, what: str) -> None:
        """Note a call that would go to another GPU."""
        if getattr(self.threads, "current", 0) != 0:
            self.violations.append(f"{what} while another GPU is current")

    @locked
    def fails(self, call: str) -> bool:
        """Note a call; say whether it is the one to fail."""
        self.calls.append(call)
        failing = len(self.calls) - 1 == self.fail_at
        if failing and "Synchronize" in call:  # a device that fails at it has stopped
            for stream in self.streams.values():
                stream.queue.clear()
        return failing

    @locked
    def dropped(self, what: str) -> bool:
        """Note a synchronisation; say whether it is the one that does not happen."""
        self.waits.append(what)
        return len(self.waits) - 1 == self.drop

    # memory

    @locked
    def allocate(self, size: int) -> Region:
        if sum(len(r.array) for r in self.regions if r.kind == "device") + size > self.memory_bytes:
            raise DeviceFault("cudaErrorMemoryAllocation")
        region = Region("device", self._next, np.full(size, UNWRITTEN, np.uint8))
        self._next += (size // 256 + 1) * 256 + GAP
        self.regions.append(region)
        return region

    @locked
    def allocate_host(self, size: int) -> Region:
        array = np.full(size, UNWRITTEN, np.uint8)
        region = Region("pinned", array.ctypes.data, array)
        self.regions.append(region)
        return region

    @locked
    def map(self, pointer: int) -> int:
        """Return the device's address of pinned memory: another one, so that mix-ups are seen."""
        host = next(r for r in self.regions if r.kind == "pinned" and r.base == pointer)
        region = Region("mapped", self._next, host.array, mine=False)
        self._next += (len(host.array) // 256 + 1) * 256 + GAP
        self.regions.append(region)
        return region.base

    @locked
    def release(self, kind: str, base: int) -> None:
        found = [r for r in self.regions if r.kind == kind and r.base == base]
        if not found:
            self.violations.append(f"free of {base:#x}, which is no {kind} memory")
            raise DeviceFault("cudaErrorInvalidValue")
        gone = [r for r in self.regions if r.array is found[0].array]
        for stream in self.streams.values():
            for work in stream.queue:
                for address, size in getattr(work, "touches", ()):
                    if any(region.touches(address, size) for region in gone):
                        self.violations.append(
                            f"{kind} memory was freed before {work.name} was done"
                        )
        found[0].array[:] = FREED
        self.graveyard += gone
        self.regions = [r for r in self.regions if r not in gone]

    def view(self, address: int, size: int, *kinds: str) -> np.ndarray:
        """Return the bytes at an address.

        Raises:
            DeviceFault: there is no memory of these kinds, or less than `size`.
        """
        for region in self.regions:
            if region.kind in (kinds or ("device", "mapped")) and region.holds(address, size):
                return region.array[address - region.base :][:size]
        self.violations.append(f"access to {size} bytes at {address:#x}, outside of any memory")
        raise DeviceFault("cudaErrorIllegalAddress")

    # streams

    @locked
    def new_stream(self) -> Stream:
        self._handles += 16
        stream = Stream(self._handles)
        self.streams[stream.handle] = stream
        return stream

    @locked
    def enqueue(self, stream: Stream, work: Work) -> None:
        if stream.captured is not None:
            stream.captured.append(work)
        else:
            stream.queue.append(work)

    @locked
    def drain(self, stream: Stream, until: object = None) -> None:
        """Do the work of a stream, all of it or up to a mark."""
        if until is not None and until not in stream.queue:
            return
        while stream.queue:
            item = stream.queue.pop(0)
            if item is until:
                return
            if isinstance(item, Work):
                try:
                    item.run()
                except DeviceFault as fault:
                    self.lost = str(fault)
                    stream.queue.clear()
                    raise

    @locked
    def copy(self, stream: Stream, to: tuple[int, str], source: tuple[int, str], size: int) -> None:
        """Enqueue a copy between addresses of the kinds `device` (mapped too) and `pinned`."""
        kinds = {"device": ("device", "mapped"), "pinned": ("pinned",)}

        def run() -> None:
            read = self.view(source[0], size, *kinds[source[1]])
            written = self.view(to[0], size, *kinds[to[1]])
            if np.shares_memory(read, written):
                self.violations.append("a copy overlaps itself")
                read = np.full(size, UNWRITTEN, np.uint8)
            written[:] = read

        touches = ((to[0], size), (source[0], size))
        self.enqueue(stream, Work(f"copy of {size} bytes", run, touches))
