"""`mate-edge evaluate BUNDLE DIR`: labelled images through the engine."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import certified
from PIL import Image
from typer.testing import CliRunner

from mate_edge.bundle import read_bundle
from mate_edge.cli import app
from mate_edge.decide.simulate import simulate
from mate_edge.errors import DataError, UsageError
from mate_edge.report.labelled import LabelledFigures
from mate_edge.runtime.build_command import join_if_needed
from mate_edge.runtime.deadline import MissBudget
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.evaluate import choose_sources, evaluate_folder
from mate_edge.runtime.points import keep_point
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources.images import find_labelled

POLICIES = ("fast", "balanced", "accurate", "deepest")
Golden = dict[str, np.ndarray]


@pytest.fixture
def labels(golden: Golden) -> np.ndarray:
    """What the last exit answers, but for the first two images."""
    found: np.ndarray = golden["logits"][:, -1].argmax(axis=-1)
    found[:2] = (found[:2] + 1) % 10
    return found


def write_labelled(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.fixture
def labelled(golden: Golden, labels: np.ndarray, tmp_path: Path) -> Path:
    """The golden images in a folder for each label."""
    return write_labelled(tmp_path / "labelled", golden["images"], labels)


def evaluated(bundle: Path, folder: Path, **options: Any) -> tuple[LabelledFigures, list[str]]:
    said: list[str] = []
    chosen: dict[str, Any] = {"max_ms": None, "save": None, "engine": "onnxruntime"} | options
    return evaluate_folder(bundle, folder, **chosen, say=said.append, threads=1), said


def test_it_counts_what_the_logits_say(
    bundle_folder: Path, labelled: Path, golden: Golden, labels: np.ndarray, tmp_path: Path
) -> None:
    found, _ = evaluated(bundle_folder, labelled, save=tmp_path / "new" / "rows.csv")
    bundle = read_bundle(bundle_folder)
    answers = golden["logits"].argmax(axis=-1)
    assert found.images == 8
    assert list(found.exit_accuracies) == (answers == labels[:, None]).mean(axis=0).tolist()
    assert found.exit_accuracies[-1] == 0.75
    assert tuple(found.policies) == POLICIES
    outcomes = {n: simulate(resolve_policy(bundle, n), golden["logits"]) for n in POLICIES}
    flops = tuple(exit_.cumulative_flops for exit_ in bundle.manifest.exits)
    for name, outcome in outcomes.items():
        policy = found.policies[name]
        assert policy.accuracy == outcome.accuracy(labels)
        assert policy.exit_shares == outcome.exit_shares(3)
        assert policy.mean_flops == pytest.approx(outcome.mean_cost(flops))
        assert policy.times.samples == 8
        assert policy.times.p90_ms is None
        assert 0 < policy.times.median_ms <= policy.times.max_ms
        assert policy.times.max_ms <= found.policies["deepest"].times.max_ms
    with open(tmp_path / "new" / "rows.csv", newline="") as file:
        rows = {int(Path(row["source"]).stem): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    for number, row in rows.items():
        assert row["label"] == str(labels[number])
        assert [row[f"exit_{k}"] for k in (1, 2, 3)] == [str(i) for i in answers[number]]
        for name, outcome in outcomes.items():
            assert int(row[f"{name}:exit"]) == outcome.exits[number]
            assert 0 < float(row[f"{name}:ms"]) <= float(row["deepest:ms"])


def test_a_deadline_that_is_far_away_changes_nothing(bundle_folder: Path, labelled: Path) -> None:
    found, said = evaluated(bundle_folder, labelled, max_ms=60_000.0)
    assert tuple(found.under_deadline) == POLICIES
    for name, policy in found.under_deadline.items():
        assert policy.accuracy == found.policies[name].accuracy
        assert policy.exit_shares == found.policies[name].exit_shares
        assert (policy.missed, policy.halted_by_deadline) == (0, 0)
    assert "deepest under 60000 ms" in said


def test_a_file_that_disappears_in_mid_run_costs_its_own_answers_alone(
    bundle_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    (gone,) = labelled.rglob("0.png")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "balanced under" in line:
            gone.unlink()

    found = evaluate_folder(
        bundle_folder, labelled, max_ms=60_000.0, save=tmp_path / "rows.csv",
        engine="onnxruntime", say=say, threads=1,
    )  # fmt: skip
    assert f"{gone} does not exist" in said
    assert tuple(found.under_deadline) == POLICIES
    counts = [found.under_deadline[name].times.samples for name in POLICIES]
    assert sorted(set(counts)) == [7, 8]
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert len(rows) == 8
    (row,) = (row for row in rows if row["source"] == str(gone))
    assert row["balanced:deadline_exit"] == ""
    assert row["fast:deadline_exit"] != ""


def test_an_impossible_deadline_makes_exit_1_answer_and_is_counted(
    bundle_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    found, _ = evaluated(bundle_folder, labelled, max_ms=0.001, save=tmp_path / "rows.csv")
    for policy in found.under_deadline.values():
        assert policy.accuracy == found.exit_accuracies[0]
        assert policy.exit_shares == (1, 0, 0)
        assert policy.missed == 8
    assert found.under_deadline["deepest"].halted_by_deadline == 8
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    for row in rows:
        assert row["deepest:deadline_answer"] == row["exit_1"]
        assert row["deepest:deadline_halted_by"] == "deadline"
        assert row["deepest:deadline_missed"] == "1"


def test_what_was_certified_with_the_deadline_the_budget_of_misses_does_not_end(
    bundle_folder: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(bundle_folder)
    join_if_needed(bundle, "onnxruntime", print)  # as tune does
    with Predictor(OnnxRuntimeEngine(bundle, 1), "deepest") as predictor:
        predictor.measure()
        measured = predictor.timing.measured
        assert measured is not None
        keep_point(certified(bundle, measured, 60_000.0), None, print)
    monkeypatch.setattr(MissBudget, "used_up", True)
    found, _ = evaluated(bundle_folder, labelled, max_ms=100_000.0)
    assert found.under_deadline["joint"].exit_shares == (0.0, 0.0, 1.0)
    assert found.under_deadline["deepest"].exit_shares == (1.0, 0.0, 0.0)


def test_half_precision_runs_on_the_cpu_with_a_warning(
    no_gpu: None, half_bundle: Path, tmp_path: Path
) -> None:
    bundle = read_bundle(half_bundle)
    golden: Any = bundle.arrays(bundle.manifest.golden)
    answers = golden["logits"].argmax(axis=-1)
    folder = write_labelled(tmp_path / "half", golden["images"], answers[:, 0])
    found, said = evaluated(half_bundle, folder, engine=None)
    assert any(line.startswith("no NVIDIA GPU here") for line in said)
    assert found.exit_accuracies == (1.0, (answers[:, 1] == answers[:, 0]).mean())


def test_missing_engines_are_built_first(builder: Any, half_bundle: Path, labelled: Path) -> None:
    found, said = evaluated(half_bundle, labelled, engine=None)
    assert found.images == 8
    assert [bundle.folder for bundle in builder.done] == [half_bundle]
    assert any("building them, once" in line for line in said)


def test_unreadable_images_are_named_and_left_out(
    cli: Any, bundle_folder: Path, labelled: Path
) -> None:
    folder = next(labelled.iterdir())
    (folder / "bad.png").write_bytes(b"nonsense")
    done = cli("evaluate", bundle_folder, labelled)
    assert done.returncode == 1
    assert f"mate-edge: {folder}/bad.png is not an image" in done.stderr
    assert "8 images" in done.stdout
    assert "max ms" in done.stdout
    assert "1 images could not be read" in done.stdout
    assert "deadline voids" not in done.stdout


def test_it_speaks_json_and_says_what_a_deadline_does(
    cli: Any, bundle_folder: Path, labelled: Path
) -> None:
    done = cli("evaluate", bundle_folder, labelled, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 8
    done = cli("evaluate", bundle_folder, labelled, "--max-ms", "60000")
    assert "under a deadline of 60000 ms" in done.stdout
    assert "a deadline voids any accuracy" in done.stdout


def test_a_labelled_folder_alone_goes_through_the_newest_bundle(
    cli: Any, bundle_folder: Path, labelled: Path
) -> None:
    shutil.copytree(bundle_folder, labelled.parent / "only.mate")
    done = cli("evaluate", "labelled", "--json", cwd=labelled.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == "only.mate"


def test_classes_without_images_and_other_folders_are_said(
    bundle_folder: Path, labelled: Path
) -> None:
    used = {folder.name for folder in labelled.iterdir()}
    shutil.copytree(labelled / min(used), labelled / "zebra")
    found, said = evaluated(bundle_folder, labelled)
    assert found.images == 8
    assert f"{10 - len(used)} of 10 classes have no images: " in said[0]
    assert said[1] == "folders that are no class of the bundle are left out: zebra"


def test_a_slash_in_a_class_name_is_an_underscore_in_its_folders(tmp_path: Path) -> None:
    (tmp_path / "T-shirt_top" / "deep").mkdir(parents=True)
    (tmp_path / "T-shirt_top" / "deep" / "a.JPG").touch()
    (tmp_path / "T-shirt_top" / "notes.txt").touch()
    found = find_labelled(tmp_path, ["Bag", "T-shirt/top"], lambda line: None)
    assert found == [(tmp_path / "T-shirt_top" / "deep" / "a.JPG", 1)]


def test_a_name_that_is_no_utf8_can_be_saved(
    bundle_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    (image,) = labelled.rglob("0.png")
    os.rename(image, os.fsencode(image.parent) + b"/\xff.png")
    evaluated(bundle_folder, labelled, save=tmp_path / "rows.csv")
    assert "\ufffd.png" in (tmp_path / "rows.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("last", ["bad.png is not an image", "deepest under 60000 ms"])
def test_what_was_answered_before_ctrl_c_is_saved(
    last: str, bundle_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    of_the_last_class = max(labelled.iterdir())
    (of_the_last_class / "bad.png").write_bytes(b"nonsense")

    def say(line: str) -> None:
        if last in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_folder(
            bundle_folder, labelled, max_ms=60_000.0, save=tmp_path / "rows.csv",
            engine="onnxruntime", say=say, threads=1,
        )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert 0 < len(rows) <= 8
    assert rows[0]["deepest:exit"] == "3"
    assert ("accurate:deadline_exit" in rows[0]) == (last.startswith("deepest"))
    assert "deepest:deadline_exit" not in rows[0]


def test_a_disk_that_fills_up_costs_the_file_and_not_the_figures(
    bundle_folder: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: object) -> None:
        raise UsageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("mate_edge.files.write_csv", full)
    done = CliRunner().invoke(
        app, ["evaluate", str(bundle_folder), str(labelled), "--save", str(tmp_path / "rows.csv")]
    )
    assert isinstance(done.exception, UsageError)
    assert "rows.csv: No space left" in str(done.exception)
    assert "deepest" in done.stdout


def test_a_folder_of_nothing_that_the_bundle_knows_is_an_error(
    bundle_folder: Path, labelled: Path
) -> None:
    for folder in list(labelled.iterdir()):
        folder.rename(labelled / f"x{folder.name}")
    with pytest.raises(DataError, match=r"no images of the bundle's classes \(0, 1, 2, 3, 4 and 5"):
        evaluated(bundle_folder, labelled)
    with pytest.raises(DataError, match="No such file"):
        evaluated(bundle_folder, labelled / "none")


def test_a_folder_of_unreadable_images_only_is_an_error(
    bundle_folder: Path, labelled: Path
) -> None:
    for image in labelled.rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 8 images could be read"):
        evaluated(bundle_folder, labelled)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["only.mate"], "is a bundle: name a folder of labelled images too"),
        (["none.mate"], "is a bundle: name a folder of labelled images too"),
        (["run", "labelled"], "run is a run, and a folder of images goes with a bundle"),
        (["run", "--save", "x.csv"], "go with a bundle and labelled images"),
        (["--max-ms", "5"], "go with a bundle and labelled images"),
        (["only.mate", "none"], "cannot read the folder none"),
        (["only.mate", "labelled", "--max-ms", "0"], "deadline must be a positive number"),
        (["only.mate", "labelled", "--engine", "tensorr"], "unknown --engine"),
        (["only.mate", "labelled", "--save", "run/run.json/x.csv"], "cannot make the folder"),
        (["only.mate", "labelled", "--save", "run"], "cannot write run: it is no file"),
        (["nowhere"], "no run folder nowhere"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, typed: Any, bundle_folder: Path, labelled: Path
) -> None:
    here = labelled.parent
    shutil.copytree(bundle_folder, here / "only.mate")
    (here / "run").mkdir()
    (here / "run" / "run.json").write_text("{}")
    done = typed("evaluate", *arguments, cwd=here)
    assert done.returncode == 2
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("mate-edge: ")
    assert says in line
    assert "all exits of" not in done.stderr  # nothing was evaluated for it


def test_a_run_is_told_from_a_bundle_and_from_images(
    bundle_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").touch()
    shutil.copytree(labelled, run / "pictures")
    assert choose_sources(None, None) is None
    assert choose_sources(run, None) is None
    assert choose_sources(labelled, None) == (None, labelled)
    assert choose_sources(bundle_folder, labelled) == (bundle_folder, labelled)
    with pytest.raises(UsageError, match="labelled images"):
        choose_sources(bundle_folder, None)
