"""A video with the answers drawn on its frames (PyAV encodes, Pillow draws)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mate_edge.errors import UsageError
from mate_edge.extras import extra
from mate_edge.files import check_replaces, temporary_name
from mate_edge.runtime.outputs.answer import Answer, Output
from mate_edge.runtime.sources.source import Source

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CODECS = {
    ".mp4": ("libx264", "mpeg4"),
    ".mov": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".avi": ("mpeg4",),
    ".webm": ("libvpx", "libvpx-vp9"),
}
"""The first that this FFmpeg has is taken."""
FAST = {"libx264": {"preset": "veryfast"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}}
TICKS = 60_000
"""A second; MPEG-4 counts no finer than 65,535."""
USUAL_FPS = 30.0
MARK = "answers drawn by mate-edge run"
"""The comment in each saved video: a file without it is none, and stays."""
ENDS_BYTES = 8192
"""Every container has the comment in the first or the last so many."""


class SavedVideo(Output):
    """Frames at their own times, with label, confidence, exit and ms.

    It is written beside its place and renamed when it is finished, however the run ends: there is a
    playable file, or none. A process that is killed leaves none. An older one is replaced.

    Args:
        path: of the video; the suffix chooses the container.
        source: whose frames come.

    Raises:
        UsageError: another suffix, no PyAV, a place that cannot be written, or one where something
            else is.
    """

    def __init__(self, path: Path, source: Source) -> None:
        if path.suffix.lower() not in CODECS:
            raise UsageError(f"--save-video takes a file of {', '.join(CODECS)}, not {path}")
        with extra("video"):
            import av
        codecs = [name for name in CODECS[path.suffix.lower()] if name in av.codecs_available]
        if not codecs:
            raise UsageError(f"this PyAV cannot encode {path.suffix} files: choose another suffix")
        self._path, self._source, self._codec = path, source, codecs[0]
        self._temporary = temporary_name(path, path.suffix)
        check_replaces(path, "video of run", lambda head: MARK.encode() in _ends(path))
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._last = -1
        with self._writing():
            self._temporary.touch()

    def add(self, answer: Answer) -> None:
        """Draw and encode a frame."""
        assert isinstance(answer.frame, np.ndarray)
        picture = draw(answer)
        with self._writing():
            self._encode(picture, answer.shot.time_s or 0.0)

    def _encode(self, picture: Image.Image, time_s: float) -> None:
        import av

        if self._container is None:
            self._container = av.open(f"file:{self._temporary}", "w")
            self._container.metadata["comment"] = MARK
            rate = Fraction(self._source.fps or USUAL_FPS).limit_denominator(1001)
            options = FAST.get(self._codec, {})
            added = self._container.add_stream(self._codec, rate=rate, options=options)
            self._stream = cast("VideoStream", added)
            self._stream.width, self._stream.height = (max(2, n - n % 2) for n in picture.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, TICKS)
        assert self._stream is not None
        pixels = np.asarray(picture)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
            self._stream.width, self._stream.height, "yuv420p"
        )
        self._last = max(self._last + 1, round(time_s * TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the video and put it into its place; without a frame there is none."""
        if self._container is None or self._stream is None:
            self._discard()
            return
        try:
            with self._writing():
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._temporary, self._path)
        finally:
            self._discard()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what keeps it from being written into a line, and leave no part of it."""
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, OSError) as error:
            what = str(self._path)
            if self._stream is not None and not isinstance(error, OSError):
                what += f", {self._stream.width}x{self._stream.height} by {self._codec}"
            self._discard()
            raise UsageError(f"cannot write {what}: {error.strerror}") from None

    def _discard(self) -> None:
        container, self._container, self._stream = self._container, None, None
        with suppress(Exception):  # it failed before, and its file goes now
            if container is not None:
                container.close()
        with suppress(OSError):
            self._temporary.unlink()


def _ends(path: Path) -> bytes:
    """Return a file's first and last bytes."""
    with open(path, "rb") as file:
        first = file.read(ENDS_BYTES)
        file.seek(max(0, os.fstat(file.fileno()).st_size - ENDS_BYTES))
        return first + file.read(ENDS_BYTES)


def draw(answer: Answer) -> Image.Image:
    """Return the frame with a line at its top: label, confidence, exit, ms, and whether late."""
    found: Any = answer.prediction
    picture = Image.fromarray(answer.frame)  # type: ignore[arg-type]
    text = f"{answer.label} {answer.confidence:.2f}  exit {found.exit}  {found.elapsed_ms:.1f} ms"
    if found.deadline_missed:
        text += "  missed"
    canvas = ImageDraw.Draw(picture, "RGBA")
    size = max(10, picture.height // 22)
    font = ImageFont.load_default(size)
    margin = size // 3
    left, top, right, bottom = canvas.textbbox((margin, margin), text, font)
    box = (0, 0, max(right, left) + margin, max(bottom, top) + margin)
    canvas.rectangle(box, fill=(160, 0, 0, 200) if found.deadline_missed else (0, 0, 0, 170))
    canvas.text((margin, margin), text, fill="white", font=font)
    return picture
