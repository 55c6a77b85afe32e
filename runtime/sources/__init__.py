"""What the user names to be classified. To add a kind of source: a class, and a line in `KINDS`.

A kind is imported when it is named: one image shall not wait for cameras.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mate_edge.errors import ImageError, UsageError
from mate_edge.names import look_up
from mate_edge.runtime.sources.files import StandardInput, open_path
from mate_edge.runtime.sources.images import exists
from mate_edge.runtime.sources.source import Item, Shot, Source

if TYPE_CHECKING:
    from mate_edge.runtime.sources.newest import Newest


class Wanted(msgspec.Struct, frozen=True):
    """What is asked of cameras and live sources.

    Attributes:
        size: of a camera's frames, width and height; None: its own.
        fps: frames a second of a camera; None: its own.
        every_frame: look at each frame of a live source, however old.
    """

    size: tuple[int, int] | None = None
    fps: float | None = None
    every_frame: bool = False


Make = Callable[[str, str, Wanted], Source]
"""Gets the name as typed, what follows the colon, and what is wanted."""


def _stream(name: str, rest: str, wanted: Wanted) -> Source:
    from mate_edge.runtime.sources.video import Stream

    return Stream(name)


def _csi(name: str, rest: str, wanted: Wanted) -> Source:
    if not rest.isdecimal():
        raise UsageError(f"csi: takes the number of a sensor, such as csi:0, not {rest!r}")
    from mate_edge.runtime.sources.gstreamer import Pipeline, csi_pipeline

    return Pipeline(name, csi_pipeline(rest, wanted.size, wanted.fps))


def _camera(name: str, rest: str, wanted: Wanted) -> Source:
    if not (rest.isdecimal() or rest.startswith("/")):
        raise UsageError(
            f"camera: takes a number or a device, such as camera:0 or camera:/dev/video0, not "
            f"{rest!r}"
        )
    from mate_edge.runtime.sources.video import Camera

    return Camera(name, rest, wanted.size, wanted.fps)


def _pipeline(name: str, rest: str, wanted: Wanted) -> Source:
    from mate_edge.runtime.sources.gstreamer import Pipeline

    return Pipeline(name, rest)


def _video(name: str, rest: str, wanted: Wanted) -> Source:
    if not rest:
        raise UsageError("video: takes a file, such as video:recording.bin")
    from mate_edge.runtime.sources.video import VideoFile

    return VideoFile(rest)


KINDS: dict[str, Make] = {
    "camera": _camera,
    "csi": _csi,
    "gst": _pipeline,
    "video": _video,
    "rtsp": _stream,
    "rtsps": _stream,
    "rtmp": _stream,
    "srt": _stream,
    "udp": _stream,
    "tcp": _stream,
    "http": _stream,
    "https": _stream,
}
"""What a name may begin with, before its colon; everything else is a file, a folder or a glob."""

CAMERAS = ("camera", "csi")


class Sources:
    """All that the user named, looked at one after another; nothing is read ahead.

    Attributes:
        sources: each of them.
    """

    def __init__(self, sources: Sequence[Source], every_frame: bool = False) -> None:
        self.sources, self._every_frame = sources, every_frame
        self._newest: Newest | None = None

    @property
    def dropped(self) -> int:
        """How many frames of a live source nobody saw."""
        return 0 if self._newest is None else self._newest.dropped

    def newer(self, item: Item, items: Iterator[Item]) -> Item:
        """Return the next item where `item`, seen a while ago, is an old frame of a live source."""
        if self._newest is None or not isinstance(item, Shot):
            return item
        newer = next(items, None)
        if newer is None:
            return item
        self._newest.dropped += 1
        return newer

    def __iter__(self) -> Iterator[Item]:
        for source in self.sources:
            try:
                source.open()
            except ImageError as error:
                yield error
                continue
            if source.live and not self._every_frame:
                from mate_edge.runtime.sources.newest import Newest

                self._newest = Newest(source)
                yield from self._newest
            else:
                yield from source

    def remarks(self) -> list[str]:
        """Return what is to be said of the sources at the end."""
        return [line for source in self.sources for line in source.remarks()]


def open_sources(names: Sequence[str], wanted: Wanted | None = None) -> Sources:
    """Return what the names mean, checked as far as can be without reading it.

    Args:
        names: files, folders, globs, `-` for paths on stdin, or KIND:... of `KINDS`.
        wanted: of cameras and live sources.

    Raises:
        UsageError: an empty name, an unknown kind, a folder without images, a glob that matches
            nothing, a camera that is not there, a package or program that is missing, a rate that
            is none, or several sources one of which need never end.
    """
    wanted = wanted or Wanted()
    if wanted.fps is not None and not 0 < wanted.fps < math.inf:
        raise UsageError(f"--fps must be a positive number, not {wanted.fps:g}")
    found = [_open(name, wanted) for name in names]
    for source in found:
        if source.alone and len(found) > 1:
            raise UsageError(
                f"{source.name} may never end, so it must be the only source: run mate-edge once "
                "for each"
            )
    kinds = {name.partition(":")[0] for name in names}
    if (wanted.size, wanted.fps) != (None, None) and not kinds & set(CAMERAS):
        raise UsageError("--frame and --fps go with camera:N or csi:N")
    if wanted.every_frame and not any(source.alone for source in found):
        raise UsageError("--every-frame goes with a camera or a stream: no file's frame is dropped")
    return Sources(found, wanted.every_frame)


def _open(name: str, wanted: Wanted) -> Source:
    if not name:
        raise UsageError("'' names nothing to classify: for the working folder, type .")
    if name == "-":
        return StandardInput(name)
    kind = re.match(r"([A-Za-z][A-Za-z0-9+]+):", name)
    if kind is None or exists(Path(name)):
        return open_path(name)
    return look_up("kind of source", kind[1], KINDS)(name, name[kind.end() :], wanted)
