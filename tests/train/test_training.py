"""Training: deterministic, resumable, and honest about what it wrote."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file

from mate_edge import files
from mate_edge.errors import RunError, UsageError
from mate_edge.runs import Recipe, read_finished_run, read_outputs, read_run
from mate_edge.train import ending
from mate_edge.train.data import load_dataset
from mate_edge.train.data.images import FileImages
from mate_edge.train.data.loader import make_loader
from mate_edge.train.evaluate import compute_logits, exit_accuracy, is_chance
from mate_edge.train.loop import make_accelerator
from mate_edge.train.losses import make_method
from mate_edge.train.network import build_network, load_network
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.recipe import Objective, learning_rate
from mate_edge.train.start import run_training
from mate_edge.train.sums import Diverged


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Options:
    """Options for a training of seconds, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Options(data="digits", arch="small:stages", epochs=2, batch_size=128)


def test_the_rate_falls_tenfold_at_each_milestone() -> None:
    paper = Recipe(epochs=200)
    expected = {0: 0.1, 74: 0.1, 75: 0.01, 129: 0.01, 130: 1e-3, 179: 1e-3, 180: 1e-4, 199: 1e-4}
    for epoch, rate in expected.items():
        assert learning_rate(paper, epoch) == pytest.approx(rate)


def test_the_first_epoch_has_the_rate_that_was_asked_for() -> None:
    for epochs in range(1, 20):
        assert learning_rate(Recipe(epochs=epochs, lr=0.3), 0) == 0.3


@pytest.mark.parametrize("flip", [None, True, False])
def test_images_of_a_folder_are_mirrored_unless_told_otherwise(
    flip: bool | None, quick: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, box in (("left", (0, 0, 16, 32)), ("right", (16, 0, 32, 32))):
        (tmp_path / "set" / name).mkdir(parents=True)
        image = Image.new("RGB", (32, 32))
        image.paste((255, 255, 255), box)
        for number in range(20):
            image.save(tmp_path / "set" / name / f"{number}.png")
    given = dataclasses.replace(quick, data="set", arch="resnet8", size=32, batch_size=8, flip=flip)
    _, run, dataset = new_run(given, None)
    assert run.recipe.flip is (flip is not False)
    assert ("--no-flip" in dataset.note) is (flip is None)
    loader, _ = make_loader(dataset, run.recipe, seed=0)
    mirrored = []
    for images, labels in loader:
        right = images[..., 16:].mean(dim=(1, 2, 3)) > images[..., :16].mean(dim=(1, 2, 3))
        mirrored += (right != (labels == 1)).tolist()
    assert any(mirrored) is (flip is not False)


def test_a_run_folder_holds_what_the_design_says(run_folder: Path) -> None:
    run = read_finished_run(run_folder)
    assert (run.arch, run.method, run.data, run.exits) == ("resnet8", "mate", "digits", 3)
    assert torch.__version__.startswith(run.versions["torch"])
    with open(run_folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # the loss itself gains the teachers' terms in these epochs; what it is for must grow
    assert float(rows[-1]["train_accuracy_1"]) > float(rows[0]["train_accuracy_1"])
    assert {"train_accuracy_1", "val_accuracy_3", "val_ensemble", "images_per_s"} <= set(rows[0])
    assert float(rows[0]["teacher_weight_1_1"]) != pytest.approx(1 / 3)
    assert sorted(p.name for p in run_folder.iterdir() if p.name != "profile.json") == [
        "metrics.csv", "model.safetensors", "outputs.npz", "run.json",
    ]  # fmt: skip


def test_the_outputs_are_the_networks_and_the_results_are_counted_from_them(
    run_folder: Path,
) -> None:
    run = read_finished_run(run_folder)
    assert run.results is not None
    outputs: dict[str, Any] = read_outputs(run_folder, run)
    for split, stated in (("val", run.results.val_accuracy), ("test", run.results.test_accuracy)):
        each, _ = exit_accuracy(outputs[f"{split}_logits"], outputs[f"{split}_labels"])
        assert each == stated
    assert min(run.results.test_accuracy) > 0.4
    dataset = load_dataset("digits")
    logits = compute_logits(
        load_network(run_folder, run), dataset.test, run.preprocessing, torch.device("cpu")
    )
    np.testing.assert_allclose(logits, outputs["test_logits"], atol=1e-4)
    kept = outputs["val_image_indices"]
    assert len(set(dataset.val.labels[kept])) == 10
    assert np.array_equal(outputs["val_images"], dataset.val.plain(kept, run.preprocessing))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(quick: Options) -> None:
    few = dataclasses.replace(quick, arch="resnet8", epochs=1, train_images=160, batch_size=16)
    folders = [
        run_training(dataclasses.replace(few, seed=seed), None, resume=False)[0]
        for seed in (5, 5, 6)
    ]
    first, same, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


TRAIN = ["train", "--data", "digits"]


def test_a_folder_of_large_images_trains_and_a_broken_one_is_named(
    cli: Any, tmp_path: Path, with_dropout: str
) -> None:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (150, 140 + number, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number:02}.jpg")
    command = ["train", "--data", "set", "--arch", with_dropout, "--size", "128", "--epochs", "1",
               "--batch-size", "8"]  # fmt: skip
    done = cli(*command, "--out", "fine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_finished_run(tmp_path / "fine").classes == ("ant", "bee")

    dataset = load_dataset(str(tmp_path / "set"), 128)
    assert isinstance(dataset.train, FileImages)
    bad = dataset.train.paths[3]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:500])
    done = cli(*command, "--out", "broken", cwd=tmp_path)
    assert done.returncode == 2
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith(f"mate-edge: {bad} is damaged")
    assert complaint.endswith("mate-edge train --resume --out broken")
    bad.write_bytes(whole)
    done = cli("train", "--resume", "--out", "broken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = load_file(tmp_path / "fine" / "model.safetensors")
    other = load_file(tmp_path / "broken" / "model.safetensors")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_way_out(
    quick: Options,
) -> None:
    steep = dataclasses.replace(quick, lr=99.0, batch_size=16)
    says = r"no number at step .* of epoch .*: --resume would end here .* --lr, such as 9.9, and"
    for options, out, resume in ((steep, None, False), (Options(), None, True)):
        with pytest.raises(Diverged, match=says):
            run_training(options, out, resume)
    lower = dataclasses.replace(steep, lr=0.099, train_images=160)
    for out in (None, Path("another")):
        assert run_training(lower, out, resume=False)[1].finished


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_kept(
    quick: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(quick, epochs=2, train_images=256, batch_size=128)
    real, calls = torch.optim.SGD.step, 0

    def spoil(optimizer: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = real(optimizer, *given)
        if calls == 4:  # of two epochs with two each
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[0] = torch.nan
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spoil)
        with pytest.raises(Diverged, match="the last step in epoch 2 left weights that are no"):
            run_training(options, Path("spoilt"), resume=False)
    assert [path.name for path in Path("spoilt/state").iterdir()] == ["epoch-1"]
    assert run_training(Options(), Path("spoilt"), resume=True)[1].finished


def test_a_gpu_that_is_too_small_is_said_with_what_needs_less(
    quick: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*given: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr("mate_edge.train.start.train", fill)
    says = r"memory is too small .*Tried to allocate 9.00 GiB.*--accumulate 4.*--precision bf16"
    with pytest.raises(RunError, match=says):
        run_training(quick, None, resume=False)


def test_an_evaluation_takes_no_more_at_once_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, device = load_dataset("digits"), torch.device("cpu")
    network = build_network("resnet8", "linear", 1, 32, 10)
    answer, taken = network.forward, []

    def fill(inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        taken.append(len(inputs))
        return answer(inputs)

    whole = compute_logits(network, dataset.val, dataset.preprocessing, device)
    monkeypatch.setattr(network, "forward", fill)
    parts = compute_logits(network, dataset.val, dataset.preprocessing, device)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)
    assert max(taken) == 64
    assert sum(taken) == len(whole)


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        ("Bus error", "--shm-size 2g.*--workers 0; mate-edge train"),
        ("Killed", "if memory ran out, add --workers 0; mate-edge train"),
        ("Terminated", r"\.\): mate-edge train"),
    ],
)
def test_a_worker_that_is_ended_is_said_with_the_way_to_go_on(
    ended: str, says: str, quick: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*given: Any) -> None:
        raise RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {ended}. ")

    monkeypatch.setattr("mate_edge.train.start.train", end)
    with pytest.raises(
        RunError, match=rf"images was ended \(.*{ended}.*{says} --resume --out runs/"
    ):
        run_training(quick, None, resume=False)


def test_a_buffer_may_hold_infinity_as_a_mask_does(quick: Options, tmp_path: Path) -> None:
    (tmp_path / "masked.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Masked(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.convolution = nn.Conv2d(channels, 8, 3, 4, 1)\n"
        "        self.register_buffer('mask', torch.full((8, 1, 1), torch.inf))\n"
        "    def forward(self, features):\n"
        "        return torch.minimum(self.convolution(features), self.mask)\n"
        "def stages(channels, size):\n"
        "    return [Masked(channels), nn.Conv2d(8, 8, 3, 2, 1)]\n"
    )
    options = dataclasses.replace(quick, arch="masked:stages", epochs=1, train_images=128)
    assert run_training(options, None, resume=False)[1].finished


@pytest.mark.parametrize("right", [0, 1])
def test_a_training_says_at_its_end_that_no_exit_is_better_than_chance(
    right: int, quick: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(network: Any, images: Any, *given: Any) -> np.ndarray:
        """Answer with the first class, but at the first `right` exits with the label."""
        answers = np.zeros((len(images.labels), 3), np.int64)
        answers[:, :right] = images.labels[:, None]
        return np.eye(10, dtype=np.float32)[answers]

    monkeypatch.setattr(ending, "compute_logits", answer)
    few = dataclasses.replace(quick, epochs=1, train_images=128)
    assert run_training(few, None, resume=False)[1].finished
    says = "no exit is better than chance among 10 classes: lower --lr, or give more --epochs"
    assert (says in capsys.readouterr().err) is (right == 0)


def test_a_disk_that_is_full_keeps_the_state_before(
    quick: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, save, calls = dataclasses.replace(quick, train_images=256), Accelerator.save_state, 0

    def full(self: Accelerator, folder: str, **options: bool) -> None:
        nonlocal calls
        calls += 1
        save(self, folder, **options)
        if calls == 2:  # as torch says it
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(UsageError, match=r"epoch-2 \(.*pos 64.* make room, then .* --out r$"):
            run_training(few, Path("r"), resume=False)
    assert [path.name for path in Path("r/state").iterdir()] == ["epoch-1"]
    assert run_training(Options(), Path("r"), resume=True)[1].finished


def test_two_trainings_in_one_folder_do_not_meet(quick: Options) -> None:
    folder, _, _ = new_run(dataclasses.replace(quick, train_images=256), None)
    with FileLock(folder / ".lock"), pytest.raises(UsageError, match="another process is training"):
        run_training(Options(), folder, resume=True)
    assert run_training(Options(), folder, resume=True)[1].finished
    assert not (folder / ".lock").exists()


def test_accumulation_is_the_runs_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert make_accelerator("fp32", 4).gradient_accumulation_steps == 4


def test_the_step_of_the_first_bad_loss_is_named_and_the_state_before_is_kept(
    quick: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mate_edge.train.losses.ce import CrossEntropy

    steps = 0

    def spoilt(self: CrossEntropy, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return logits.sum() * (math.nan if steps == 13 else 0.0)  # the 3rd of the 2nd ten

    few = dataclasses.replace(quick, method="ce", train_images=160, batch_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(CrossEntropy, "forward", spoilt)
        with pytest.raises(RunError, match="no number at step 3 of epoch 2"):
            run_training(few, Path("r"), resume=False)
    assert [path.name for path in Path("r/state").iterdir()] == ["epoch-1"]
    assert run_training(Options(), Path("r"), resume=True)[1].finished


def test_accumulated_gradients_are_those_of_the_whole_batch(
    quick: Options, without_batch_norm: str
) -> None:
    # BatchNorm's statistics would be each part's own; without it only rounding differs
    short = dataclasses.replace(
        quick, epochs=1, lr=0.01, arch=without_batch_norm, head="linear", batch_size=64
    )
    weights = []
    for accumulate in (1, 4):
        folder, _ = run_training(
            dataclasses.replace(short, accumulate=accumulate), Path(f"by-{accumulate}"), False
        )
        weights.append(load_file(folder / "model.safetensors"))
    for name, whole in weights[0].items():
        np.testing.assert_allclose(weights[1][name], whole, atol=1e-5)


def test_mixed_precision_trains_and_keeps_its_weights_in_32_bits(
    cli: Any, tmp_path: Path, with_dropout: str
) -> None:
    few = ("--epochs", "1", "--train-images", "256", "--arch", with_dropout)
    done = cli(*TRAIN, *few, "--precision", "bf16", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(w.dtype in (np.float32, np.int64) for w in weights.values())


def test_the_loss_is_computed_in_32_bits_under_mixed_precision() -> None:
    network = build_network("resnet8", "linear", 1, 32, 10).eval()
    objective = Objective(network, make_method("mate", 3, 10, {}))
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = objective(images, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective.method(logits, labels))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(data="digit"), "Did you mean digits?"),
        (Options(arch="resnet9"), "resnet8"),
        (Options(method="kd"), "choose from ce, byot"),
        (Options(head="conv"), "sepconv"),
        (Options(precision="int8"), "fp32, bf16, fp16"),
        pytest.param(
            Options(data="digits", precision="fp16"),
            "fp16 needs a GPU",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        (Options(data="digits", method_options={"beta": 2.0}), "beta=2.0"),
        (Options(data="digits", method_options={"attention": math.inf}), "attention=inf"),
        (Options(data="digits", epochs=0), "--epochs"),
        (Options(data="digits", batch_size=5000), "fewer than a batch of 5000"),
        (Options(data="digits", batch_size=32, accumulate=5), "--accumulate 5 parts"),
        (Options(data="digits", validate_every=0), "--validate-every"),
        (Options(data="digits", lr=-1.0), "--lr"),
        (Options(data="digits", seed=-1), "--seed"),
        (Options(data="digits", seed=2**64), "--seed"),
        (Options(data="digits", train_images=9), "--train-images"),
        (Options(data="digits", train_images=31), "fewer than a batch of 32"),
    ],
)
def test_an_option_that_cannot_work_is_a_clear_error(
    options: Options, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        new_run(options, None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method-option", "beta"], "NAME=VALUE"),
        (["--data", "digits", "--method-option", "gamma=nan"], "gamma=nan"),
        (["--data", "digits", "--out", "there"], "there exists already"),
        (["--resume"], "no run under runs/"),
        (["--resume", "--out", "there"], "run.json is missing"),
        (["--epoch", "3"], "--epochs"),
        (["--data", "digits", "--workers", "-1"], "--workers must be 0 or more"),
        (["--data", "digits", "--train-images", "9"], "--train-images must lie between 10"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, typed: Any, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    done = typed("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mate-edge: ")
    assert says in line
    assert os.listdir(tmp_path) == ["there"]
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("model.safetensors", "SHA-256"), ("outputs.npz", "SHA-256"), ("run.json", "damaged")],
)
def test_an_altered_run_is_never_exported(
    name: str, says: str, run_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from mate_edge.export.export import export_run

    own = Path(shutil.copytree(run_folder, tmp_path / "own"))
    (own / name).write_bytes((own / name).read_bytes()[:-30])
    with pytest.raises(RunError, match=says):
        export_run(own, read_finished_run(own), "cpu", None, None, tmp_path / "b.mate", print)
    assert not (tmp_path / "b.mate").exists()


def test_a_run_of_a_newer_schema_says_to_upgrade(run_folder: Path, tmp_path: Path) -> None:
    document = json.loads((run_folder / "run.json").read_bytes()) | {"schema": 99}
    files.write_json(tmp_path / "run.json", document)
    with pytest.raises(RunError, match="upgrade"):
        read_run(tmp_path)


def test_accuracy_and_ensemble_are_counted() -> None:
    logits = np.array([[[2, 1], [0, 1.5]], [[0, 1], [0, 3]]], np.float32)
    each, ensemble = exit_accuracy(logits, np.array([0, 1]))
    assert each == (1.0, 0.5)
    assert ensemble == 0.5
    assert math.isclose(sum(each), 1.5)


@pytest.mark.parametrize(
    ("accuracy", "images", "guessed"),
    [(0.119, 10_000, True), (0.121, 10_000, False), (21 / 144, 144, True), (22 / 144, 144, False)],
)
def test_a_guesser_is_allowed_a_fifth_more_than_chance_or_luck_of_two_standard_errors(
    accuracy: float, images: int, guessed: bool
) -> None:
    assert is_chance(accuracy, 10, images) is guessed  # 0.1 + 2 * sqrt(0.1 * 0.9 / 144) = 0.15


def test_two_trainings_without_a_name_get_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(data="digits", epochs=1, train_images=256)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: new_run(options, None)[0], range(2)))
    assert sorted(folder.name for folder in folders) == [
        "digits-resnet8-mate", "digits-resnet8-mate-2",
    ]  # fmt: skip
    assert {read_run(folder).name for folder in folders} == {folder.name for folder in folders}


def test_a_folder_name_that_is_no_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (b"bee", b"caf\xe9"):
        folder = os.fsencode(tmp_path / "set") + b"/" + name
        os.makedirs(folder)
        for number in range(20):
            path = os.fsdecode(folder) + f"/{number}.png"
            Image.fromarray(np.full((32, 32), number, np.uint8)).save(path)
    with pytest.raises(UsageError, match=r"'caf.udce9' is not UTF-8: rename it"):
        new_run(Options(data="set", size=32, arch="resnet8", epochs=1, batch_size=8), None)
