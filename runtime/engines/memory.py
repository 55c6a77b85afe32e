"""What an engine holds of a GPU: memory, one stream, one event. Released as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mate_edge.errors import EngineError
from mate_edge.runtime.cuda.cuda import Bytes, Cuda, HostMemory


class Buffer:
    """Memory that the host fills or reads and the device computes on.

    On a GPU with memory of its own that is a pinned part and a device part, with a copy between
    them; on an integrated one it is mapped memory, without.

    Attributes:
        host: uint8 [size], pinned.
        address: the device's.
        mapped: both are the same memory.
    """

    def __init__(self, host: Bytes, address: int, mapped: bool) -> None:
        self.host, self.address, self.mapped = host, address, mapped


class Holdings:
    """All that one engine allocated, in order, with a stream and an event.

    Args:
        cuda: the GPU.
        mapped: give the host and the device the same memory in `buffer`.

    Raises:
        EngineError: CUDA refuses; nothing is left behind.
    """

    def __init__(self, cuda: Cuda, mapped: bool) -> None:
        self.cuda, self._mapped = cuda, mapped
        self._releases: dict[Any, Callable[[], None]] = {}
        self.stream = cuda.stream_create()
        self._on_close(self.stream, lambda: cuda.stream_destroy(self.stream))
        try:
            self.event = cuda.event_create()
        except EngineError:
            self.close()
            raise
        self._on_close("event", lambda: cuda.event_destroy(self.event))

    def device(self, size: int) -> int:
        """Allocate device memory; return its address."""
        address = self.cuda.malloc(size)
        self._on_close(("device", address), lambda: self.cuda.free(address))
        return address

    def host(self, size: int, mapped: bool = False) -> HostMemory:
        """Allocate pinned memory."""
        memory = self.cuda.host_alloc(size, mapped)
        self._on_close(("host", id(memory)), lambda: self.cuda.host_free(memory))
        return memory

    def buffer(self, size: int) -> Buffer:
        """Allocate memory that the host and the device see."""
        if self._mapped:
            memory = self.host(size, mapped=True)
            assert memory.address is not None
            return Buffer(memory.array, memory.address, mapped=True)
        return Buffer(self.host(size).array, self.device(size), mapped=False)

    def free(self, address: int) -> None:
        """Release device memory before the end."""
        self._releases.pop(("device", address))()

    def graph(self, graph: Any) -> Any:
        """Take a graph over, to be destroyed in the end; return it."""
        self._on_close(("graph", id(graph)), lambda: self.cuda.graph_destroy(graph))
        return graph

    def drop_graph(self, graph: Any) -> None:
        """Destroy a graph before the end."""
        self._releases.pop(("graph", id(graph)))()

    def close(self) -> EngineError | None:
        """Wait for the stream, then release everything, newest first; a second call does nothing.

        Returns:
            The first failure, after which the rest has been released all the same.
        """
        failed = None
        releases = list(self._releases.values())
        self._releases = {}
        if releases:
            releases.append(lambda: self.cuda.stream_wait(self.stream))
        for release in reversed(releases):
            try:
                release()
            except EngineError as error:
                failed = failed or error
        return failed

    def _on_close(self, name: Any, release: Callable[[], None]) -> None:
        self._releases[name] = release
