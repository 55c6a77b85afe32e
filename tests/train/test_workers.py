"""Processes that prepare batches: the same batches, no process left behind, and waiting said."""

from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from timed import Clock

from mate_edge.errors import UsageError
from mate_edge.machine import cpu_count
from mate_edge.runs import Recipe
from mate_edge.train import sums
from mate_edge.train.data import load_dataset, loader
from mate_edge.train.data.loader import TrainingImages, choose_workers, make_loader
from mate_edge.train.options import Options
from mate_edge.train.start import run_training

VARIED = Recipe(epochs=1, batch_size=8, randaugment=9, label_smoothing=0.1, mixup=0.4)
QUICK = Options(data="digits", arch="small:stages", epochs=2, batch_size=64, train_images=200)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes of 20 images, large enough to stay in files."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (130, 140, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number:02}.jpg")
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_batches_are_bit_equal_whatever_the_number_of_workers(kind: str, photos: Path) -> None:
    if kind == "memory":
        dataset = load_dataset("digits", train_images=40)
    else:
        dataset = load_dataset(str(photos), 128)
    epochs = []
    for workers in (0, 2):
        batches, order = make_loader(dataset, VARIED, 5, workers)
        order.epoch = 3
        epochs.append(list(batches))
    assert len(epochs[0]) > 2
    for one, other in zip(*epochs, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_workers_change_no_weight_and_end_with_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = []
    for workers in (0, 2):
        folder, _ = run_training(QUICK, None, resume=False, workers=workers)
        weights.append(load_file(folder / "model.safetensors"))
        assert multiprocessing.active_children() == []
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 7)])
def test_files_and_randaugment_get_a_worker_a_core_but_for_the_one_that_trains(
    cores: int, expected: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "cpu_count", lambda: cores)
    in_memory, in_files = load_dataset("digits"), load_dataset(str(photos), 128)
    plain = Recipe(epochs=1, label_smoothing=0.1, mixup=0.4)
    assert choose_workers(in_memory, plain) == 0
    assert choose_workers(in_memory, VARIED) == expected
    assert choose_workers(in_files, plain) == expected


@pytest.mark.parametrize(("fetch_s", "told"), [(2.0, True), (1.0, False)])
def test_waiting_is_noted_and_much_of_it_is_said_once(
    fetch_s: float,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()

    def takes(seconds: float, method: Any) -> Any:
        def call(*given: Any) -> Any:
            clock.pass_ms(1000 * seconds)
            return method(*given)

        return call

    monkeypatch.setattr(sums, "time", SimpleNamespace(perf_counter=lambda: clock() / 1e9))
    fetch, add = TrainingImages.__getitems__, sums.EpochSums.add
    monkeypatch.setattr(TrainingImages, "__getitems__", takes(fetch_s, fetch))
    monkeypatch.setattr(sums.EpochSums, "add", takes(1.0, add))
    monkeypatch.chdir(tmp_path)
    folder, _ = run_training(QUICK, None, resume=False)
    with open(folder / "metrics.csv", newline="") as file:
        shares = [float(row["waiting"]) for row in csv.DictReader(file)]
    # of three batches accelerate fetches two at once, for which workers start: one is waited for
    assert shares == pytest.approx([fetch_s / (3 * fetch_s + 3)] * 2)
    said = capfd.readouterr().err
    assert (
        said.count("of this epoch was spent waiting for images: give --workers 1 or more") == told
    )


def test_more_workers_than_cpus_are_said_in_one_line(cli: Any, tmp_path: Path) -> None:
    many = cpu_count() + 1
    done = cli("train", "--data", "digits", "--epochs", "1", "--train-images", "128", "--workers",
               many, "--out", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = f"--workers {many} is more than the CPUs here, {cpu_count()}: that pays only where"
    assert done.stderr.count(said) == 1
    assert "Warning" not in done.stderr
    assert "MATE (reconstructed from the published abstract), 1 epoch, top-1" in done.stdout


def test_a_negative_number_of_workers_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--workers must be 0 or more, not -1"):
        run_training(QUICK, None, resume=False, workers=-1)
    assert list(tmp_path.iterdir()) == []
