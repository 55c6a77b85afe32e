"""`mate-edge run` as a process: its streams, its signals, and what it loads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


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


@pytest.mark.parametrize(
    ("number", "code", "deadline"),
    [(signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--max-ms", "50"])],
)
def test_a_signal_ends_the_wait_for_a_stream_that_never_begins(
    number: signal.Signals, code: int, deadline: list[str], bundle_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    patient = ("from mate_edge.runtime.sources import video\n"  # the signal ends it, and no limit
               "video.OPEN_S = video.STALL_S = 600.0\n"
               "from mate_edge.cli import main\nmain()")  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        source = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", patient, "run", "--bundle", str(bundle_folder), *deadline,
             "--save-video", "out.mp4", source],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            link, _ = silent.accept()  # it waits for a first byte now
            process.send_signal(number)
            printed, told = process.communicate(timeout=120)
            link.close()
        finally:
            process.kill()
    assert (process.returncode, printed) == (code, "")
    assert "Traceback" not in told
    assert not list(tmp_path.glob("*.mp4"))


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


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_disk_under_stderr_costs_no_answer(
    kept: bool, bundle_folder: Path, pictures: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mate_edge", "run", "--bundle", bundle_folder, "--json"]
        done = subprocess.run(
            [*command, pictures],
            stdout=subprocess.PIPE, stderr=full, text=True, timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": "" if kept else "1"},
        )  # fmt: skip
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(list(pictures.iterdir()))


def test_a_reader_that_goes_away_ends_it_without_a_traceback(
    bundle_folder: Path, pictures: Path
) -> None:
    program = (f"{sys.executable} -m mate_edge run --bundle {bundle_folder} --json {pictures} "
               "| head -n 1; exit ${PIPESTATUS[0]}")  # fmt: skip
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode in (0, 141)  # it may have been done before
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["--max-ms", "100000"]])
def test_a_reader_that_goes_away_before_the_summary_ends_it_as_one_before(
    options: list[str], bundle_folder: Path, pictures: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mate_edge", "run", "--bundle", str(bundle_folder), *options, "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(f"{pictures}/0.png\n{pictures}/1.png\n")
    process.stdin.flush()
    for _ in range(3):  # the header and two rows
        process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    told = process.stderr.read()
    assert process.wait(60) == 141
    assert "2 images: exit 1" in told
    assert "Traceback" not in told


def test_json_is_utf8_whatever_the_terminals_code(
    bundle_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "0.png").rename(pictures / "Größe-猫.png")
    command = [sys.executable, "-m", "mate_edge", "run", "--bundle", str(bundle_folder)]
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    image = str(pictures / "Größe-猫.png")
    done = subprocess.run([*command, "--json", image], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode())["source"] == image
    done = subprocess.run([*command, image], capture_output=True)
    assert "Größe-?.png" in done.stdout.decode("latin-1")


def test_no_name_forges_a_line_or_commands_the_terminal(
    cli: Any, bundle_folder: Path, pictures: Path
) -> None:
    folder = pictures.rename(pictures.with_name("\x1b]0;"))
    (folder / "film.mp4").touch()
    forged = "none\nmate-edge: all is well\x1b]0;.png"
    done = cli("run", "--bundle", bundle_folder, folder, forged)
    assert done.returncode == 1
    assert "mate-edge: none\ufffdmate-edge: all is well\ufffd]0;.png does not" in done.stderr
    assert "1 video was left out of the folder" in done.stdout
    unwritable = cli("run", "--bundle", bundle_folder, "--csv", folder / "none" / "a.csv", folder)
    assert unwritable.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr + unwritable.stderr


def test_one_image_loads_nothing_that_only_videos_need(bundle_folder: Path, pictures: Path) -> None:
    names = [str(pictures / "0.png")]
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mate_edge.runtime.classify import ClassifyOptions, classify\n"
        f"classify({names}, Path({str(bundle_folder)!r}), ClassifyOptions())\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "mate_edge.runtime.sources" in loaded
    assert not loaded & {"av", "prometheus_client", "PIL.ImageDraw"}
    assert not loaded & {f"mate_edge.runtime.sources.{kind}" for kind in ("gstreamer", "video")}
