"""Files: one, those of a folder or a glob, and those whose paths come on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mate_edge.errors import ImageError, MateEdgeError, UsageError
from mate_edge.files import BUNDLE_SUFFIX, MANIFEST, RUN
from mate_edge.images import SUFFIXES
from mate_edge.runtime.sources.images import (
    KINDS,
    VIDEO_SUFFIXES,
    exists,
    is_folder,
    is_glob,
    match,
    walk,
)
from mate_edge.runtime.sources.source import Item, Shot, Source

MOST_REMARKS = 10
"""Of the folders whose paths come on stdin, or that a pattern matches."""


def open_path(name: str) -> Source:
    """Return the source that a path or a pattern names.

    A file is a video by its suffix, else an image, even when it is missing: to say so is the
    reader's part.

    Raises:
        UsageError: a bundle or a run, a folder without images, a glob that matches nothing, or a
            video where the extra `video` is not installed.
    """
    path = Path(name)
    _check_is_source(path)
    if is_folder(path):
        return Folder(name)
    if is_glob(name):
        return Glob(name)
    return open_file(path)


def _check_is_source(path: Path) -> None:
    """Refuse what other commands take where `run` takes images.

    Raises:
        UsageError: a bundle or a run.
    """
    if is_folder(path):
        if (path / MANIFEST).is_file():
            raise UsageError(f"{path} is a bundle: type mate-edge run --bundle {path} IMAGE")
        if (path / RUN).is_file():
            raise UsageError(f"{path} is a run: type mate-edge export {path}, then run its bundle")
        return
    bundle = path if path.suffix == BUNDLE_SUFFIX else path.with_name(path.name + BUNDLE_SUFFIX)
    if path.name and not exists(path) and (path == bundle or is_folder(bundle)):
        raise UsageError(f"there is no {path}: a bundle is named by --bundle, such as {bundle}")


def open_file(path: Path) -> Source:
    """Return the source that a file is."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        from mate_edge.runtime.sources.video import VideoFile

        return VideoFile(str(path))
    return ImageFile(str(path))


class ImageFile(Source):
    """An image."""

    def __iter__(self) -> Iterator[Item]:
        path = Path(self.name)
        yield Shot(self.name, path)


class Folder(Source):
    """The images of a folder and of those in it, sorted.

    Raises:
        UsageError: there are none.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._videos = 0
        first = next(walk(Path(name), SUFFIXES), None)
        if first is None:
            videos = next(walk(Path(name), VIDEO_SUFFIXES), None)
            more = "" if videos is None else f", but videos: {self._how_to_name(videos)}"
            raise UsageError(f"the folder {name} holds no images ({KINDS}){more}")
        self.width = len(str(first))

    def __iter__(self) -> Iterator[Item]:
        for found in walk(Path(self.name), SUFFIXES | VIDEO_SUFFIXES):
            if isinstance(found, ImageError):
                yield found
            elif found.suffix.lower() in SUFFIXES:
                yield Shot(str(found), found)
            else:
                self._videos += 1
                self._last = found

    def remarks(self) -> list[str]:
        """Say which videos were left out."""
        if not self._videos:
            return []
        left = "1 video was" if self._videos == 1 else f"{self._videos} videos were"
        return [f"{left} left out of the folder {self.name}: {self._how_to_name(self._last)}"]

    def _how_to_name(self, video: Path | ImageError) -> str:
        suffix = video.suffix if isinstance(video, Path) else ".mp4"
        return f"name them, such as '{os.path.join(self.name, '**', '*' + suffix)}'"


class _Several(Source):
    """Files and folders, whose folders have remarks of their own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._remarks: list[str] = []

    def _of(self, path: Path) -> Iterator[Item]:
        """Yield what a file or folder holds; one that makes no sense yields its error."""
        try:
            source = Folder(str(path)) if is_folder(path) else open_file(path)
            source.open()
        except MateEdgeError as error:
            yield ImageError(str(error))
            return
        yield from source
        if len(self._remarks) < MOST_REMARKS:
            self._remarks += source.remarks()

    def remarks(self) -> list[str]:
        """Say what the first folders have to say."""
        return self._remarks


class Glob(_Several):
    """What a pattern matches, sorted: images, videos and folders, each file once.

    Raises:
        UsageError: it matches nothing.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._matches = match(name)
        if not self._matches:
            raise UsageError(f"nothing matches {name!r}")
        self.width = max(len(str(path)) for path in self._matches)

    def __iter__(self) -> Iterator[Item]:
        named = set(self._matches)
        for path in self._matches:
            for item in self._of(path):
                file = item.content if isinstance(item, Shot) else path
                if file == path or file not in named:
                    yield item


class StandardInput(_Several):
    """The files and folders whose paths come on stdin, a line each, looked at as they come."""

    def __init__(self, name: str, lines: BinaryIO | None = None) -> None:
        super().__init__(name)
        self.width = 0
        self._lines = lines

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines or sys.stdin.buffer:
            path = os.fsdecode(line.rstrip(b"\r\n"))
            if "\0" in path:
                yield ImageError("a path on stdin holds a zero byte: give one a line (find -print)")
            elif path:
                yield from self._of(Path(path))
