"""Video files, cameras and streams, decoded by PyAV (the extra `video`).

PyAV is FFmpeg in a wheel. It is imported when the first video is named, which takes 60 ms.
"""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import ImageError, UsageError
from mate_edge.extras import extra
from mate_edge.images import MAX_PIXELS, TOO_LARGE
from mate_edge.runtime.sources.source import STALL_S, Item, Shot, Source

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

T = TypeVar("T")
DEVICES = Path("/dev")
CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,m4v,mjpeg,yuv4mpegpipe"
)
"""FFmpeg's demuxers that read one file; the others open what a playlist names."""
OPEN_S = 15.0
MISSING_S = 0.5
MISSING_SHARE = 0.02
"""A video that ends so much before its end is truncated; containers round their durations."""


class Decoded(Source):
    """What PyAV opens and decodes."""

    has_frames = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with extra("video"):
            import av  # noqa: F401
        self.width = len(name) + len(" #00000")
        self._container: InputContainer | None = None

    @abstractmethod
    def _open(self) -> InputContainer:
        """Open it; what FFmpeg says goes through."""

    def open(self) -> None:
        """Open it and read its header.

        Raises:
            ImageError: it is missing, no video, or too large.
        """
        from av.error import FFmpegError

        if self._container is not None:
            return
        try:
            container = self._open()
        except (FFmpegError, OSError) as error:
            raise ImageError(_why(self.name, error, "cannot be opened")) from None
        try:
            self._check(container)
        except ImageError:
            container.close()
            raise
        self._container = container

    def _check(self, container: InputContainer) -> None:
        if not container.streams.video:
            raise ImageError(f"{self.name} holds no video")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise ImageError(f"{self.name} {TOO_LARGE}")
        self.fps = float(stream.average_rate) if stream.average_rate else None

    def __iter__(self) -> Iterator[Item]:
        """Yield its frames, and at the end its error, if it has one."""
        from av.error import FFmpegError, InvalidDataError

        try:
            self.open()
        except ImageError as error:
            yield error
            return
        assert self._container is not None
        number = damaged = 0
        end_s, began_ns = 0.0, 0
        with self._container as container:
            stream = container.streams.video[0]
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                    frames = packet.decode()
                except StopIteration:
                    break
                except InvalidDataError:
                    damaged += 1
                    continue
                except (FFmpegError, OSError) as error:
                    yield ImageError(_why(self.name, error, "stopped"))
                    return
                for frame in frames:
                    number += 1
                    now = time.perf_counter_ns()
                    began_ns = began_ns or now
                    if self.live:
                        time_s = (now - began_ns) / 1e9
                    else:
                        time_s = (
                            (number - 1) / (self.fps or 25) if frame.time is None else frame.time
                        )
                    end_s = max(end_s, time_s)
                    arrived = now if self.live else None
                    yield Shot(
                        self.name, partial(to_rgb, self.name, frame), number, time_s, arrived
                    )
            if self.live:
                yield ImageError(f"{self.name} stopped: the stream ended")
            else:
                end_s += 1 / (self.fps or 25)
                fault = _fault(self.name, container, stream, number, end_s, damaged)
                if fault is not None:
                    yield fault


class VideoFile(Decoded):
    """A video file; none of its frames is ever dropped."""

    def _open(self) -> InputContainer:
        import av

        # a video must not make FFmpeg open other files or addresses, and 12:30.mp4 is no address
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        return av.open(f"file:{self.name}", options=options)


class Camera(Decoded):
    """A camera that Linux knows, through v4l2: `camera:0` is /dev/video0.

    Args:
        name: as the user typed it.
        device: the number, or a path such as /dev/v4l/by-id/...
        size: of the frames to ask for, width and height; None lets the camera choose.
        rate: frames a second to ask for.

    Raises:
        UsageError: there is no such device.
    """

    alone = live = True

    def __init__(
        self, name: str, device: str, size: tuple[int, int] | None, rate: float | None
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise UsageError(f"{name}: cameras are read through Linux' v4l2: use gst:PIPELINE")
        self.device = Path(device)
        if device.isdecimal():
            self.device = DEVICES / f"video{device}"
        if not self.device.exists():
            there = sorted(f"camera:{path.name[5:]}" for path in DEVICES.glob("video[0-9]*"))
            found = f"there are {', '.join(there)}" if there else "no camera is plugged in"
            raise UsageError(f"{name}: no {self.device}; {found}")
        super().__init__(name)
        self.options = {}
        if size is not None:
            self.options["video_size"] = f"{size[0]}x{size[1]}"
        if rate is not None:
            self.options["framerate"] = f"{rate:g}"

    def _open(self) -> InputContainer:
        import av

        # a camera without a signal gives nothing, and FFmpeg waits on through every signal
        return _in_thread(
            lambda: av.open(str(self.device), format="v4l2", options=self.options),
            f"{self.name} gives nothing",
        )


class Stream(Decoded):
    """A stream of the network, such as an RTSP camera's; a recorded one is no live one."""

    alone = True

    def _open(self) -> InputContainer:
        import av

        # what is lost over UDP, FFmpeg shows as gray blocks
        options = {"rtsp_transport": "tcp"} if self.name.startswith("rtsp") else {}
        container = _in_thread(
            lambda: av.open(self.name, options=options, timeout=(OPEN_S, STALL_S)),
            f"{self.name} gives nothing",
        )
        # a server of RTSP paces what it recorded, too
        self.live = container.duration is None or not self.name.startswith("http")
        return container


def _in_thread(call: Callable[[], T], too_long: str) -> T:
    """Return what it returns; a signal need not wait for it, as it would for FFmpeg.

    Raises:
        ImageError: it takes too long.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        # FFmpeg may take so long twice: to connect, and to see what comes
        found, error = done.get(timeout=2 * OPEN_S + STALL_S)
    except Empty:
        raise ImageError(f"{too_long} for {2 * OPEN_S + STALL_S:g} s") from None
    if error is not None:
        raise error
    return cast("T", found)


def to_rgb(name: str, frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a frame upright, uint8 RGB [H, W, 3].

    Raises:
        ImageError: FFmpeg cannot convert it.
    """
    from av.error import FFmpegError

    try:
        pixels = cast("NDArray[np.uint8]", frame.to_ndarray(format="rgb24"))
    except (FFmpegError, ValueError) as error:
        raise ImageError(_why(name, error, "has a frame that cannot be shown")) from None
    return upright(pixels, frame.rotation)


def upright(pixels: NDArray[np.uint8], rotation: int) -> NDArray[np.uint8]:
    """Turn a frame [H, W, 3] by `rotation` degrees counter-clockwise, a multiple of 90."""
    if rotation % 360 == 0:
        return pixels
    return np.ascontiguousarray(np.rot90(pixels, round(rotation / 90)))


def _why(name: str, error: Exception, what: str) -> str:
    """Say in a line what FFmpeg or the system found."""
    from av.error import ArgumentError, ExitError, InvalidDataError

    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist"
    if isinstance(error, InvalidDataError | ArgumentError):  # the second: not in `CONTAINERS`
        return f"{name} is no video in a known format, or its index is cut off"
    if isinstance(error, ExitError):
        return f"{name} {what}: nothing came for {STALL_S:g} s"
    return f"{name} {what}: {getattr(error, 'strerror', None) or error}"


def _fault(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    frames: int,
    end_s: float,
    damaged: int,
) -> ImageError | None:
    """Return what was wrong with a video whose frames came to an end after `end_s`."""
    if frames == 0:
        return ImageError(f"{name} holds no frame that can be decoded")
    promised_s = _promised_s(container, stream)
    if promised_s is not None and promised_s - end_s > max(MISSING_S, MISSING_SHARE * promised_s):
        return ImageError(
            f"{name} is truncated: it ends after {end_s:.1f} s of {promised_s:.1f} s, frame "
            f"{frames}"
        )
    if damaged:
        return ImageError(f"{name} is damaged: {damaged} of its frames could not be decoded")
    return None


def _promised_s(container: InputContainer, stream: VideoStream) -> float | None:
    """Return when the video should end; None: unknown. Sound may well last longer."""
    start_s = 0.0 if container.start_time is None else container.start_time / 1e6
    if stream.duration is not None and stream.time_base is not None:
        return start_s + float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return start_s + container.duration / 1e6
    return None
