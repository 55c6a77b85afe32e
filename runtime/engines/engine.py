"""What every engine is: the thing that executes the segments on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError
from mate_edge.images import normalize
from mate_edge.machine import cpu_count

ONE_THREAD_FLOPS = 60_000_000
"""Networks below this (about 2 ms on one core) lose more by waking threads than they gain."""

BATCH_SIZE, BATCH_BYTES = 64, 64 * 2**20
"""Of a batch on a CPU, at most: the features of all are kept from segment to segment."""


def cpu_threads(bundle: Bundle) -> int:
    """Return how many threads a segment gets on the CPU: one, or all cores' for larger networks."""
    return 1 if bundle.manifest.unsplit_flops < ONE_THREAD_FLOPS else cpu_count()


class Engine(ABC):
    """Executes the segments of one bundle, one after another; the features stay inside.

    Segments are numbered from 1, like exits. Use it as a context manager, or call `close`.
    """

    graphs: str = ""
    """Whether segments run as CUDA graphs at batch 1: `on`, or `off:` and why; empty on a CPU."""
    device: str
    """What computes, for people: `onnxruntime 1.23 on the CPU, 2 threads`."""
    gpu: str | None = None
    """The GPU and what reaches it, for the fingerprint; None on a CPU."""
    device_key: str
    """What computes, for the device state: what was built or measured under another is not used."""
    frame_shape: tuple[int, int] | None = None
    """Height and width of the frames that `load_frame` takes; None when it takes none."""
    frame_color: str = "rgb"
    """Their channel order, `rgb` or `bgr`."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.max_batch: int = bundle.manifest.build.max_batch
        """The largest batch that was planned for; a CPU takes larger ones, too."""
        largest = max(segment.input.nbytes for segment in bundle.manifest.segments)
        self.batch_size: int = min(BATCH_SIZE, max(1, BATCH_BYTES // largest))
        """How many samples of a larger batch are run at once, at most."""

    @property
    def num_segments(self) -> int:
        """K."""
        return len(self.bundle.manifest.segments)

    @abstractmethod
    def open(self, k: int) -> None:
        """Make segment k ready to run; does nothing when it is.

        Raises:
            BundleError: its file is missing or altered.
            EngineError: it cannot be made ready on this device.
        """

    @abstractmethod
    def load(self, inputs: NDArray[np.generic], k: int = 1) -> None:
        """Take a batch to be run from segment k on.

        Args:
            inputs: preprocessed images float32 [n, C, H, W], or what segment k - 1 hands over, of
                the dtype that the manifest names.
            k: the segment that they go into.
        """

    def load_pixels(self, pixels: NDArray[np.uint8]) -> None:
        """Normalise images and take them as the batch, now or when segment 1 runs.

        Args:
            pixels: uint8 [n, H, W, C], scaled and cropped; not to be changed before segment 1 ran.
        """
        self.load(normalize(pixels, self.bundle.manifest.preprocessing))

    def load_frame(self, frame: Any) -> None:
        """Preprocess a frame on the device and take it as the batch, of one; wait until it is done.

        Args:
            frame: uint8 [H, W, 3] of `frame_shape` and `frame_color`: numpy, or an object with
                `__dlpack__` or `__cuda_array_interface__`.

        Raises:
            ImageError: no such frame.
            EngineError: the engine takes none, or it failed.
        """
        raise EngineError(f"{self.device} takes no frames: preprocess them first")

    @abstractmethod
    def run(self, k: int) -> NDArray[np.float32]:
        """Run segment k on what segment k - 1 left; return its logits, float32 [n, C].

        They are the caller's: no later run overwrites them. Opens the segment when that has not
        been done.
        """

    @abstractmethod
    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all samples of the batch but `rows`, rising, before the next segment."""

    @abstractmethod
    def clone(self) -> Engine:
        """Return an engine for another thread, sharing what can be shared."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close; a failure on the way out is worth telling, one that follows from it is not."""
        with suppress(EngineError) if exception[0] is not None else nullcontext():
            self.close()
