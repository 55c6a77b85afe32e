"""Pipelines through gst-launch-1.0: the real one where it is installed, and one that misbehaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mate_edge.errors import ImageError, UsageError
from mate_edge.runtime.sources import Wanted, open_sources
from mate_edge.runtime.sources.gstreamer import Pipeline, csi_pipeline
from mate_edge.runtime.sources.source import Item, Shot

EVERY = Wanted(every_frame=True)


def look_at(pipeline: str) -> list[Item]:
    return list(open_sources([f"gst:{pipeline}"], EVERY))


def frames(items: list[Item]) -> list[np.ndarray]:
    found = []
    for item in items:
        assert isinstance(item, Shot), item
        assert item.arrived_ns is not None
        frame = item.read()
        assert isinstance(frame, np.ndarray)
        found.append(frame)
    return found


@pytest.fixture(scope="module")
def gstreamer() -> None:
    """GStreamer with its base plugins."""
    command = ["gst-launch-1.0", "videotestsrc", "num-buffers=1", "!", "videoconvert", "!",
               "fakesink"]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("gst-launch-1.0 or its base plugins are not installed")


def pipelines() -> list[str]:
    """Return the command lines of this process's pipelines that run, or were not waited for."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            name = (folder / "comm").read_text() + (folder / "cmdline").read_text()
            if int(parent) == os.getpid() and "gst-launch" in name:
                found.append(name)
    return found


@pytest.mark.usefixtures("gstreamer")
def test_a_pipelines_frames_arrive_with_their_colors_whatever_their_width() -> None:
    for width, color, expected in ((320, "red", (255, 0, 0)), (322, "blue", (0, 0, 255))):
        size = f"video/x-raw,width={width},height=240"
        found = frames(look_at(f"videotestsrc pattern={color} num-buffers=7 ! {size}"))
        assert [frame.shape for frame in found] == [(240, width, 3)] * 7
        assert all((abs(frame - np.array(expected)) < 8).all() for frame in found)


@pytest.mark.usefixtures("gstreamer")
def test_a_pipeline_that_cannot_run_says_why() -> None:
    (error,) = look_at("nosuchelement")
    assert str(error) == 'gst:nosuchelement stopped: no element "nosuchelement"'
    (error,) = look_at("filesrc location=/none ! fakesrc")
    assert "stopped: " in str(error)


@pytest.mark.usefixtures("gstreamer")
def test_a_pipeline_is_ended_when_nobody_looks_any_more() -> None:
    items = iter(open_sources(["gst:videotestsrc is-live=true"], EVERY))
    assert isinstance(next(items), Shot)
    items.close()  # type: ignore[attr-defined]
    assert not pipelines()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gst-launch-1.0 that writes what the test says: `print` and `put` are given."""
    program = tmp_path / "gst-launch-1.0"
    body = tmp_path / "body.py"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "fd = int(next(a for a in sys.argv if a.startswith('fd=')).partition('=')[2])\n"
        "def put(data):\n"
        "    while data: data = data[os.write(fd, data):]\n"
        "def caps(width, height):\n"
        "    print('/GstPipeline:pipeline0/GstFdSink:mate_edge_frames.GstPad:sink: caps = '\n"
        "          f'video/x-raw, format=(string)RGB, width=(int){width}, height=(int){height}, '\n"
        "          'framerate=(fraction)30000/1001', flush=True)\n"
        f"exec(open({str(body)!r}).read())\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return body


def test_a_pipeline_that_is_stuck_is_ended_with_the_run(fake: Path) -> None:
    fake.write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit())\n"
        "caps(2, 2); put(bytes(16)); time.sleep(60)\n"
    )
    items = iter(open_sources(["gst:camera"]))  # read in a thread, which waits for frame 2
    assert isinstance(next(items), Shot)
    began = time.monotonic()
    items.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30
    assert not pipelines()


def test_rows_begin_at_multiples_of_four_bytes(fake: Path) -> None:
    fake.write_text("caps(3, 2)\nput(bytes(range(24)) * 2)\n")
    sources = open_sources(["gst:camera"], EVERY)
    first, second = frames(list(sources))
    assert first.tolist() == second.tolist()
    assert first.reshape(2, 9).tolist() == [list(range(9)), list(range(12, 21))]
    assert sources.sources[0].fps == pytest.approx(29.97, abs=0.001)


@pytest.mark.parametrize(
    ("does", "count", "says"),
    [
        ("put(bytes(16))", 0, "does not say how large its frames are"),
        ("caps(2, 2); put(bytes(16 + 5))", 1, ""),
        ("caps(100000, 100000); put(bytes(16))", 0, "pixels: scale it down first"),
        ("", 0, "ended without a frame"),
        (
            "caps(2, 2); put(bytes(16)); print('ERROR: from element /GstPipeline:pipeline0/"
            "GstV4l2Src:v4l2src0: Could not read from resource.')\n"
            "print('system error: No such device', file=sys.stderr)",
            1,
            "gst:camera stopped: Could not read from resource (system error: No such device)",
        ),
    ],
)
def test_a_pipeline_that_misbehaves_ends_with_its_reason(
    does: str, count: int, says: str, fake: Path
) -> None:
    fake.write_text(f"{does}\n")
    found = look_at("camera")
    assert len(frames([item for item in found if isinstance(item, Shot)])) == count
    errors = [str(item) for item in found if isinstance(item, ImageError)]
    assert len(errors) == bool(says)
    assert says in "".join(errors)


def test_a_pipeline_that_changes_its_frames_size_is_ended(fake: Path) -> None:
    fake.write_text(
        "import time\ncaps(2, 2); put(bytes(16)); caps(4, 2)\n"
        "while True: put(bytes(24)); time.sleep(.01)\n"
    )
    *before, error = look_at("camera")
    assert len(frames(before)) < 1000
    assert str(error) == "gst:camera changed the size of its frames: fix it by videoscale"


def test_a_csi_camera_goes_through_the_jetsons_image_processor(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(size=(1920, 1080), fps=29.97, every_frame=True)
    (camera,) = open_sources(["csi:1"], wanted).sources
    assert isinstance(camera, Pipeline)
    assert camera.command(9) == [
        *("gst-launch-1.0", "-e", "-v", "nvarguscamerasrc", "sensor-id=1", "!"),
        "video/x-raw(memory:NVMM),width=1920,height=1080,format=NV12,framerate=29970/1000",
        *("!", "nvvidconv", "!", "video/x-raw,format=BGRx"),
        *("!", "videoconvert", "!", "video/x-raw,format=RGB"),
        *("!", "fdsink", "name=mate_edge_frames", "fd=9", "sync=false"),
    ]
    assert "width=1280,height=720,format=NV12,framerate=30000/1000" in csi_pipeline("0", None, None)
    fake.write_text(
        "print('WARNING: erroneous pipeline: no element \"nvarguscamerasrc\"', file=sys.stderr)"
    )
    (error,) = list(open_sources(["csi:1"], wanted))
    assert str(error) == 'csi:1 stopped: no element "nvarguscamerasrc", which only JetPack has'


def test_without_gstreamer_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for source in ("csi:0", "gst:videotestsrc"):
        with pytest.raises(UsageError, match="gst-launch-1.0 is missing.*apt-get install"):
            open_sources([source])
