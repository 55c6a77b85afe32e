"""`mate-edge run`, typed as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mate_edge
from mate_edge.bundle import read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.runtime.classify import announce
from mate_edge.runtime.engines.blocked import read_blocked
from mate_edge.runtime.latencies import keep_latencies, record_latencies
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor


def test_a_folder_a_glob_and_files_are_classified_in_order(
    cli: Any, bundle_folder: Path, pictures: Path, golden: dict[str, np.ndarray]
) -> None:
    policy = resolve_policy(read_bundle(bundle_folder), "balanced")
    expected = simulate(policy, golden["logits"])
    for sources in ([pictures], [f"{pictures}/*.png"], sorted(pictures.iterdir())):
        threads = "2" if len(sources) > 1 else "1"  # two of them use the shared pool
        done = cli("run", "--bundle", bundle_folder, "--threads", threads, "--json", *sources)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["source"] for line in lines] == sorted(map(str, pictures.iterdir()))
        assert [line["index"] for line in lines] == expected.predictions.tolist()
        assert [line["exit"] for line in lines] == expected.exits.tolist()
        assert "onnxruntime" in done.stderr


def test_the_table_and_the_summary_say_what_happened(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    done = typed(
        "run", "--bundle", bundle_folder, "--max-ms", "100000", "--policy", "deepest", pictures
    )
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    for column in ("source", "label", "confidence", "exit", "halted by", "ms"):
        assert column in header
    assert len(rows) == 8 + 3
    assert all("last-exit" in row for row in rows[:8])
    assert rows[8].startswith("8 images: exit 1 0 %, exit 2 0 %, exit 3 100 %; mean ")
    assert rows[9] == "deadline 100000 ms: 0 missed, 0 halted by it"
    assert rows[10] == "policy deepest carries no guarantee, and a deadline would void one"


def test_an_impossible_deadline_is_said_and_answered_all_the_same(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    done = typed("run", "--bundle", bundle_folder, "--max-ms", "0.001", pictures / "0.png")
    assert done.returncode == 0
    assert "exit 1 answers all the same" in done.stderr
    assert "missed" in done.stdout.splitlines()[1]
    assert "deadline 0.001 ms: 1 missed" in done.stdout


def test_a_strict_deadline_that_exit_1_may_miss_stops_before_anything_runs(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    done = typed("run", "--bundle", bundle_folder, "--max-ms", "0.001", "--strict", pictures)
    assert (done.returncode, done.stdout) == (2, "")
    *_, line = done.stderr.splitlines()
    assert "0.001 ms is less than the" in line
    done = typed("run", "--bundle", bundle_folder, "--max-ms", "10000", "--strict", pictures)
    assert done.returncode == 0, done.stderr


def test_a_warning_of_the_library_is_a_line_as_any_other(
    cli: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    assert cli("build", bundle_folder).returncode == 0
    damaged = list((tmp_path / "state").rglob("blocked-2.onnx"))
    if not damaged:
        pytest.skip("onnxruntime computes on no blocks on this CPU")
    damaged[0].write_bytes(b"?")
    done = cli("run", "--bundle", bundle_folder, "--policy", "deepest", pictures / "0.png")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "is damaged" in line]
    assert line.startswith(f"mate-edge: {damaged[0]} is damaged: mate-edge build makes it anew")
    assert "Warning" not in done.stderr


def test_it_says_where_the_latencies_come_from(
    cli: Any, bundle_folder: Path, pictures: Path
) -> None:
    command = ("run", "--bundle", bundle_folder, "--max-ms", "1000", pictures)
    first, second = cli(*command), cli(*command)
    assert "was never measured on this device" in first.stderr
    assert "was never measured" not in second.stderr
    (told,) = [line for line in first.stderr.splitlines() if "the deadline rests on" in line]
    assert told in second.stderr  # the same measurement, made at the same time
    assert "one after another, measured here at 20" in told


def test_latencies_that_vary_much_are_said_to(bundle_folder: Path) -> None:
    with Predictor.load(bundle_folder) as predictor:
        for slow, told in ((1.0, False), (40.0, True)):
            row = [1.0] * 491 + [slow] * 9
            keep_latencies(record_latencies(predictor.engine, [row] * 3, [0.0] * 500))
            said: list[str] = []
            with Predictor.load(bundle_folder) as later:
                later.know_latencies(said.append)
            assert not any("never measured" in line for line in said)
            wide = [line for line in said if "times its median" in line]
            assert len(wide) == told
            assert all("up to 40 times its median" in line for line in wide)


def test_the_likeliest_classes_are_shown_when_asked_for(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    command = ("run", "--bundle", bundle_folder, "--top", "3", pictures / "0.png")
    found = json.loads(typed(*command, "--json").stdout)
    with mate_edge.load(bundle_folder) as predictor:
        expected = predictor.predict(pictures / "0.png").probabilities
    best = np.argsort(-expected)[:3]
    assert [one["label"] for one in found["top"]] == [str(index) for index in best]
    assert [one["confidence"] for one in found["top"]] == pytest.approx(expected[best].tolist())
    row = typed(*command).stdout.splitlines()[1]
    assert row.endswith("".join(f"  {index} {expected[index]:.3f}" for index in best[1:]))
    many = json.loads(typed(*command[:-2], "99", pictures / "0.png", "--json").stdout)
    assert len(many["top"]) == 10
    refused = typed(*command[:-2], "0", pictures / "0.png")
    assert refused.returncode == 2
    assert "--top must be 1 or more, not 0" in refused.stderr


def test_a_deadline_rests_on_segments_that_fit_this_cpu(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    command = "run", "--bundle", bundle_folder, pictures / "0.png"
    assert "blocks of" not in typed(*command).stderr
    assert read_blocked(bundle) is None  # not worth the while for an image
    first, second = (typed(*command, "--max-ms", "60000").stderr for _ in range(2))
    assert read_blocked(bundle) is not None
    assert "never measured" in first
    assert "never measured" not in second


def test_one_bad_image_among_many_is_reported_and_the_others_run(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    (pictures / "bad.png").write_bytes((pictures / "0.png").read_bytes()[:40])
    done = typed("run", "--bundle", bundle_folder, pictures, "missing.jpg")
    assert done.returncode == 1
    assert done.stdout.count("  policy ") + done.stdout.count("  last-exit") == 8
    complaints = [line for line in done.stderr.splitlines() if line.startswith("mate-edge: ")]
    assert len(complaints) == 2
    assert "bad.png" in complaints[0]
    assert "missing.jpg does not exist" in complaints[1]
    assert "2 could not be read" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.png"], "none.png does not exist"),
        (["empty"], "holds no images"),
        (["x" * 300 + ".png"], "File name too long"),
        (["*.nothing"], "nothing matches"),
        (["only.mate", "0.png"], "only.mate is a bundle: type mate-edge run --bundle only.mate"),
        (["only", "0.png"], "there is no only: a bundle is named by --bundle, such as only.mate"),
        (["gone.mate", "0.png"], "there is no gone.mate: a bundle is named by --bundle"),
        (["trained", "0.png"], "trained is a run: type mate-edge export trained"),
        (["0.png", "--bundle", "trained"], "trained is a run, no bundle: type mate-edge export"),
        (["0.png", "--policy", "0.5"], "a threshold is given by --threshold 0.5"),
        (["bad.png"], "bad.png"),
        (["bad.png", "--max-ms", "50"], "bad.png"),
        (["0.png", "--max-ms", "0"], "deadline"),
        (["0.png", "--max-ms", "soon"], "soon"),
        (["0.png", "--strict"], "--max-ms"),
        (["0.png", "--threshold", "2"], "between 0 and 1"),
        (["0.png", "--threshold", "0.5", "--policy", "fast"], "not both"),
        (["0.png", "--policy", "balance"], "Did you mean balanced?"),
        (["0.png", "--engine", "onnxruntim"], "Did you mean onnxruntime?"),
        (["0.png", "--threads", "0"], "--threads must lie between 1 and"),
        (["0.png", "--threads", "99999999999"], "--threads must lie between 1 and"),
        (["0.png", "--bundle", "none.mate"], "no bundle folder none.mate"),
        (["0.png", "--bundle", "x" * 300], "cannot use xxxxxxxx"),
        (["0.png", "--maxms", "5"], "--max-ms"),
        ([], "sources"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    (pictures / "empty").mkdir()
    (pictures / "trained").mkdir()
    (pictures / "trained" / "run.json").write_text("{}")
    (pictures / "bad.png").write_bytes(b"GIF89a nonsense")
    shutil.copytree(bundle_folder, pictures / "only.mate")
    done = typed("run", *arguments, cwd=pictures)
    assert done.returncode == 2
    assert done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert line.startswith("mate-edge: ")
    assert says in line


def test_a_name_that_is_no_utf8_is_shown_as_well_as_can_be(
    cli: Any, bundle_folder: Path, pictures: Path
) -> None:
    os.rename(pictures / "0.png", os.fsencode(pictures) + b"/\xff.png")
    for option in ([], ["--json"]):
        done = cli("run", "--bundle", bundle_folder, *option, pictures)
        assert done.returncode == 0, done.stderr
        assert "\ufffd.png" in done.stdout


def test_without_arguments_it_shows_its_help(cli: Any) -> None:
    done = cli()
    assert done.returncode == 0
    for command in ("train", "profile", "evaluate", "export", "run", "bench", "verify", "demo"):
        assert f"\n  {command} " in done.stdout
    assert cli("--version").stdout.strip() == mate_edge.__version__


def test_without_any_bundle_it_says_to_export_one(typed: Any, pictures: Path) -> None:
    done = typed("run", "0.png", cwd=pictures)
    assert done.returncode == 2
    assert "mate-edge export" in done.stderr


def test_links_in_a_circle_and_a_folder_that_is_gone_are_one_line_each(
    typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "l.jpg").symlink_to("l.jpg")
    done = typed("run", "--bundle", bundle_folder, "l.jpg", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "l.jpg" in done.stderr
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-c", "import os, sys; os.rmdir(os.getcwd()); "
               "from mate_edge.cli import main; "
               f"sys.argv = ['mate-edge', 'run', '--bundle', {str(bundle_folder)!r}, 'x.png']; "
               "main()"]  # fmt: skip
    ended = subprocess.run(command, cwd=gone, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_an_output_that_is_refused_leaves_no_other_behind(
    typed: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    done = typed("run", "--bundle", bundle_folder, pictures, "--csv", "new.csv", "--save-video",
                 "o.mp4", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "--save-video goes with one video" in done.stderr
    assert not (tmp_path / "new.csv").exists()


def test_who_stops_reading_the_csv_is_told_from_who_stops_reading_stdout(
    bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "rows")
    command = [sys.executable, "-m", "mate_edge", "run", "--bundle", str(bundle_folder),
               "--csv", str(tmp_path / "rows"), *[str(pictures)] * 100]  # fmt: skip
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with open(tmp_path / "rows") as rows:
        rows.read(1)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "rows: Broken pipe" in said


def test_what_a_deadline_rests_on_is_said_of_the_policy_in_use(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mate_edge.load(bundle_folder, policy="patience-2") as predictor:
        predictor.know_latencies(lambda line: None)
        announce(predictor, 5.0)
        table = predictor.timing.table(predictor.policy)
        assert table is not predictor.timing.latencies
        times = " ".join(f"{ms:.2f}" for ms in table.finish_ms)
    assert f"of segments {times} ms" in capsys.readouterr().err
