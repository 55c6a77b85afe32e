"""Where answers go: what is in the files and on the terminal, and that nothing answered is lost."""

from __future__ import annotations

import re
import resource
import socket
from pathlib import Path

import pytest

from mate_edge.errors import UsageError
from mate_edge.runtime.outputs.answer import Answer, Steady
from mate_edge.runtime.outputs.csv_file import HEADER, CsvFile
from mate_edge.runtime.outputs.lines import LiveLine, Table
from mate_edge.runtime.outputs.summary import Summary
from mate_edge.runtime.prediction import HaltedBy, Prediction
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources.source import Shot


def answer(
    name: str, label: str = "cat", exit_: int = 1, late: bool = False, by: HaltedBy = "policy"
) -> Answer:
    found = Prediction(
        label=label, index=0, confidence=0.9, relative=[0.9, 0.1],
        exit=exit_, halted_by=by, elapsed_ms=2.0, decode_ms=0.0, preprocess_ms=0.0,
        segment_ms=(1.0,), deadline_missed=late,
    )  # fmt: skip
    return Answer(Shot(name, Path(name)), Path(name), found, label, 0.9)


def test_a_label_changes_only_when_so_many_frames_in_a_row_agree() -> None:
    def shown(classes: str, frames: int) -> str:
        steady = Steady(frames)
        shot = Shot("camera", Path(), 1)
        return "".join(str(steady.index(shot, int(index))) for index in classes)

    assert shown("0111022210", 1) == "0111022210"
    assert shown("0110122210", 2) == "0011112222"
    assert shown("0111022210", 3) == "0001111222"
    assert shown("0101010101", 2) == "0000000000"
    with pytest.raises(UsageError, match="--patience-frames must be 1 or more, not 0"):
        Steady(0)


def test_each_video_begins_with_a_mind_of_its_own() -> None:
    steady = Steady(2)
    found = [steady.index(Shot(name, Path(), 1), index) for name, index in
             [("a", 0), ("a", 1), ("b", 2), ("b", 1), ("b", 1)]]  # fmt: skip
    assert found == [0, 0, 2, 2, 1]


def test_the_tables_first_column_grows_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(0, ["cat", "dog"])
    for name in ("a.png", "folder/long-name.png", "b.png", f"{'x' * 60}.png"):
        table.add(answer(name))
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.index("label") == 8
    assert [row.index("cat") for row in rows] == [8, 22, 22, 50]
    assert rows[3].startswith("…xxx")
    assert "xxx.png  cat" in rows[3]


def test_no_name_breaks_the_line_or_commands_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table(3, ["a"])
    table.add(answer("a\nb", "c\x1b[31md"))
    assert capsys.readouterr().out.splitlines()[1].startswith("a\ufffdb     c\ufffd[31md")


def test_rows_are_in_the_file_as_soon_as_they_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b"old rows\r\n" * 9)
    rows = CsvFile(path, patient=False)
    assert "old rows" in path.read_text()  # until there is something new
    rows.add(answer("a,b.png"))
    rows.add(answer("c.png", "dog", 2, late=True))
    assert path.read_text().splitlines() == [
        "source,frame,time_s,label,steady,index,confidence,exit,halted_by,elapsed_ms,"
        "deadline_missed",
        '"a,b.png",,,cat,,0,0.900000,1,policy,2.000,false',
        "c.png,,,dog,,0,0.900000,2,policy,2.000,true",
    ]
    rows.close()


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = CsvFile(path, patient=False)
    with pytest.raises(UsageError, match="written by another run"):
        CsvFile(path, patient=False)
    rows.add(answer("a.png"))
    rows.close()
    again = CsvFile(path, patient=False)
    again.add(answer("b.png"))
    again.close()
    assert "b.png" in path.read_text()


def test_a_row_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = CsvFile(path, patient=False)
    rows.add(answer("a.png"))
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, before[1]))
    try:
        with pytest.raises(UsageError, match="cannot write .*: File too large"):
            rows.add(answer("b.png"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rows.close()
    assert path.read_bytes() == whole


def test_a_socket_takes_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("rows.sock")
        with pytest.raises(UsageError, match=r"cannot write rows.sock: No such device or address"):
            CsvFile(Path("rows.sock"), patient=False)


def test_a_file_without_rows_does_not_stay(tmp_path: Path) -> None:
    rows = CsvFile(tmp_path / "rows.csv", patient=False)
    for _ in range(2):  # what fails at the end closes it again
        rows.close()
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_at_which_exits_the_deadline_halted(bundle_folder: Path) -> None:
    with Predictor.load(bundle_folder, lazy=True) as predictor:
        summary = Summary(predictor, 5.0)
        for exit_, by in [(1, "policy"), (1, "deadline"), (2, "deadline"), (1, "deadline")]:
            summary.add(answer("a.png", exit_=exit_, by=by))
        text = summary.text()
    assert "4 images: exit 1 75 %, exit 2 25 %, exit 3 0 %" in text
    assert "deadline 5 ms: 0 missed, 3 halted by it (2 at exit 1, 1 at exit 2)" in text


def test_the_live_line_says_how_fast_which_exits_and_how_many_misses(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    now = [100.0]
    with Predictor.load(bundle_folder, lazy=True) as predictor:
        summary = Summary(predictor, 5.0, lambda: now[0])
        line = LiveLine(summary, lambda: 7, lambda: now[0])
        for number in range(50):
            now[0] += 0.02
            summary.add(answer("a.png", exit_=1 + number % 2, late=number % 10 == 0))
            line.draw()
            if number < 48:
                line.clear()
    shown = [text for text in capsys.readouterr().err.split("\r") if text not in ("", "\x1b[K")]
    assert len(shown) == 48  # the last two say the same: it is drawn once
    assert 4 <= len(set(shown)) <= 6  # it changes a few times a second
    told = r"50.0 a second; exit 1 5\d %, exit 2 \d\d %, exit 3 0 %; 1\d.\d % missed; 7 dropped"
    assert re.match(told, shown[-1])
    monkeypatch.setenv("COLUMNS", "20")
    now[0] += 1
    line.draw()
    assert re.fullmatch(r"\r.{19}\x1b\[K", capsys.readouterr().err)  # it must not wrap
    line.clear()
    line.clear()  # there is nothing left to clear
    assert capsys.readouterr().err == "\r\x1b[K"
