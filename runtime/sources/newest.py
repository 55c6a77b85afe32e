"""The newest frame of a live source: whoever is slow misses frames, and never sees an old one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mate_edge.errors import ImageError
from mate_edge.runtime.sources.source import STALL_S, Item, Shot, Source

END_S = 1.0
"""How long the end of a run waits for the thread."""


class Newest:
    """Reads a live source in a thread of its own, and keeps one frame: the last that came.

    Args:
        source: read and closed in the thread.
        stall_s: without anything for so long it counts as ended.

    Attributes:
        dropped: frames that a newer one replaced.
    """

    def __init__(self, source: Source, stall_s: float = STALL_S) -> None:
        self.dropped = 0
        self._source, self._stall_s = source, stall_s
        self._slot: Shot | None = None
        self._errors: list[ImageError] = []
        self._bug: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Item]:
        """Yield the newest frame whenever asked, waiting for one that was not seen yet.

        After the last frame come the source's errors.
        """
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        try:
            while True:
                with self._changed:
                    came = self._changed.wait_for(
                        lambda: self._slot is not None or self._ended, self._stall_s
                    )
                    shot, self._slot = self._slot, None
                if shot is not None:
                    yield shot
                    continue
                if self._bug is not None:
                    raise self._bug
                yield from self._errors
                if not came:
                    yield ImageError(
                        f"{self._source.name} stopped: no frame came for {self._stall_s:g} s"
                    )
                return
        finally:
            self._closed = True
            self._source.interrupt()
            thread.join(END_S)

    def _read(self) -> None:
        items = iter(self._source)
        try:
            for item in items:
                if self._closed:
                    break
                if isinstance(item, ImageError):
                    self._errors.append(item)
                    continue
                with self._changed:
                    self.dropped += self._slot is not None
                    self._slot = item
                    self._changed.notify()
        except BaseException as bug:
            self._bug = bug
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify()
