"""`benchmarks/methods.py` keeps finished trainings as rows, and repeats none of them in vain."""

from __future__ import annotations

import csv
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mate_edge.images import Preprocessing
from mate_edge.runs import Recipe, Run
from mate_edge.train.compare import Contender, parse_methods, run_comparison, write_results
from mate_edge.train.losses import complete_options
from mate_edge.train.options import Options

QUICK = Options(data="digits", epochs=1, batch_size=128, train_images=256, lr=0.02)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("methods")


def row(label: str, seed: int, **options: object) -> dict[str, Any]:
    """A finished training as `compare` writes it; `options` are other than today's."""
    (contender,) = parse_methods(label)
    complete = complete_options(contender.method, contender.options) | options
    words = " ".join(f"{name}={value}" for name, value in complete.items())
    return {
        "method": label, "seed": seed, "options": words, "head": "pooled", "test_mean": 0.5,
        "setup": "data=digits epochs=1",
    }  # fmt: skip


def labels(contenders: Sequence[Contender]) -> list[str]:
    return [contender.label for contender in contenders]


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def setup(methods: ModuleType) -> Any:
    """The experiment that `row` is of."""
    return methods.Experiment("ce,mate", 1, Options(data="digits", epochs=1))


def test_what_is_kept_is_not_trained_again(methods: ModuleType, setup: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    contenders = parse_methods("ce,byot,mate+alpha=1")
    assert methods.missing_of(kept, contenders, 0, setup) == list(contenders)
    keep(kept, [row("ce", 0), row("mate+alpha=1", 0), row("byot", 1)])
    assert labels(methods.missing_of(kept, contenders, 0, setup)) == ["byot"]
    assert labels(methods.missing_of(kept, contenders, 1, setup)) == ["ce", "mate+alpha=1"]
    for change in ({"head": "sepconv"}, {"epochs": 2}, {"train_images": 100}):
        options = dataclasses.replace(setup.options, **change)
        other = dataclasses.replace(setup, options=options)
        assert methods.missing_of(kept, contenders, 0, other) == list(contenders)


def run_of(epochs: int) -> Run:
    return Run(
        name="", arch="resnet8", head="pooled", exits=3, data="digits", classes=("0", "1"),
        preprocessing=Preprocessing(channels=3, size=32, resize=32, mean=(0,) * 3, std=(1,) * 3),
        method="ce", recipe=Recipe(epochs=epochs), seed=0, created="", versions={},
        images_sha256="",
    )  # fmt: skip


def test_a_run_of_an_experiment_that_was_changed_since_is_no_row_of_it(
    methods: ModuleType, setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {tmp_path / "ce-seed0": 1, tmp_path / "mate-seed0": 999}
    monkeypatch.setattr(methods, "write_results", lambda folder: [row("ce", 0), row("mate", 0)])
    monkeypatch.setattr(methods, "read_run", lambda folder: run_of(epochs[folder]))
    shown = methods.keep_rows(tmp_path / "k.csv", parse_methods("ce,mate"), tmp_path, setup)
    assert [r["method"] for r in shown] == ["ce"]


def test_a_row_of_other_options_is_trained_again_and_replaced(
    methods: ModuleType, setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, contenders = tmp_path / "kept.csv", parse_methods("ce,mate")
    keep(kept, [row("ce", 0), row("mate", 0, beta=0.9), row("okddip", 0)])
    assert labels(methods.missing_of(kept, contenders, 0, setup)) == ["mate"]
    fresh = [row("mate", 0) | {"test_mean": 0.7}, row("ce", 0) | {"test_mean": 0.6}]
    monkeypatch.setattr(methods, "write_results", lambda folder: fresh)
    monkeypatch.setattr(methods, "read_run", lambda folder: run_of(1))
    shown = methods.keep_rows(kept, contenders, tmp_path, setup)
    assert [(r["method"], float(r["test_mean"])) for r in shown] == [("ce", 0.5), ("mate", 0.7)]
    rows = methods.read_rows(kept)
    assert sorted(rows) == [("ce", 0), ("mate", 0), ("okddip", 0)]  # nobody's rows are dropped
    assert float(rows["mate", 0]["test_mean"]) == 0.7
    assert rows["mate", 0]["machine"]
    assert not methods.missing_of(kept, contenders, 0, setup)


def test_stale_rows_are_not_shown(methods: ModuleType, setup: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    keep(kept, [row("ce", 0), row("mate", 0, beta=0.9)])
    shown = methods.keep_rows(kept, parse_methods("ce,mate"), tmp_path / "nothing-new", setup)
    assert [r["method"] for r in shown] == ["ce"]


def test_a_run_of_other_options_is_moved_aside_and_no_row_is_lost_to_another_process(
    methods: ModuleType, setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mate,) = parse_methods("mate")
    run_comparison(tmp_path / "out", parse_methods("mate+alpha=2"), (0,), QUICK)
    (tmp_path / "out" / "mate+alpha=2-seed0").rename(tmp_path / "out" / "mate-seed0")
    methods.set_aside(tmp_path / "out", mate, 0)
    methods.set_aside(tmp_path / "out", mate, 1)
    assert (tmp_path / "out" / "mate-seed0-stale" / "run.json").exists()
    assert write_results(tmp_path / "out") == []
    kept = tmp_path / "kept.csv"

    def slowly(folder: Path) -> list[dict[str, Any]]:
        keep(kept, [row("ce", 1)])  # another process is done meanwhile
        return [row("mate", 0)]

    monkeypatch.setattr(methods, "write_results", slowly)
    monkeypatch.setattr(methods, "read_run", lambda folder: run_of(1))
    methods.keep_rows(kept, [mate], tmp_path, setup)
    assert sorted(methods.read_rows(kept)) == [("ce", 1), ("mate", 0)]
