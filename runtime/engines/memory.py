"""What an engine holds of a GPU: memory, one stream, one event, parts that are ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mate_edge.errors import EngineError
from mate_edge.runtime.cuda.cuda import Bytes, Cuda, HostMemory
from mate_edge.runtime.engines.deserialized import Deserialized


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


@dataclass(eq=False)
class EnginePart:
    """A segment, or the preprocessing of frames, that is ready to run.

    Attributes:
        what: how errors call it.
        engine: deserialised.
        input: the tensor's name.
        shape: of one sample of it.
        addresses: of all its tensors.
        logits_bytes: of one sample; 0 when it has none.
        single: a context whose shape and addresses never change, so that it can be recorded.
        wide: a context for larger batches, made when needed.
        warm: it ran at batch 1, after which it can be recorded.
        graph: the record.
        spoilt: how many recordings failed.
    """

    what: str
    engine: Deserialized
    input: str
    shape: tuple[int, ...]
    addresses: dict[str, int]
    logits_bytes: int = 0
    single: Any = None
    wide: Any = None
    warm: bool = False
    graph: Any = None
    spoilt: int = 0


@dataclass
class Memory:
    """Where everything lies, for as long as the engine is open.

    Attributes:
        held: what frees it.
        inputs: address of each segment's input, which is the output of the one before.
        images: the first one's as the host fills it.
        staging: pinned memory on the way to the others; None with a single segment.
        logits: what all segments write theirs to.
        spare: as large as an input, where rows wait that would overwrite each other; 0 at batch 1.
        frame: the input of preprocessing, when that is open.
        scratch: address and size of what the segments compute in, one after another.
    """

    held: Holdings
    inputs: list[int]
    images: Any
    staging: Any
    logits: Any
    spare: int
    frame: Any = None
    scratch: tuple[int, int] = (0, 0)
    parts: dict[int, EnginePart] = field(default_factory=dict)
