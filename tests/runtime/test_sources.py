"""What a user may name, and that nothing is read before it is wanted."""

from __future__ import annotations

import math
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from clips import RtspServer, turn, write_clip
from PIL import Image

from mate_edge.errors import ImageError, UsageError
from mate_edge.runtime.sources import Wanted, open_sources
from mate_edge.runtime.sources import video as video_module
from mate_edge.runtime.sources.files import StandardInput
from mate_edge.runtime.sources.newest import Newest
from mate_edge.runtime.sources.source import Item, Shot, Source
from mate_edge.runtime.sources.video import Camera


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, its index at the front."""
    pytest.importorskip("av", reason="PyAV is not installed")
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 50, movflags="faststart")


def names(items: Iterator[Item]) -> list[str]:
    return [str(item) if isinstance(item, ImageError) else item.name for item in items]


def look_at(*sources: str | Path, wanted: Wanted | None = None) -> list[str]:
    return names(iter(open_sources([str(source) for source in sources], wanted)))


def test_a_videos_frames_are_numbered_timed_and_dropped_as_soon_as_they_are_seen(
    clip: Path,
) -> None:
    seen: list[weakref.ref[Shot]] = []
    for number, item in enumerate(open_sources([str(clip)]), start=1):
        assert isinstance(item, Shot)
        assert (item.number, item.name) == (number, f"{clip} #{number}")
        assert item.time_s == pytest.approx((number - 1) / 25)
        assert item.arrived_ns is None
        frame = item.read()
        assert isinstance(frame, np.ndarray)
        assert (frame.shape, frame.dtype) == ((48, 64, 3), np.uint8)
        seen.append(weakref.ref(item))
        assert sum(ref() is not None for ref in seen) <= 2
    assert len(seen) == 50


def test_a_video_that_a_phone_recorded_upright_is_seen_upright(clip: Path) -> None:
    for degrees, corner in ((90, (slice(0, 8), slice(-8, None))), (180, (slice(-8, None),) * 2)):
        item = next(iter(open_sources([str(turn(clip, degrees))])))
        assert isinstance(item, Shot)
        frame = item.read()
        assert isinstance(frame, np.ndarray)
        assert frame.shape == ((64, 48, 3) if degrees == 90 else (48, 64, 3))
        assert frame[corner].mean() > 200  # the bright corner was at the top left
        assert frame.mean() < 60


def test_a_truncated_video_yields_what_is_there_and_then_says_so(
    clip: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: int(0.7 * clip.stat().st_size)])
    *frames, error = look_at(cut, clip)[:-50]
    assert 5 < len(frames) < 45
    assert error.startswith(f"{cut} is truncated: it ends after ")
    assert "of 2.0 s" in error


def test_a_damaged_video_goes_on_after_the_damage_and_says_so(clip: Path, tmp_path: Path) -> None:
    data = bytearray(clip.read_bytes())
    for place in (0.6, 0.65, 0.7, 0.75):  # one alone may fall where a decoder forgives it
        start = int(place * len(data))
        data[start : start + 100] = bytes(value ^ 0x5A for value in data[start : start + 100])
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    *frames, error = look_at(damaged)
    assert 25 < len(frames) < 50
    assert "is damaged: " in error


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.mp4", None, "none.mp4 does not exist"),
        ("empty.mp4", b"", "is no video in a known format"),
        ("text.mkv", b"hello\n" * 99, "is no video in a known format"),
        ("list.mp4", b"ffconcat version 1.0\nfile own.mp4\n", "is no video in a known format"),
    ],
)
def test_what_is_no_video_is_said_and_the_next_source_goes_on(
    name: str, content: bytes | None, says: str, clip: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
        (tmp_path / "own.mp4").write_bytes(clip.read_bytes())
    first, *others = look_at(tmp_path / name, clip)
    assert says in first
    assert len(others) == 50


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mov", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("ts", "libx264"),
     ("flv", "libx264"), ("mpg", "mpeg1video"), ("wmv", "wmv2"), ("3gp", "mpeg4"),
     ("h264", "libx264"), ("m4v", "mpeg4")],
)  # fmt: skip
def test_a_video_in_any_of_its_containers_is_read(suffix: str, codec: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    items = list(open_sources([str(write_clip(tmp_path / f"clip.{suffix}", 5, codec))]))
    assert [item.number for item in items if isinstance(item, Shot)] == [1, 2, 3, 4, 5]


def test_a_video_whose_name_begins_like_an_address_is_a_file(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30.mp4").write_bytes(clip.read_bytes())
    assert look_at("./12:30.mp4") == [f"12:30.mp4 #{number}" for number in range(1, 51)]
    assert look_at("video:file:x.mp4") == ["file:x.mp4 does not exist"]


def test_a_file_of_another_suffix_is_a_video_when_it_is_called_one(
    clip: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "recording"
    plain.write_bytes(clip.read_bytes())
    assert len(look_at(f"video:{plain}")) == 50
    assert look_at(plain) == [str(plain)]  # an image, which the reader will refuse


@pytest.mark.parametrize(
    ("sources", "wanted", "says"),
    [
        (["camra:0"], None, "unknown kind of source 'camra'.*Did you mean camera?"),
        ([""], None, "'' names nothing to classify"),
        (["video:"], None, "video: takes a file"),
        (["rstp://host/live"], None, "Did you mean rtsp?"),
        (["camera:front"], None, "camera: takes a number or a device.*'front'"),
        (["csi:left"], None, "csi: takes the number of a sensor.*'left'"),
        (["gst:"], None, "no pipeline"),
        (["gst:videotestsrc ! 'video"], None, "no closing quotation"),
        (["camera:77"], None, "no /dev/video77"),
        (["rtsp://host/a", "b.png"], None, "rtsp://host/a may never end"),
        (["a.png"], Wanted(every_frame=True), "--every-frame goes with a camera"),
        (["csi:0"], Wanted(fps=math.nan), "--fps must be a positive number, not nan"),
        (["csi:0"], Wanted(fps=math.inf), "--fps must be a positive number, not inf"),
        (["camera:0"], Wanted(fps=-5), "--fps must be a positive number, not -5"),
        (["a.png"], Wanted(fps=30), "--frame and --fps go with camera"),
        (["rtsp://host/a"], Wanted(size=(640, 480)), "--frame and --fps go with camera"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_before_anything_runs(
    sources: list[str], wanted: Wanted | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", ModuleType("av"))  # nothing is opened
    with pytest.raises(UsageError, match=says):
        open_sources(sources, wanted)


@pytest.mark.parametrize("source", ["film.mp4", "rtsp://host/live", "https://host/film.mp4"])
def test_without_pyav_it_says_what_to_install(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"av is missing: pip install 'mate-edge\[video\]'"):
        open_sources([source])


def test_a_video_on_stdin_without_pyav_does_not_stop_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    first, second = names(iter(StandardInput("-", BytesIO(b"film.mp4\nimage.png\n"))))
    assert "mate-edge[video]" in first
    assert second == "image.png"


def test_a_camera_is_asked_for_the_size_and_rate_that_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr(video_module, "DEVICES", tmp_path)
    (tmp_path / "video0").write_bytes(b"")
    sources = open_sources(["camera:0"], Wanted(size=(1280, 720), fps=30.0))
    (camera,) = sources.sources
    assert isinstance(camera, Camera)
    assert camera.device == tmp_path / "video0"
    assert camera.options == {"video_size": "1280x720", "framerate": "30"}
    (error,) = list(sources)  # a file is no camera
    assert "camera:0 cannot be opened" in str(error)
    with pytest.raises(UsageError, match="no .*/video3; there are camera:0"):
        open_sources(["camera:3"])


def test_a_camera_that_never_gives_a_frame_is_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr(video_module, "DEVICES", tmp_path)
    monkeypatch.setattr(video_module, "OPEN_S", 0.01)
    monkeypatch.setattr(video_module, "STALL_S", 0.01)
    monkeypatch.setattr(av, "open", lambda *given, **options: threading.Event().wait())
    (tmp_path / "video0").write_bytes(b"")
    (error,) = list(open_sources(["camera:0"]))
    assert str(error) == "camera:0 gives nothing for 0.03 s"


def test_an_rtsp_camera_plays_until_it_vanishes(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    server = RtspServer(write_clip(tmp_path / "live.mp4", 50, "mpeg4"))
    try:
        found = list(open_sources([server.url], Wanted(every_frame=True)))
    finally:
        server.close()
    assert "SETUP RTP/AVP/TCP;unicast;interleaved=0-1" in server.asked
    *shots, end = found
    assert str(end) == f"{server.url} stopped: the stream ended"
    assert len(shots) >= 45  # FFmpeg may hold back what it has no end for
    assert all(isinstance(shot, Shot) and shot.arrived_ns is not None for shot in shots)
    assert isinstance(shots[0], Shot)
    frame = shots[0].read()
    assert isinstance(frame, np.ndarray)
    assert frame[:8, :8].mean() > 200 > 60 > frame.mean()
    assert look_at(server.url) == [f"{server.url} cannot be opened: Connection refused"]


@pytest.mark.parametrize("wanted", [None, Wanted(every_frame=True)])
def test_a_stream_whose_sender_goes_away_says_so(wanted: Wanted | None, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    sent = write_clip(tmp_path / "sent.ts", 50).read_bytes()

    def send(listening: socket.socket) -> None:
        link, _ = listening.accept()
        with link:
            link.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=send, args=[listening], daemon=True).start()
        *frames, end = look_at(url, wanted=wanted)
    assert end == f"{url} stopped: the stream ended"
    assert frames


class Camera0(Source):
    """Yields what the test's function does, and tells another that it is interrupted."""

    alone = live = has_frames = True

    def __init__(
        self,
        frames: Callable[[], Iterator[Item]],
        interrupted: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("camera")
        self._frames, self._interrupted = frames, interrupted

    def __iter__(self) -> Iterator[Item]:
        return self._frames()

    def interrupt(self) -> None:
        self._interrupted()


def shot(number: int) -> Shot:
    return Shot("camera", lambda: np.zeros((1, 1, 3), np.uint8), number, number / 25, number)


def test_who_is_slow_gets_the_newest_frame_and_the_others_are_counted() -> None:
    all_came, more = threading.Event(), threading.Event()

    def camera() -> Iterator[Item]:
        yield shot(1)
        assert more.wait(10)
        for number in range(2, 11):
            yield shot(number)
        yield ImageError("camera stopped: No such device")
        all_came.set()

    newest = Newest(Camera0(camera))
    items = iter(newest)
    assert names(iter([next(items)])) == ["camera #1"]
    more.set()
    assert all_came.wait(10)  # we were busy with frame 1 meanwhile
    assert names(items) == ["camera #10", "camera stopped: No such device"]
    assert newest.dropped == 8


def test_a_camera_that_gives_nothing_more_has_stopped() -> None:
    forever = threading.Event()

    def camera() -> Iterator[Item]:
        yield shot(1)
        forever.wait(60)

    # long enough for a busy machine to start the thread
    assert names(iter(Newest(Camera0(camera, forever.set), stall_s=2))) == [
        "camera #1",
        "camera stopped: no frame came for 2 s",
    ]
    assert forever.is_set()  # nobody reads on


def test_a_bug_in_the_readers_thread_is_no_silence() -> None:
    def camera() -> Iterator[Item]:
        yield shot(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Newest(Camera0(camera)))


def test_the_reader_stops_when_nobody_looks_any_more() -> None:
    closed = threading.Event()

    def camera() -> Iterator[Item]:
        try:
            number = 0
            while True:
                number += 1
                yield shot(number)
        finally:
            closed.set()

    items = iter(Newest(Camera0(camera)))
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(10)


def test_a_picture_is_a_picture_even_where_its_name_looks_like_a_kind(tmp_path: Path) -> None:
    picture = tmp_path / "gst:cat.png"
    Image.new("L", (8, 8)).save(picture)
    assert look_at(picture) == [str(picture)]
