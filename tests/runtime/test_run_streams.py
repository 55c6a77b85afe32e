"""`mate-edge run` on videos and streams: answers, outputs, deadlines, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip

from mate_edge.bundle import read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.errors import ImageError, UsageError
from mate_edge.runtime import sources
from mate_edge.runtime.classify import Run, classify
from mate_edge.runtime.outputs.lines import JsonLines
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.sources.source import STALL_S, Item, Shot, Source

Frames = Callable[..., None]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, golden: dict[str, np.ndarray]) -> Path:
    """The golden images as frames of a video without loss."""
    pytest.importorskip("av", reason="PyAV is not installed")
    pictures = [np.ascontiguousarray(np.broadcast_to(p, (*p.shape[:2], 3)))
                for p in golden["images"]]  # fmt: skip
    return write_clip(tmp_path_factory.mktemp("clips") / "golden.mkv", pictures, "ffv1")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Make `fake:0` a source: gray frames, each numbered, and what the test does before each."""

    def make(count: int, before: Callable[[int], Item | None] = lambda number: None) -> None:
        class Fake(Source):
            alone = has_frames = True
            fps = 25.0

            def __iter__(self) -> Iterator[Item]:
                for number in range(1, count + 1):
                    instead = before(number)
                    if instead is not None:
                        yield instead
                        return
                    frame = np.full((48, 64, 3), number, np.uint8)
                    yield Shot(self.name, lambda frame=frame: frame, number, number / 25)

        monkeypatch.setitem(sources.KINDS, "fake", lambda name, rest, wanted: Fake(name))

    return make


def test_the_frames_of_a_video_get_the_answers_that_the_images_get(
    cli: Any, bundle_folder: Path, clip: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    expected = simulate(resolve_policy(read_bundle(bundle_folder), "balanced"), golden["logits"])
    rows = tmp_path / "rows.csv"
    done = cli("run", "--bundle", bundle_folder, "--json", "--max-ms", "1000", "--csv", rows, clip)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == expected.predictions.tolist()
    assert [line["exit"] for line in lines] == expected.exits.tolist()
    assert [line["frame"] for line in lines] == list(range(1, 9))
    assert {line["source"] for line in lines} == {str(clip)}
    assert "steady" not in lines[0]
    with open(rows, newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["label"] for row in written] == [line["label"] for line in lines]
    assert [float(row["time_s"]) for row in written] == [number / 25 for number in range(8)]
    assert "8 frames: exit 1" in done.stderr
    assert "deadline 1000 ms: 0 missed" in done.stderr


def test_paths_on_stdin_are_answered_as_they_come_and_ctrl_c_keeps_what_was_answered(
    bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "mate_edge", "run", "--bundle", str(bundle_folder), "--json",
         "--csv", str(rows), "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(3):
        process.stdin.write(f"{pictures}/{number}.png\n")
        process.stdin.flush()  # the next path comes only when this one was answered
        assert json.loads(process.stdout.readline())["source"] == f"{pictures}/{number}.png"
        assert len(rows.read_text().splitlines()) >= 2
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, "")
    assert "3 images: exit 1" in told
    assert "Traceback" not in told
    assert len(rows.read_text().splitlines()) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stream_with_the_summary_and_a_video_that_plays(
    number: signal.Signals,
    code: int,
    camera: Frames,
    bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    before = signal.getsignal(number)
    camera(1000, lambda frame: os.kill(os.getpid(), number) if frame == 6 else None)
    video, rows = tmp_path / "out.mp4", tmp_path / "rows.csv"
    run = Run(save_video=video, csv=rows, json=True)
    assert classify(["fake:0"], bundle_folder, run) == code
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    assert "5 frames: exit 1" in printed.err
    assert len(rows.read_text().splitlines()) == 6
    with av.open(str(video)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in
                  container.decode(video=0)]  # fmt: skip
    assert [time for time, _ in frames] == pytest.approx([n / 25 for n in range(1, 6)])
    assert frames[0][1][:10].max() > 100 > frames[0][1][30:].max()  # text on a nearly black frame
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == ["out.mp4", "rows.csv", "state"][: 2 + (tmp_path / "state").exists()]
    )
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("number", "code", "deadline"),
    [(signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--max-ms", "50"])],
)
def test_a_signal_ends_the_wait_for_a_stream_that_never_begins(
    number: signal.Signals, code: int, deadline: list[str], bundle_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "mate_edge", "run", "--bundle", str(bundle_folder), *deadline,
             "--save-video", "out.mp4", source],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        link, _ = silent.accept()  # it waits for a first byte now
        began = time.monotonic()
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
        link.close()
    assert (process.returncode, printed) == (code, "")
    assert "Traceback" not in told
    assert time.monotonic() - began < STALL_S
    assert not list(tmp_path.glob("*.mp4"))


def test_nothing_is_read_ahead_of_the_answers(
    camera: Frames, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    monkeypatch.setattr(JsonLines, "add", lambda self, answer: answered.append(1))
    ahead: list[int] = []
    camera(20, lambda number: ahead.append(number - 1 - len(answered)))
    assert classify(["fake:0"], bundle_folder, Run(json=True)) == 0
    assert ahead == [0] * 20


def test_a_camera_that_vanishes_leaves_its_answers_and_exit_code_1(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ImageError("fake:0 stopped: No such device")
    camera(9, lambda number: gone if number == 5 else None)
    assert classify(["fake:0"], bundle_folder, Run()) == 1
    printed = capsys.readouterr()
    assert "fake:0 #4 " in printed.out
    assert "1 could not be read" in printed.out
    assert "mate-edge: fake:0 stopped: No such device" in printed.err
    camera(9, lambda number: gone)
    assert classify(["fake:0"], bundle_folder, Run()) == 2


def test_a_full_disk_ends_the_run_with_its_reason_and_the_summary(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    camera(9)
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left on device"):
        classify(["fake:0"], bundle_folder, Run(csv=Path("/dev/full"), max_ms=1000.0))
    assert "1 frame: exit 1" in capsys.readouterr().out


def test_a_video_that_cannot_be_written_leaves_no_part_of_it(
    camera: Frames, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    camera(9)
    open_ = av.open

    def full(*arguments: Any, **options: Any) -> Any:
        open_(*arguments, **options).close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(av, "open", full)
    with pytest.raises(UsageError, match=r"cannot write .*out.mp4: No space left"):
        classify(["fake:0"], bundle_folder, Run(save_video=tmp_path / "out.mp4"))
    assert not list(tmp_path.glob("*.mp4")) + list(tmp_path.glob(".*.mp4"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["0.png", "--csv", "none/rows.csv"], "cannot write none/rows.csv: No such file"),
        (["0.png", "--csv", "."], "cannot write .: Is a directory"),
        (["0.png", "--csv", "0.png"], "0.png is what is classified"),
        (["0.png", "--save-video", "out.mp4"], "goes with one video, camera or stream"),
        (["video:0.png", "--save-video", "0.png"], "0.png is what is classified"),
        (["fake:0", "--csv", "a.mp4", "--save-video", "a.mp4"], "are both a.mp4: name two files"),
        (["fake:0", "--save-video", "out.txt"], "takes a file of .mp4, .mov"),
        (["fake:0", "--save-video", "none/out.mp4"], "cannot write none/out.mp4: No such file"),
        (["0.png", "--patience-frames", "0"], "--patience-frames must be 1 or more"),
        (["0.png", "--metrics-port", "70000"], "between 0 and 65535"),
        (["0.png", "--frame", "large"], "WIDTHxHEIGHT"),
        (["0.png", "--every-frame"], "--every-frame goes with a camera"),
        (["vidoe:0.mp4"], "Did you mean video?"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_file(
    arguments: list[str],
    says: str,
    typed: Any,
    camera: Frames,
    bundle_folder: Path,
    pictures: Path,
) -> None:
    for option, package in (("--save-video", "av"), ("--metrics-port", "prometheus_client")):
        if option in arguments:
            pytest.importorskip(package, reason=f"{package} is not installed")
    camera(3)
    before = sorted(pictures.iterdir())
    done = typed("run", "--bundle", bundle_folder, *arguments, cwd=pictures)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]
    assert sorted(pictures.iterdir()) == before


def test_a_file_that_holds_no_answers_is_never_replaced_by_them(
    typed: Any, own_bundle: Path, pictures: Path
) -> None:
    for file in (own_bundle / "manifest.json", pictures / "0.png"):
        before = file.read_bytes()
        done = typed("run", "--bundle", own_bundle, "--csv", file, pictures, cwd=pictures)
        assert done.returncode == 2
        assert f"{file} is there and holds no answers of run" in done.stderr
        assert file.read_bytes() == before


def test_stdin_without_a_path_is_a_mistake(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(UsageError, match="- named nothing to classify"):
            classify(["-"], bundle_folder, Run())


def test_a_steady_label_stands_beside_the_frames_own(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera(6)
    assert classify(["fake:0"], bundle_folder, Run(json=True, patience=2)) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    differ = sum(line["label"] != line["steady"] for line in lines)
    assert (f"{differ} of the labels are the steady ones" in printed.err) == (differ > 0)
    steady = lines[0]["label"]
    for line, earlier in zip(lines[1:], lines, strict=False):
        if line["label"] == earlier["label"]:
            steady = line["label"]
        assert line["steady"] == steady


def test_a_frames_age_counts_against_its_deadline(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Old(Source):
        alone = live = has_frames = True

        def __iter__(self) -> Iterator[Item]:
            frame = np.zeros((48, 64, 3), np.uint8)
            for number in (1, 2):
                age_ms = 500 if number == 1 else 20_000
                arrived = time.perf_counter_ns() - age_ms * 10**6
                yield Shot(self.name, lambda: frame, number, 0.0, arrived)

    monkeypatch.setitem(sources.KINDS, "old", lambda name, rest, wanted: Old(name))
    run = Run(json=True, max_ms=10_000.0, wanted=sources.Wanted(every_frame=True))
    assert classify(["old:0"], bundle_folder, run) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert 500 < first["elapsed_ms"] < 10_000
    assert second["elapsed_ms"] > 20_000
    assert [first["deadline_missed"], second["deadline_missed"]] == [False, True]
    assert second["exit"] == 1  # no time was left for more


def test_prometheus_reads_a_stream_while_it_runs(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    read: list[str] = []

    def look(number: int) -> None:
        if number == 6:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
                read.append(reply.read().decode())

    camera(8, look)
    assert classify(["fake:0"], bundle_folder, Run(metrics_port=port, policy="deepest")) == 0
    model = read_bundle(bundle_folder).manifest.name
    line = f'mate_edge_predictions_total{{exit="3",halted_by="last-exit",model="{model}"}} 5.0'
    assert line in read[0]
    assert f"http://127.0.0.1:{port}/metrics" in capsys.readouterr().err


def test_without_prometheus_it_says_what_to_install(
    bundle_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "mate_edge.runtime.metrics", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'mate-edge\[serve\]'"):
        classify([str(pictures / "0.png")], bundle_folder, Run(metrics_port=0))


def test_closed_streams_are_no_reason_to_fail(
    bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    program = f"{sys.executable} -m mate_edge run --bundle {bundle_folder} --csv rows.csv "
    for redirected, printed in ((f"{pictures} >&-", ""), (f"{pictures} 2>&-", "source")):
        done = subprocess.run(
            ["bash", "-c", program + redirected], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(printed)
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 9
    done = subprocess.run(
        ["bash", "-c", program + "- <&-"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (2, "mate-edge: - named nothing to classify\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_stdout_ends_the_run_with_its_reason_and_the_summary(
    options: list[str], warm: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    command = ["run", "--bundle", bundle_folder, "--max-ms", "1000", "--csv", rows, pictures]
    done = run_onto_a_full_disk(warm, *command, *options)
    assert done.returncode == 2
    *_, counted, _, _, last = done.stderr.splitlines()
    assert counted.startswith("1 image: exit 1")
    assert last == "mate-edge: cannot write to stdout: No space left on device"
    assert len(rows.read_text().splitlines()) == 2  # what was answered is written


def test_a_full_disk_under_stdout_gets_one_line_from_every_command(
    warm: Any, bundle_folder: Path
) -> None:
    certified = ["tune", bundle_folder, "--max-risk", "10%", "--delta", "20%"]
    for command in (certified, ["profile", "--help"]):
        done = run_onto_a_full_disk(warm, *command)
        assert done.returncode == 2
        assert done.stderr == "mate-edge: cannot write to stdout: No space left on device\n"


def test_a_full_disk_under_stdout_is_told_where_nothing_is_kept_back(
    warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # as containers are started
    for command in ("doctor", "--help", "--version"):
        done = run_onto_a_full_disk(warm, command)
        assert done.returncode == 2
        assert done.stderr == "mate-edge: cannot write to stdout: No space left on device\n"


def run_onto_a_full_disk(warm: Any, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    command = [warm.folder / "mate-edge", *arguments]
    with open("/dev/full", "w") as full:
        return subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_goes_away_ends_it_without_a_traceback(
    bundle_folder: Path, pictures: Path
) -> None:
    program = (f"{sys.executable} -m mate_edge run --bundle {bundle_folder} --json {pictures} "
               "| head -n 1; exit ${PIPESTATUS[0]}")  # fmt: skip
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode in (0, 141)  # it may have been done before
    assert "Traceback" not in done.stderr


def test_one_image_loads_nothing_that_only_videos_need(bundle_folder: Path, pictures: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mate_edge.runtime.classify import Run, classify\n"
        f"classify([{str(pictures / '0.png')!r}], Path({str(bundle_folder)!r}), Run())\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "mate_edge.runtime.sources" in loaded
    assert not loaded & {"av", "prometheus_client", "PIL.ImageDraw"}
    assert not loaded & {f"mate_edge.runtime.sources.{kind}" for kind in ("gstreamer", "video")}
