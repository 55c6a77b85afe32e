"""A session bound once to the memory that it reads and writes: for one sample, and for several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mate_edge.bundle import Segment
from mate_edge.images import Preprocessing, normalize


class Single:
    """A segment and its memory for one sample, bound once: nothing is allocated or copied later.

    Saves 2 to 6 us a segment, of the 100 that a small one takes.

    Args:
        session: of the segment.
        segment: its shapes and dtypes.
        source: what it reads, [1, ...]; None gives it memory of its own, to be copied into.
        in_place: see `BlockedSegment`.

    Attributes:
        session: as given.
        binding: of it to the memory below.
        source: what it reads.
        features: what it writes for the next segment; the logits after the last one.
        logits: what it writes for its exit, float32 [1, C].
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        segment: Segment,
        source: NDArray[np.generic] | None,
        in_place: str | None,
    ) -> None:
        self.session, self.binding = session, session.io_binding()
        if source is None:
            source = np.empty((1, *segment.input.shape), segment.input.dtype)
        self.source: NDArray[Any] = source
        given = _shared(source)
        self.binding.bind_ortvalue_input(segment.input.name, given)
        written = [np.empty((1, *output.shape), output.dtype) for output in segment.outputs]
        _bind_outputs(self.binding, segment, in_place, written)
        self.features: NDArray[np.generic] = written[0]
        self.logits: NDArray[np.float32] = written[-1]

    def takes(self, features: NDArray[np.generic] | None) -> bool:
        """Say whether this is one sample as the segment wants it, and copy it if so."""
        if features is None or features.shape != self.source.shape:
            return False
        if features.dtype != self.source.dtype:
            return False
        np.copyto(self.source, features)
        return True


class Several:
    """A segment and its memory for the largest batch so far, which smaller ones share.

    A batch is run in parts. The session is bound to the memory of each the first time that a part
    begins and ends there; binding it anew takes 0.1 ms right after a segment. What a part reads is
    copied together, or normalised, just before, so that samples that have left cost nothing and
    the others lie in the caches.

    Args:
        session: of the segment.
        segment: its shapes and dtypes.
        in_place: see `BlockedSegment`.
        preprocessing: of pixels, which segment 1 may be run on instead.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        segment: Segment,
        in_place: str | None,
        preprocessing: Preprocessing | None,
    ) -> None:
        self._session, self._segment, self._in_place = session, segment, in_place
        self._shape, self._dtype = segment.input.shape, np.dtype(segment.input.dtype)
        self._preprocessing = preprocessing
        self._read: NDArray[Any] = np.empty(0)
        self._written: list[NDArray[np.generic]] = []
        self._bindings: dict[tuple[int, int], Any] = {}

    def run(
        self,
        features: NDArray[Any] | None,
        rows: NDArray[np.intp] | None,
        at_once: int,
        backwards: bool,
    ) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
        """Run it on n samples, in parts of `at_once`.

        Backwards the last part comes first: the segment before wrote it last, and it is still in
        the caches.

        Args:
            features: what it is run on, [m, ...], or of segment 1 pixels uint8 [m, H, W, C].
            rows: which of them, n; None for all.
            at_once: samples, at most.
            backwards: whether to begin with the last part.

        Returns:
            What it writes for the next segment, until the next run; and the logits [n, C], the
            caller's own.
        """
        assert features is not None, "nothing is loaded"
        n = len(features) if rows is None else len(rows)
        pre = self._preprocessing if features.dtype == np.uint8 else None
        if pre is None and (features.shape[1:] != self._shape or features.dtype != self._dtype):
            wanted = self._segment.input
            given = f"{features.dtype} {list(features.shape[1:])}"
            raise ValueError(f"it takes {wanted.dtype} {list(wanted.shape)}, not {given}")
        self._make_room(n, min(n, at_once))
        for start in range(0, n, at_once)[:: -1 if backwards else 1]:
            stop = min(start + at_once, n)
            read = self._read[: stop - start]
            part = slice(start, stop) if rows is None else rows[start:stop]
            if pre is not None:
                normalize(features[part], pre, read)
            elif isinstance(part, slice):
                np.copyto(read, features[part])
            else:
                np.take(features, part, axis=0, out=read, mode="clip")
            binding = self._bindings.get((start, stop)) or self._bind(start, stop)
            self._session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = self._written[-1][:n].copy()
        return self._written[0][:n], logits

    def _make_room(self, n: int, at_once: int) -> None:
        """Have memory for n samples, and for parts of `at_once` to be read."""
        segment = self._segment
        if not self._written or n > len(self._written[0]) or at_once > len(self._read):
            self._bindings = {}  # first: Ctrl-C
            self._read = np.empty((at_once, *segment.input.shape), segment.input.dtype)
            self._written = [np.empty((n, *one.shape), one.dtype) for one in segment.outputs]

    def _bind(self, start: int, stop: int) -> Any:
        """Bind the session to the memory of a part of the batch."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._segment.input.name, _shared(self._read[: stop - start]))
        written = [memory[start:stop] for memory in self._written]
        _bind_outputs(binding, self._segment, self._in_place, written)
        self._bindings[start, stop] = binding
        return binding


def _bind_outputs(
    binding: Any, segment: Segment, in_place: str | None, written: Sequence[NDArray[np.generic]]
) -> None:
    """Let a segment write into `written`, the memory of its outputs."""
    for output, memory in zip(segment.outputs, written, strict=True):
        binding.bind_ortvalue_output(output.name, _shared(memory))
    if in_place is not None:
        binding.bind_ortvalue_output(in_place, _shared(written[0]))


def _shared(array: NDArray[np.generic]) -> onnxruntime.OrtValue:
    """Return a view of an array on a CPU, which must outlive it."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
