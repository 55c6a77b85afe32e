"""What the runtime asks of CUDA, in a dozen calls, and what its errors mean for a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import EngineError

Bytes = NDArray[np.uint8]
"""Host memory, one byte an element."""


@dataclass(frozen=True)
class Device:
    """The GPU.

    Attributes:
        name: as its maker calls it.
        compute_capability: major and minor.
        multiprocessors: how many may be used now: a Jetson's power mode turns some off.
        memory_bytes: in all.
        integrated: it shares its memory with the CPU, as on a Jetson.
        driver_version: the CUDA version that the driver supports, such as `12.6`.
        runtime_version: the CUDA version of the Python binding.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    integrated: bool
    driver_version: str
    runtime_version: str


@dataclass(frozen=True, eq=False)
class HostMemory:
    """Pinned host memory.

    Attributes:
        array: uint8 [size], a view that dies with the memory.
        address: the device's address of it when it is mapped, else None.
    """

    array: Bytes
    address: int | None


class Cuda(Protocol):
    """One GPU's memory, streams, events and graphs. Memory and streams are named by integers.

    Every call raises `EngineError` when CUDA refuses it. Copies are asynchronous: the host memory
    must be pinned and must stay as it is until the stream has been waited for.
    """

    name: str
    """Of the backend."""
    has_graphs: bool
    """Whether the four `graph` calls work."""

    def device(self) -> Device:
        """Return what the GPU is."""

    def use(self) -> None:
        """Make the GPU the calling thread's current one, which TensorRT works on."""

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the device, 256-byte aligned; return their address."""

    def free(self, address: int) -> None:
        """Free what `malloc` returned."""

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """Allocate pinned memory; `mapped` gives it an address on the device, too."""

    def host_free(self, memory: HostMemory) -> None:
        """Free what `host_alloc` returned."""

    def stream_create(self) -> int:
        """Make a stream that does not wait for the default one; return its handle."""

    def stream_destroy(self, stream: int) -> None:
        """Destroy what `stream_create` returned."""

    def stream_wait(self, stream: int) -> None:
        """Wait for all the work of a stream, which may be another library's."""

    def event_create(self) -> Any:
        """Make an event."""

    def event_destroy(self, event: Any) -> None:
        """Destroy what `event_create` returned."""

    def event_record(self, event: Any, stream: int) -> None:
        """Mark this point of the stream."""

    def event_wait(self, event: Any) -> None:
        """Wait for the point that was marked last."""

    def to_device(self, address: int, host: Bytes, stream: int) -> None:
        """Copy pinned memory to the device."""

    def to_host(self, host: Bytes, address: int, stream: int) -> None:
        """Copy to pinned memory from the device."""

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy `size` bytes from `source` to `address`, which do not overlap."""

    def graph_begin(self, stream: int) -> None:
        """Record what is put into the stream from now on, instead of doing it."""

    def graph_end(self, stream: int) -> Any:
        """Stop recording; return a graph that can be launched."""

    def graph_launch(self, graph: Any, stream: int) -> None:
        """Put all that was recorded into the stream."""

    def graph_destroy(self, graph: Any) -> None:
        """Destroy what `graph_end` returned."""


LOST = (
    "the GPU or its driver failed and this process cannot use it any more: start again, and look "
    "at dmesg for Xid errors when it comes back"
)
ADVICE = {
    "cudaErrorMemoryAllocation": "close other programs that use the GPU, or build with a smaller "
    "--max-batch",
    "cudaErrorNoDevice": "there is no NVIDIA GPU that this process may use: CUDA_VISIBLE_DEVICES "
    "may hide it, or the user may not open it (mate-edge doctor)",
    "cudaErrorNotSupported": "on a Jetson the user may lack the groups video and render: type "
    "mate-edge doctor",
    "cudaErrorDevicesUnavailable": "another process has the GPU for itself: end it",
    "cudaErrorSystemDriverMismatch": "the driver was upgraded under this system: reboot",
    "cudaErrorIllegalAddress": LOST,
    "cudaErrorMisalignedAddress": LOST,
    "cudaErrorLaunchFailure": LOST,
    "cudaErrorLaunchTimeout": LOST,
    "cudaErrorECCUncorrectable": LOST,
    "cudaErrorUnknown": LOST,
    "cudaErrorContextIsDestroyed": LOST,
}
"""What to do, by the CUDA runtime's name of the error."""


def cuda_error(call: str, name: str, text: str, asked_bytes: int | None = None) -> EngineError:
    """Return what to raise when `call` fails with the error `name`.

    Args:
        call: the CUDA function.
        name: of the error, as the runtime API spells it.
        text: CUDA's own words for it.
        asked_bytes: how much memory was asked for, when it was about memory.
    """
    asked = "" if asked_bytes is None else f" ({asked_bytes:,} bytes were asked for)"
    advice = ADVICE.get(name)
    return EngineError(f"CUDA: {text}{asked}, {name} in {call}" + (f": {advice}" if advice else ""))


def driver_error(driver: int, runtime: int) -> EngineError:
    """Return what to raise when the driver is missing or older than the binding's runtime.

    Args:
        driver: the CUDA version that the driver supports, 1000 a major version; 0 when missing.
        runtime: the binding's, likewise.
    """
    if driver == 0:
        return EngineError("there is no NVIDIA driver on this machine: install it, or run on a CPU")
    return EngineError(
        f"the NVIDIA driver supports CUDA {version_text(driver)}, the Python binding needs CUDA "
        f"{version_text(runtime)}: upgrade the driver, or pip install 'mate-edge[cuda12]'"
    )


def version_text(version: int) -> str:
    """Return CUDA's 12060 as `12.6`."""
    return f"{version // 1000}.{version % 1000 // 10}"
