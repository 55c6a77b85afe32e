"""`mate-edge run` on videos and streams: answers, outputs, deadlines, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip

from mate_edge.bundle import read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.errors import ImageError, UsageError
from mate_edge.runtime import sources
from mate_edge.runtime.classify import ClassifyOptions, classify
from mate_edge.runtime.outputs.csv_file import CsvFile
from mate_edge.runtime.outputs.lines import JsonLines
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.sources.source import Item, Shot, Source

Frames = Callable[..., None]


@pytest.fixture(scope="module")
def golden_frames(golden: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The golden images, RGB."""
    return [np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
            for image in golden["images"]]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, golden_frames: list[np.ndarray]) -> Path:
    """The golden images as frames of a video without loss."""
    pytest.importorskip("av", reason="PyAV is not installed")
    return write_clip(tmp_path_factory.mktemp("clips") / "golden.mkv", golden_frames, "ffv1")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Make `fake:0` a source: gray frames or others, and what the test does before each."""

    def make(
        count: int,
        before: Callable[[int], Item | None] = lambda number: None,
        frames: Sequence[np.ndarray] = (),
    ) -> None:
        class Fake(Source):
            alone = has_frames = True
            fps = 25.0

            def __iter__(self) -> Iterator[Item]:
                for number in range(1, count + 1):
                    instead = before(number)
                    if instead is not None:
                        yield instead
                        return
                    gray = np.full((48, 64, 3), number, np.uint8)
                    frame = frames[number - 1] if frames else gray
                    yield Shot(self.name, lambda frame=frame: frame, number, number / 25)

        monkeypatch.setitem(sources.KINDS, "fake", lambda name, rest, wanted: Fake(name))

    return make


def test_the_frames_of_a_video_get_the_answers_that_the_images_get(
    cli: Any, bundle_folder: Path, clip: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    expected = simulate(resolve_policy(read_bundle(bundle_folder), "balanced"), golden["logits"])
    rows = tmp_path / "rows.csv"
    done = cli("run", "--bundle", bundle_folder, "--json", "--max-ms", "100000", "--csv", rows,
               clip)  # fmt: skip
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
    assert "deadline 100000 ms: 0 missed" in done.stderr


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
    run = ClassifyOptions(save_video=video, csv=rows, json=True)
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


def test_a_signal_while_the_outputs_are_finished_takes_neither_them_nor_the_summary(
    camera: Frames,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    close, ended = CsvFile.close, []

    def slowly(self: CsvFile) -> None:
        if not ended:
            ended.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    def end(number: int, frame: object) -> None:
        raise AssertionError("the signal would have ended the process")

    monkeypatch.setattr(CsvFile, "close", slowly)
    camera(3)
    before = signal.signal(signal.SIGTERM, end)
    try:
        assert (
            classify(["fake:0"], bundle_folder, ClassifyOptions(csv=tmp_path / "rows.csv")) == 143
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "3 frames: exit 1" in capsys.readouterr().out


def test_nothing_is_read_ahead_of_the_answers(
    camera: Frames, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    monkeypatch.setattr(JsonLines, "add", lambda self, answer: answered.append(1))
    ahead: list[int] = []
    camera(20, lambda number: ahead.append(number - 1 - len(answered)))
    assert classify(["fake:0"], bundle_folder, ClassifyOptions(json=True)) == 0
    assert ahead == [0] * 20


def test_a_camera_that_vanishes_leaves_its_answers_and_exit_code_1(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ImageError("fake:0 stopped: No such device")
    camera(9, lambda number: gone if number == 5 else None)
    assert classify(["fake:0"], bundle_folder, ClassifyOptions()) == 1
    printed = capsys.readouterr()
    assert "fake:0 #4 " in printed.out
    assert "1 could not be read" in printed.out
    assert "mate-edge: fake:0 stopped: No such device" in printed.err
    camera(9, lambda number: gone)
    assert classify(["fake:0"], bundle_folder, ClassifyOptions()) == 2


def test_a_full_disk_ends_the_run_with_its_reason_and_the_summary(
    camera: Frames, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    camera(9)
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left on device"):
        classify(["fake:0"], bundle_folder, ClassifyOptions(csv=Path("/dev/full"), max_ms=1000.0))
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
        classify(["fake:0"], bundle_folder, ClassifyOptions(save_video=tmp_path / "out.mp4"))
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
            classify(["-"], bundle_folder, ClassifyOptions())


def test_a_steady_label_stands_beside_the_frames_own(
    camera: Frames,
    bundle_folder: Path,
    golden: dict[str, np.ndarray],
    golden_frames: list[np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = simulate(resolve_policy(read_bundle(bundle_folder), "balanced"), golden["logits"])
    other = int(np.argmax(found.predictions != found.predictions[0]))
    camera(6, frames=[golden_frames[number] for number in (0, other, 0, 0, other, other)])
    assert classify(["fake:0"], bundle_folder, ClassifyOptions(json=True, patience=2)) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    a, b = lines[0]["label"], lines[1]["label"]
    assert a != b
    assert [line["label"] for line in lines] == [a, b, a, a, b, b]
    assert [line["steady"] for line in lines] == [a, a, a, a, a, b]
    assert "2 of the labels are the steady ones" in printed.err


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
    run = ClassifyOptions(json=True, max_ms=10_000.0, wanted=sources.Wanted(every_frame=True))
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
    read: list[str] = []

    def look(number: int) -> None:
        if number == 6:
            told = re.search(r"metrics: http://127.0.0.1:(\d+)/metrics", capsys.readouterr().err)
            assert told is not None
            with urllib.request.urlopen(f"http://127.0.0.1:{told[1]}/metrics") as reply:
                read.append(reply.read().decode())

    camera(8, look)
    assert (
        classify(["fake:0"], bundle_folder, ClassifyOptions(metrics_port=0, policy="deepest")) == 0
    )
    model = read_bundle(bundle_folder).manifest.name
    line = f'mate_edge_predictions_total{{exit="3",halted_by="last-exit",model="{model}"}} 5.0'
    assert line in read[0]


def test_without_prometheus_it_says_what_to_install(
    bundle_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "mate_edge.runtime.metrics", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'mate-edge\[serve\]'"):
        classify([str(pictures / "0.png")], bundle_folder, ClassifyOptions(metrics_port=0))
