"""The GPU engine: TensorRT, one context a segment, features that never leave the device.

One stream and static addresses: segment k's output address is segment k + 1's input address, and
all contexts share one scratch buffer, so nothing moves between segments. At batch 1 a segment is
one CUDA graph, recorded after its first run. The logits come back in one pinned copy, and the host
waits for its event: whoever decides on them decides on finished numbers.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle, Segment
from mate_edge.errors import EngineError, ImageError, UsageError
from mate_edge.runtime import frames
from mate_edge.runtime.cuda import open_cuda
from mate_edge.runtime.cuda.arrays import DeviceFrame, take_frame
from mate_edge.runtime.engines.deserialized import Port, SharedEngines, not_built
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.engines.memory import EnginePart, Holdings, Memory
from mate_edge.runtime.plans import FRAME, Plans, device_platform, segment_name
from mate_edge.runtime.tensorrt_library import import_library

FRAME_CHANNELS = 3
"""Of every frame: preprocessing makes it gray where the network wants that."""
SMALLEST_SCRATCH = 256
RECORDINGS = 2
"""How often a part is tried to be recorded, both times while it is warmed up. Another thread can
spoil one with `cudaDeviceSynchronize`, in whatever mode (NVIDIA/TensorRT issue 2888)."""


class TensorRTEngine(Engine):
    """Runs segments with TensorRT on the first GPU.

    Args:
        bundle: an opened bundle whose `build.engine` is this one.
        threads: of the CPU engine; not used.
        shared_pool: of the CPU engine; not used.

    Raises:
        EngineNotBuilt: the segments were not built for this device.
        EngineError: TensorRT, CUDA or the GPU cannot be had, or the bundle is for another engine.
    """

    library_name = "tensorrt"
    graphs = "none yet"
    """How segments are launched at batch 1: `on`, or `off:` and why no graph could be recorded."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, shared_pool: bool = False
    ) -> None:
        super().__init__(bundle)
        wanted = bundle.manifest.build.engine
        if wanted != self.library_name:
            raise EngineError(
                f"{bundle.folder} is for {wanted}, not for {self.library_name}: use --engine "
                f"{wanted}, or export it with another --target"
            )
        self._library = import_library(self.library_name)
        self._cuda = open_cuda()
        gpu = self._cuda.device()
        platform = device_platform(self._library, gpu)
        self._integrated = gpu.integrated
        self.device = (
            f"{self._library.title} on {gpu.name}, compute capability "
            f"{platform.compute_capability}, CUDA {gpu.driver_version} through {self._cuda.name}"
        )
        if not self._cuda.has_graphs:
            self._without_graphs(f"{self._cuda.name} has none")
        self.device_key = platform.device_key
        self.gpu = f"{gpu.name}, CUDA {gpu.driver_version} through {self._cuda.name}"
        self._shared = SharedEngines(self._library, Plans(bundle, platform))
        self._look()
        self._reset()

    def _look(self) -> None:
        """Take the largest batch and the frame size from the records of what was built."""
        plans, sizes = self._shared.plans, []
        for k, segment in enumerate(self._segments, start=1):
            plan = plans.find(segment_name(segment.file.sha256))
            if plan is None:
                raise not_built(plans, f"segment {k} of {self.bundle.folder}")
            sizes.append(plan.key.recipe.max_batch)
        self.max_batch = self.batch_size = min(sizes)
        plan = plans.find(FRAME)
        frame = None if plan is None else plan.key.recipe.frame
        if frame is not None and frame.graph == frames.GRAPH:  # else another mate-edge made it
            self.frame_shape, self.frame_color = (frame.height, frame.width), frame.color

    def _reset(self) -> None:
        self._memory: Memory | None = None
        self._next: int | None = None
        """The segment whose input is loaded; None when there is none, as after a failure."""
        self._rows = 0

    def _without_graphs(self, why: str) -> None:
        self.graphs = f"off: {why}"
        self.device += ", without CUDA graphs"

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return self.bundle.manifest.segments

    def _open_memory(self) -> Memory:
        """Return where everything lies; allocate it at first, all or nothing."""
        if self._memory is None:
            held = Holdings(self._cuda, mapped=self._integrated)
            try:
                self._memory = self._allocate(held)
            except EngineError:
                held.close()
                raise
        return self._memory

    def _allocate(self, held: Holdings) -> Memory:
        n, sizes = self.max_batch, [segment.input.nbytes for segment in self._segments]
        images = held.buffer(n * sizes[0])
        return Memory(
            held=held,
            images=images,
            inputs=[images.address, *(held.device(n * size) for size in sizes[1:])],
            staging=held.host(n * max(sizes[1:])).array if len(sizes) > 1 else None,
            logits=held.buffer(n * max(s.outputs[-1].nbytes for s in self._segments)),
            spare=held.device(n * max(sizes)) if n > 1 else 0,
        )

    def open(self, k: int) -> None:
        """See `Engine.open`; segment 0 preprocesses frames, when an engine for that was built."""
        if self._memory is None or k not in self._memory.parts:
            self._cuda.use()  # this thread may be another than the one that made the engine
            part = self._load_frames() if k == 0 else self._load_segment(k)
            self._make_room(int(part.engine.engine.device_memory_size_v2))
            part.single = self._context(part, fixed=True)
            if k > 0:
                self._set_batch(part, part.single, 1)
            self._open_memory().parts[k] = part

    def _load_segment(self, k: int) -> EnginePart:
        segment, what = self._segments[k - 1], f"segment {k} of {self.bundle.folder}"
        ports = [Port.of(segment.input, True), *(Port.of(o, False) for o in segment.outputs)]
        engine = self._shared.get(segment_name(segment.file.sha256), what, ports)
        memory = self._open_memory()
        *features, logits = segment.outputs
        addresses = {segment.input.name: memory.inputs[k - 1], logits.name: memory.logits.address}
        if features:
            addresses[features[0].name] = memory.inputs[k]
        return EnginePart(
            what, engine, segment.input.name, segment.input.shape, addresses, logits.nbytes
        )

    def _load_frames(self) -> EnginePart:
        if self.frame_shape is None:
            raise EngineError(
                f"no engine for frames is built: type mate-edge build {self.bundle.folder} "
                "--frame WIDTHxHEIGHT"
            )
        what, shape = f"the preprocessing of {self.bundle.folder}", self._frame_dimensions()
        images = (1, *self._segments[0].input.shape)
        ports = [
            Port(frames.INPUT, True, "uint8", shape, free_axes=0),
            Port(frames.OUTPUT, False, "float32", images, free_axes=0),
        ]
        engine = self._shared.get(FRAME, what, ports)
        memory = self._open_memory()
        memory.frame = memory.frame or memory.held.buffer(int(np.prod(shape)))
        addresses = {frames.INPUT: memory.frame.address, frames.OUTPUT: memory.inputs[0]}
        return EnginePart(what, engine, frames.INPUT, shape, addresses)

    def _frame_dimensions(self) -> tuple[int, ...]:
        """[H, W, 3] of the frames."""
        assert self.frame_shape is not None
        return (*self.frame_shape, FRAME_CHANNELS)

    def _make_room(self, wanted: int) -> None:
        """Make the scratch memory large enough for one more engine.

        Nothing runs meanwhile: whoever runs a segment waits for it. Graphs know the old address and
        are recorded again.
        """
        memory = self._open_memory()
        old, size = memory.scratch
        wanted = max(wanted, SMALLEST_SCRATCH)
        if wanted <= size:
            return
        memory.scratch = memory.held.device(wanted), wanted
        for part in memory.parts.values():
            part.warm = False  # a context on new memory runs once before it is recorded
            for context in filter(None, (part.single, part.wide)):
                context.set_device_memory(*memory.scratch)
            if part.graph is not None:
                graph, part.graph = part.graph, None
                memory.held.drop_graph(graph)
        if old:
            memory.held.free(old)

    def _context(self, part: EnginePart, fixed: bool) -> Any:
        """Return a context of a part on the addresses of this engine."""
        context = self._shared.context(part.engine, fixed)
        if context is None:
            raise self._failure(part, "no context can be made")
        context.set_device_memory(*self._open_memory().scratch)
        for tensor, address in part.addresses.items():
            if not context.set_tensor_address(tensor, address):
                raise self._failure(part, f"the address of {tensor} is refused")
        self._library.errors(of_this_thread=True)  # what was logged on the way stopped nothing
        return context

    def _set_batch(self, part: EnginePart, context: Any, n: int) -> None:
        if not context.set_input_shape(part.input, (n, *part.shape)):
            raise self._failure(part, f"a batch of {n} is refused")

    def _failure(self, part: EnginePart, what: str) -> EngineError:
        said = self._library.errors(of_this_thread=True)
        return EngineError(f"{part.what}: {what}" + (f": {said}" if said else ""))

    def load(self, inputs: NDArray[np.generic], k: int = 1) -> None:
        """See `Engine.load`.

        Raises:
            UsageError: more samples than the engines were built for.
        """
        tensor, n = self._segments[k - 1].input, len(inputs)
        if n > self.max_batch:
            raise UsageError(
                f"{n} samples at once, but the engines take {self.max_batch}: type mate-edge build "
                f"{self.bundle.folder} --max-batch {n}"
            )
        if inputs.shape[1:] != tensor.shape or n == 0:
            raise EngineError(
                f"segment {k} of {self.bundle.folder} takes samples of {tensor.shape}, "
                f"not {inputs.shape}"
            )
        self._next = None
        self._cuda.use()
        memory = self._open_memory()
        host = (memory.images.host if k == 1 else memory.staging)[: n * tensor.nbytes]
        host.view(tensor.dtype).reshape(inputs.shape)[...] = inputs
        if k > 1 or not memory.images.mapped:
            self._cuda.to_device(memory.inputs[k - 1], host, memory.held.stream)
        self._next, self._rows = k, n

    def load_frame(self, frame: Any) -> None:
        """See `Engine.load_frame`."""
        self._next = None
        self._cuda.use()
        self.open(0)
        memory, shape = self._open_memory(), self._frame_dimensions()
        taken = take_frame(frame, self._cuda, memory.held.stream)
        if taken.shape != shape:
            raise ImageError(
                f"the engine was built for frames of shape {shape}, not {taken.shape}: give such "
                f"frames, or type mate-edge build {self.bundle.folder} --frame WIDTHxHEIGHT"
            )
        if isinstance(taken, DeviceFrame):
            size, to = memory.frame.host.nbytes, memory.frame.address
            self._cuda.on_device(to, taken.address, size, memory.held.stream)
        elif taken.dtype != np.uint8:
            raise ImageError(f"a frame must be uint8 in 0..255, not {taken.dtype}")
        else:
            memory.frame.host.reshape(taken.shape)[...] = taken
            if not memory.frame.mapped:
                self._cuda.to_device(memory.frame.address, memory.frame.host, memory.held.stream)
        self._launch(memory, memory.parts[0], 1)
        self._next, self._rows = 1, 1

    def run(self, k: int) -> NDArray[np.float32]:
        """See `Engine.run`.

        Raises:
            EngineError: besides, nothing is loaded for this segment, as after a failure.
        """
        self.open(k)
        if self._next != k:
            raise EngineError(f"segment {k} of {self.bundle.folder} has no input: load one first")
        self._next = None
        memory, n, output = self._open_memory(), self._rows, self._segments[k - 1].outputs[-1]
        self._launch(memory, memory.parts[k], n)
        host = memory.logits.host[: n * output.nbytes]
        logits: NDArray[np.float32] = (
            host.view(output.dtype).reshape(n, *output.shape).astype(np.float32)
        )
        if k < self.num_segments:
            self._next = k + 1
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See `Engine.keep`: what stays moves up on the device, in runs of neighbouring rows."""
        k = self._next
        if k is None:
            return
        self._next = None
        memory = self._open_memory()
        stream, base = memory.held.stream, memory.inputs[k - 1]
        row_bytes, to = self._segments[k - 1].input.nbytes, 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            start, count = int(run[0]), len(run)
            source, target, size = (
                base + start * row_bytes,
                base + to * row_bytes,
                count * row_bytes,
            )
            if 0 < start - to < count:  # the two places overlap
                self._cuda.on_device(memory.spare, source, size, stream)
                source = memory.spare
            if start != to:
                self._cuda.on_device(target, source, size, stream)
            to += count
        self._next, self._rows = k, to

    def _launch(self, memory: Memory, part: EnginePart, n: int) -> None:
        """Run a part on what lies at its input, and wait until its results can be read."""
        if n > 1:
            part.wide = part.wide or self._context(part, fixed=False)
            self._set_batch(part, part.wide, n)
            self._enqueue(memory, part, part.wide, n)
        else:
            if part.warm and part.graph is None and not self.graphs.startswith("off"):
                self._record(memory, part)
            if part.graph is not None:
                self._cuda.graph_launch(part.graph, memory.held.stream)
            else:
                self._enqueue(memory, part, part.single, 1)
            part.warm = True
        self._cuda.event_record(memory.held.event, memory.held.stream)
        self._cuda.event_wait(memory.held.event)

    def _enqueue(self, memory: Memory, part: EnginePart, context: Any, n: int) -> None:
        """Put a part into the stream, and the copy of its logits."""
        launched = context.execute_async_v3(memory.held.stream)
        said = self._library.errors(of_this_thread=True)
        if not launched or said:
            raise EngineError(f"{part.what} failed to launch: {said or 'no reason was logged'}")
        if part.logits_bytes and not memory.logits.mapped:
            host = memory.logits.host[: n * part.logits_bytes]
            self._cuda.to_host(host, memory.logits.address, memory.held.stream)

    def _record(self, memory: Memory, part: EnginePart) -> None:
        """Record a part as a graph; after `RECORDINGS` failures launch plainly, and say why."""
        stream, failed = memory.held.stream, None
        try:
            self._cuda.graph_begin(stream)
            try:
                self._enqueue(memory, part, part.single, 1)
            except EngineError as error:
                failed = error
            except BaseException:  # Ctrl-C must not leave the stream recording
                with suppress(EngineError):
                    memory.held.drop_graph(memory.held.graph(self._cuda.graph_end(stream)))
                raise
            graph = memory.held.graph(self._cuda.graph_end(stream))
            if failed is None:
                part.graph, self.graphs = graph, "on"
            else:
                memory.held.drop_graph(graph)
        except EngineError as error:
            failed = failed or error
        if failed is not None:
            part.spoilt += 1
            if part.spoilt == RECORDINGS:
                self._without_graphs(str(failed))

    def clone(self) -> TensorRTEngine:
        """See `Engine.clone`: deserialised engines are shared; stream and memory are not."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._reset()
        return twin

    def close(self) -> None:
        """See `Engine.close`.

        Raises:
            EngineError: CUDA failed at it; everything that could be released is.
        """
        failed = None
        if self._memory is not None:
            failed = self._memory.held.close()
            for part in self._memory.parts.values():  # contexts go before their engines
                part.single = part.wide = None
        self._reset()
        if failed is not None:
            raise failed


class TensorRTRTXEngine(TensorRTEngine):
    """Runs segments with TensorRT for RTX, whose calls are the same; see `TensorRTEngine`."""

    library_name = "tensorrt_rtx"
