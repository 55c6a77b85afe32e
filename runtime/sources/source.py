"""What every source is: a name, and images or frames that are looked at one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import ImageError

STALL_S = 10.0
"""A live source without a frame for so long has ended."""


class Shot(msgspec.Struct, frozen=True, weakref=True):
    """One image or frame, not read yet: so one that nobody looks at costs next to nothing.

    Attributes:
        source: the file, or the video or camera that it is a frame of.
        content: the file, or what returns the frame, uint8 RGB [H, W, 3].
        number: of the frame, from 1; None for an image. Frames that were dropped count.
        time_s: of the frame, since the beginning; None for an image.
        arrived_ns: `time.perf_counter_ns()` when a live frame came; None: it waits for us.
    """

    source: str
    content: Path | Callable[[], NDArray[np.uint8]]
    number: int | None = None
    time_s: float | None = None
    arrived_ns: int | None = None

    @property
    def name(self) -> str:
        """The file, or the video and the frame's number."""
        return self.source if self.number is None else f"{self.source} #{self.number}"

    def read(self) -> Path | NDArray[np.uint8]:
        """Return the file's path, or the frame, uint8 RGB [H, W, 3]."""
        return self.content if isinstance(self.content, Path) else self.content()


Item = Shot | ImageError
"""What a source yields: something to look at, or why it cannot be; the source goes on or ends."""


class Source(ABC):
    """Something that the user named. It is read once, lazily, and reads nothing ahead.

    Attributes:
        name: as the user typed it.
        width: characters that the names of its shots take, as far as is known before.
        alone: whether it may be the only source, since nobody knows when it ends.
        live: whether frames come even if nobody looks, so that old ones may be dropped.
        has_frames: whether it is a video or a camera.
        fps: frames a second; None: unknown, or not opened yet.
    """

    alone = live = has_frames = False
    fps: float | None = None

    def __init__(self, name: str) -> None:
        self.name, self.width = name, len(name)

    def open(self) -> None:  # noqa: B027 - most have nothing to open
        """Open what must be opened to know whether it is live.

        Raises:
            ImageError: it cannot be opened.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Yield what there is to look at."""

    def interrupt(self) -> None:  # noqa: B027 - most never block for long
        """End whoever waits for the next frame in another thread, if that can be done."""

    def remarks(self) -> list[str]:
        """Return what is to be said of it at the end."""
        return []
