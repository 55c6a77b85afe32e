"""GStreamer pipelines, run by `gst-launch-1.0` as a process of its own; no Python package needed.

JetPack brings `gst-launch-1.0` and its camera elements. We append a conversion to RGB and a sink
that writes raw frames into a pipe; the size of the frames is in what `gst-launch-1.0 -v` prints.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import ImageError, UsageError
from mate_edge.images import MAX_PIXELS, TOO_LARGE
from mate_edge.runtime.sources.source import Item, Shot, Source

LAUNCH = "gst-launch-1.0"
SINK = "mate_edge_frames"
CAPS = re.compile(rf"{SINK}\.GstPad:sink: caps = video/x-raw.*")
SIDE = r"{}=\(int\)(\d+)"
RATE = re.compile(r"framerate=\(fraction\)(\d+)/(\d+)")
ERROR = re.compile(r"(?:ERROR: from element \S+|WARNING: erroneous pipeline): (.*)")
REASON = re.compile(r"(?:system error: |No such |Failed to |Error )\S.*")
PIPE_BYTES = 2**20
END_S = 3.0


class Pipeline(Source):
    """What a pipeline without a sink yields, such as `videotestsrc ! video/x-raw,width=640`.

    Args:
        name: as the user typed it.
        pipeline: as `gst-launch-1.0` takes it, in the shell's quotes.

    Raises:
        UsageError: GStreamer is not installed, or the quotes do not match.
    """

    alone = live = has_frames = True

    def __init__(self, name: str, pipeline: str) -> None:
        super().__init__(name)
        self.width = len(name) + len(" #00000")
        try:
            self._elements = shlex.split(pipeline)
        except ValueError as error:
            raise UsageError(f"{name}: {str(error).lower()}") from None
        self._process: subprocess.Popen[str] | None = None
        if not self._elements:
            raise UsageError(f"{name}: no pipeline, such as gst:'videotestsrc num-buffers=30'")
        if shutil.which(LAUNCH) is None:
            raise UsageError(
                f"{LAUNCH} is missing, which {name.partition(':')[0]}: needs: apt-get install "
                "gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
            )

    def interrupt(self) -> None:
        """End the pipeline: who reads from it finds its end."""
        if self._process is not None:
            _end(self._process)

    def command(self, descriptor: int) -> list[str]:
        """Return what is run; the frames are written to `descriptor`."""
        rgb = ["!", "videoconvert", "!", "video/x-raw,format=RGB"]
        sink = ["!", "fdsink", f"name={SINK}", f"fd={descriptor}", "sync=false"]
        # -e: a pipeline that is interrupted finishes what else it writes
        return [LAUNCH, "-e", "-v", *self._elements, *rgb, *sink]

    def __iter__(self) -> Iterator[Item]:
        """Yield the frames until the pipeline ends; then its error, if it had one."""
        ours, theirs = os.pipe()
        with suppress(OSError, AttributeError):  # more than the system allows
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        process = subprocess.Popen(
            self.command(theirs),
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C"},
            start_new_session=True,  # ctrl-C is for us, and we end it
        )
        self._process = process
        os.close(theirs)
        assert process.stdout is not None
        log, seen = _Log(process.stdout), False
        try:
            with open(ours, "rb", buffering=0) as pipe:
                for item in self._frames(pipe, log):
                    seen = True
                    yield item
        finally:
            _end(process)
            log.join()
        if log.error is not None:
            yield ImageError(f"{self.name} stopped: {log.error}")
        elif not seen:
            yield ImageError(f"{self.name} ended without a frame")

    def _frames(self, pipe: IO[bytes], log: _Log) -> Iterator[Item]:
        number, began_ns = 0, 0
        head = pipe.read(1)
        if not head:
            return
        size = log.wait()  # it was printed before the first frame was written
        if size is None:
            yield ImageError(f"{self.name} does not say how large its frames are")
            return
        width, height = size
        if width * height > MAX_PIXELS:
            yield ImageError(f"{self.name} {TOO_LARGE}")
            return
        self.fps = log.fps
        stride = -(-3 * width // 4) * 4  # GStreamer's rows begin at multiples of 4 bytes
        while True:
            rows = np.empty((height, stride), np.uint8)
            data = rows.data.cast("B")
            data[: len(head)] = head
            filled = len(head)
            while filled < len(data):
                count = pipe.readinto(data[filled:])  # type: ignore[attr-defined]
                if not count:
                    return
                filled += count
            head = b""
            if log.changed:
                yield ImageError(
                    f"{self.name} changed the size of its frames: fix it by videoscale"
                )
                return
            number += 1
            now = time.perf_counter_ns()
            began_ns = began_ns or now
            pixels = rows[:, : 3 * width].reshape(height, width, 3)
            yield Shot(self.name, _returns(pixels), number, (now - began_ns) / 1e9, now)


def csi_pipeline(sensor: str, size: tuple[int, int] | None, rate: float | None) -> str:
    """Return the pipeline of a CSI camera of a Jetson, through NVIDIA's image processor.

    Source: NVIDIA, "Accelerated GStreamer", Jetson Linux Developer Guide.

    Args:
        sensor: its number.
        size: of the frames, width and height; 1280x720 when None.
        rate: frames a second; 30 when None.
    """
    width, height = size or (1280, 720)
    numerator = round(1000 * (rate or 30))
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! 'video/x-raw(memory:NVMM),width={width},"
        f"height={height},format=NV12,framerate={numerator}/1000' ! nvvidconv ! "
        "video/x-raw,format=BGRx"
    )


class _Log:
    """Reads what gst-launch prints, so that it never waits for us, and keeps what matters."""

    def __init__(self, lines: IO[str]) -> None:
        self.size: tuple[int, int] | None = None
        self.changed = False
        self.fps: float | None = None
        self.error: str | None = None
        self._lines = lines
        self._known = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self) -> tuple[int, int] | None:
        """Return width and height of the frames, once they are known; None: they never are."""
        self._known.wait(END_S)
        return self.size

    def join(self) -> None:
        """Wait until all is read; the process has ended."""
        self._thread.join(END_S)

    def _read(self) -> None:
        complete = False
        for line in self._lines:
            if caps := CAPS.search(line):
                self._take(caps[0])
            elif self.error is None:
                if found := ERROR.search(line):
                    self.error = found[1].strip().rstrip(".")
                    if "nvarguscamerasrc" in self.error and "no element" in self.error:
                        self.error += ", which only JetPack has"
            elif not complete and (found := REASON.match(line.strip())):
                complete = True
                self.error += f" ({found[0].rstrip('.')})"
        self._known.set()  # or never will be

    def _take(self, caps: str) -> None:
        rate = RATE.search(caps)
        if rate is not None and int(rate[1]):
            self.fps = int(rate[1]) / int(rate[2])
        width, height = (re.search(SIDE.format(side), caps) for side in ("width", "height"))
        if width is not None and height is not None:
            size = int(width[1]), int(height[1])
            self.changed = self.size not in (None, size)
            self.size = self.size or size
            self._known.set()


def _returns(pixels: NDArray[np.uint8]) -> Callable[[], NDArray[np.uint8]]:
    return lambda: pixels


def _end(process: subprocess.Popen[str]) -> None:
    """End it: first as ctrl-C does, so that it can finish its files."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
