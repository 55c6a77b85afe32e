"""RandAugment, label smoothing and MixUp: what they compute, and that they are repeatable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mate_edge import files
from mate_edge.errors import UsageError
from mate_edge.images import normalize
from mate_edge.runs import Recipe, read_run
from mate_edge.train import loop
from mate_edge.train.data import load_dataset
from mate_edge.train.data.loader import TrainingImages
from mate_edge.train.data.regularize import RandAugment, mix_up, smooth
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.start import old_run, run_training
from mate_edge.train.state import save_state

# label smoothing


@given(classes=st.integers(2, 20), smoothing=st.floats(0, 0.99))
def test_smoothed_labels_are_the_formula(classes: int, smoothing: float) -> None:
    soft = smooth(torch.arange(classes), classes, smoothing)
    expected = (1 - smoothing) * np.eye(classes) + smoothing / classes
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    assert soft.dtype == torch.float32


def test_the_loss_of_smoothed_labels_is_torchs() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(
        F.cross_entropy(logits, smooth(labels, 5, 0.1)),
        F.cross_entropy(logits, labels, label_smoothing=0.1),
    )


# MixUp


@given(alpha=st.floats(0.01, 10), batch=st.integers(0, 50))
def test_images_and_labels_are_blended_by_the_same_share(alpha: float, batch: int) -> None:
    labels = F.one_hot(torch.arange(4)).float()
    images = labels[:, :, None, None].clone()
    mixed, soft = mix_up(images, labels, alpha, (0, 0, batch))
    torch.testing.assert_close(mixed[:, :, 0, 0], soft)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))
    share = soft[0, 0]
    torch.testing.assert_close(soft, share * labels + (1 - share) * labels.roll(1, 0))


def test_the_shares_follow_a_beta_distribution_with_a_new_one_each_batch() -> None:
    images, labels = torch.zeros(2, 1, 1, 1), torch.eye(2)
    alpha = 0.4
    shares = [
        float(mix_up(images, labels, alpha, (0, e, b))[1][0, 0]) for e in (0, 1) for b in range(500)
    ]
    assert len(set(shares)) > 990
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


# RandAugment


def test_a_variation_depends_on_seed_epoch_and_index_alone_and_leaves_torchs_state() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    vary = RandAugment(15)
    before = torch.random.get_rng_state()
    first = vary(pixels, 3, 1, range(6))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert np.array_equal(vary(pixels[[4, 2]], 3, 1, [4, 2]), first[[4, 2]])
    assert not np.array_equal(vary(pixels, 4, 1, range(6)), first)
    assert not np.array_equal(vary(pixels, 3, 2, range(6)), first)
    assert not np.array_equal(vary(pixels, 3, 1, range(6, 12)), first)


def test_gray_images_stay_gray_and_a_higher_magnitude_changes_more() -> None:
    pixels = np.random.default_rng(0).integers(100, 156, (40, 16, 16, 1), np.uint8)
    weak, strong = (RandAugment(m)(pixels, 0, 0, range(40)) for m in (1, 30))
    assert weak.shape == strong.shape == pixels.shape
    equal = [(v == pixels).all(axis=(1, 2, 3)).mean() for v in (weak, strong)]
    assert equal[1] < 0.5
    changes = [np.abs(v.astype(int) - pixels).mean() for v in (weak, strong)]
    assert changes[0] < changes[1]


# in training


def test_without_options_a_batch_is_what_it_was_before_there_were_any() -> None:
    dataset = load_dataset("digits")
    images, labels = TrainingImages(dataset, dataset.recipe, 3).__getitems__([(2, 7), (2, 5)])
    pixels = dataset.train.augmented([7, 5], dataset.preprocessing, flip=False, seed=3, epoch=2)
    assert np.array_equal(images, normalize(pixels, dataset.preprocessing))
    assert labels.tolist() == dataset.train.labels[[7, 5]].tolist()


def test_labels_are_probabilities_when_softened_and_stay_what_the_images_show() -> None:
    dataset = load_dataset("digits")
    keys = [(0, index) for index in range(16)]
    hard = dataset.train.labels[:16]
    smoothed = TrainingImages(dataset, Recipe(epochs=1, label_smoothing=0.2), 0).__getitems__(keys)
    np.testing.assert_allclose(smoothed[1], np.eye(10)[hard] * 0.8 + 0.02, atol=1e-6)
    both = Recipe(epochs=1, label_smoothing=0.2, mixup=1.0)
    mixed = TrainingImages(dataset, both, 0).__getitems__(keys)
    torch.testing.assert_close(mixed[1].sum(dim=1), torch.ones(16))
    expected = mix_up(*smoothed, 1.0, (0, 0, 0))
    assert torch.equal(mixed[0], expected[0])
    assert torch.equal(mixed[1], expected[1])


EVERYTHING = Options(
    data="digits",
    arch="small:stages",
    epochs=2,
    batch_size=64,
    train_images=200,
    randaugment=5,
    label_smoothing=0.1,
    mixup=0.2,
)


def test_the_options_are_kept_in_the_run_and_guarded_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, run, _ = new_run(EVERYTHING, None)
    recipe = read_run(folder).recipe
    assert (recipe.randaugment, recipe.label_smoothing, recipe.mixup) == (5, 0.1, 0.2)
    assert old_run(Options(randaugment=5, mixup=0.2), folder)[1] == run
    with pytest.raises(UsageError, match=r"label_smoothing 0\.1, not 0\.3"):
        old_run(Options(label_smoothing=0.3), folder)


def test_an_interrupted_training_with_all_options_resumes_to_bit_equal_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedTrainingError(Exception):
        pass

    def save_and_stop(*state: Any) -> None:
        save_state(*state)
        raise InterruptedTrainingError

    monkeypatch.chdir(tmp_path)
    whole, _ = run_training(EVERYTHING, Path("whole"), resume=False)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_state", save_and_stop)
        with pytest.raises(InterruptedTrainingError):
            run_training(EVERYTHING, Path("stopped"), resume=False)
    stopped, run = run_training(Options(), Path("stopped"), resume=True)
    assert run.finished
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_command_line_passes_each_option_on(cli: Any, tmp_path: Path) -> None:
    done = cli(
        *("train", "--data", "digits", "--epochs", "1", "--batch-size", "64", "--out", "run"),
        *("--train-images", "130", "--randaugment", "4", "--label-smoothing", "0.3"),
        *("--mixup", "0.7", "--workers", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "130 of 1294 training images are used" in done.stderr
    run = read_run(tmp_path / "run")
    assert run.train_images == 130
    recipe = run.recipe
    assert (recipe.randaugment, recipe.label_smoothing, recipe.mixup) == (4, 0.3, 0.7)


def test_a_run_from_before_these_options_reads_as_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, run, _ = new_run(Options(data="digits"), None)
    document = json.loads((folder / "run.json").read_bytes())
    del document["train_images"]
    for name in ("randaugment", "label_smoothing", "mixup"):
        del document["recipe"][name]
    files.write_json(folder / "run.json", document)
    assert read_run(folder) == run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(randaugment=31), "--randaugment must lie between 0 and 30, not 31"),
        (Options(randaugment=-1), "--randaugment"),
        (Options(label_smoothing=1.0), "--label-smoothing must be 0 or more and below 1"),
        (Options(label_smoothing=float("nan")), "--label-smoothing"),
        (Options(mixup=-0.1), "--mixup must be 0 or more"),
        (Options(mixup=float("inf")), "--mixup"),
        (Options(mixup=float("nan")), "--mixup"),
    ],
)
def test_an_option_out_of_range_is_a_clear_error_and_leaves_nothing(
    options: Options, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        new_run(dataclasses.replace(options, data="digits"), None)
    assert list(tmp_path.iterdir()) == []
