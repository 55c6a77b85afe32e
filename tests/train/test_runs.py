"""The run folder's document: what cannot be is said, whatever reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mate_edge import files
from mate_edge.errors import RunError
from mate_edge.images import Preprocessing
from mate_edge.report.write import find_source
from mate_edge.runs import RUNS, Recipe, Results, Run, find_run, read_run, write_run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.update(exits=0), "0 exits"),
        (lambda run: run.update(exits=-1), "-1 exits"),
        (lambda run: run.update(exits=10**9), "1000000000 exits"),
        (lambda run: run.update(cuts=[1]), "3 exits and 1 cuts"),
        (lambda run: run.update(classes=["one"]), "two classes"),
        (lambda run: run["results"].update(test_accuracy=[0.5]), "not those of 3 exits"),
        (lambda run: run["results"].update(cumulative_flops=[1]), "not those of 3 exits"),
    ],
)
def test_a_run_that_makes_no_sense_is_a_clear_error(
    change: Callable[[Any], object], says: str, run_folder: Path, tmp_path: Path
) -> None:
    run = json.loads((run_folder / "run.json").read_bytes())
    change(run)
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunError, match=f"damaged: .*{says}"):
        read_run(tmp_path)


def test_a_comparison_is_no_run_but_names_one(run_folder: Path, tmp_path: Path) -> None:
    for name in ("mate-seed0", "ce-seed0"):
        shutil.copytree(run_folder, tmp_path / name)
    with pytest.raises(RunError, match=f"holds some: name one, such as {tmp_path}/ce-seed0$"):
        read_run(tmp_path)


def make_run(name: str, finished: bool, created: str = "2030-01-01T00:00:00+00:00") -> Path:
    """Make a run under `runs/`, the latest."""
    results = Results(
        val_accuracy=(0.5,), val_ensemble=0.5, test_accuracy=(0.5,), test_ensemble=0.5
    )
    run = Run(
        name=name,
        arch="resnet8",
        head="pooled",
        exits=1,
        data="digits",
        classes=("odd", "even"),
        preprocessing=Preprocessing(channels=1, size=32, resize=32, mean=(0,), std=(1,)),
        method="ce",
        recipe=Recipe(epochs=1),
        seed=0,
        created=created,
        versions={},
        images_sha256="",
        results=results if finished else None,
    )
    (RUNS / name).mkdir(parents=True)
    write_run(RUNS / name, run)
    files.write_latest(RUNS, RUNS / name)
    return RUNS / name


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with two finished runs, of which `b` is the newer."""
    monkeypatch.chdir(tmp_path)
    make_run("b", finished=True, created="2030-02-01T00:00:00+00:00")
    make_run("a", finished=True)


@pytest.mark.usefixtures("workplace")
def test_the_run_meant_is_the_latest() -> None:
    assert find_run(None) == find_run(None, finished=True) == find_source(None, False)[0]
    assert find_run(None) == RUNS / "a"
    assert find_run(RUNS / "b", finished=True) == RUNS / "b"


@pytest.mark.usefixtures("workplace")
def test_where_the_latest_is_unfinished_the_newest_finished_one_is_meant_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    latest = make_run("c", finished=False)
    (RUNS / "damaged").mkdir()
    (RUNS / "damaged" / "run.json").write_text("{")
    for find in (lambda: find_run(None, finished=True), lambda: find_source(None, False)[0]):
        assert find() == RUNS / "b"
        said = capsys.readouterr().err
        assert said == "runs/c is not trained to the end: going on with runs/b\n"
    assert find_run(None) == latest, "which a resume takes"
    assert find_run(latest, finished=True) == latest, "it was named"


@pytest.mark.usefixtures("workplace")
def test_where_the_latest_was_removed_the_newest_finished_one_is_meant() -> None:
    make_run("c", finished=False)
    (RUNS / "c" / "run.json").unlink()
    (RUNS / "c").rmdir()
    assert find_run(None, finished=True) == RUNS / "b"


def test_a_lone_unfinished_run_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no run under runs/ yet"):
        find_run(None, finished=True)
    assert make_run("a", finished=False) == find_run(None, finished=True)
