"""Interrupted trainings: killed, stopped by a signal, damaged; they go on or say why not."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import held
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from warm import Warm

from mate_edge.errors import RunError, TrainingStopped, UsageError
from mate_edge.runs import read_run
from mate_edge.train import ending
from mate_edge.train.loop import make_accelerator
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.start import old_run, run_training
from mate_edge.train.state import Position, load_state, save_state


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Options:
    """Options for a training of seconds, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Options(data="digits", epochs=2, batch_size=128)


TIMES = ("images_per_s", "seconds", "waiting")
"""The columns of `metrics.csv` that no two trainings have alike."""

SMALL = ["train", "--data", "digits", "--train-images", "320", "--batch-size", "16"]
"""20 steps an epoch."""
TRAIN = [*SMALL, "--epochs", "3", "--seed", "1"]


@pytest.fixture(scope="module")
def whole(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `TRAIN`, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = cli(*TRAIN, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


SHORT = Options(data="digits", arch="small:stages", epochs=2, batch_size=64, train_images=256)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `SHORT`, not interrupted."""
    return run_training(SHORT, tmp_path_factory.mktemp("short") / "run", resume=False)[0]


class Victim:
    """A training of `SMALL`, held at step 5 of epoch 2.

    Attributes:
        pid: of the process and of the group that it leads, in which its loader's workers are.
        states: the folder in `out` of its states.
    """

    def __init__(self, warm: Warm, command: list[str], out: str, folder: Path) -> None:
        self._asks = subprocess.Popen(
            [warm.python, held.__file__, "25", *command, "--out", out],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (folder / "held").exists():
            assert self._asks.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.01)
        self.pid = int((folder / "held").read_text())
        self.states = folder / out / "state"

    def end(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and what it wrote to stderr."""
        _, said = self._asks.communicate(timeout=60)
        return self._asks.returncode, said


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_training_resumes_to_bit_equal_weights(
    cli: Any, warm: Warm, tmp_path: Path, whole: Path
) -> None:
    victim = Victim(warm, TRAIN, "killed", tmp_path)
    os.kill(victim.pid, signal.SIGKILL)
    victim.end()
    assert os.listdir(victim.states) == ["epoch-1"]
    assert not read_run(tmp_path / "killed").finished
    refused = cli("export", "killed", cwd=tmp_path)
    assert refused.returncode == 2
    assert "mate-edge train --resume --out killed" in refused.stderr

    resumed = cli("train", "--resume", "--out", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch" in resumed.stderr
    assert_same_weights(whole, tmp_path / "killed")
    assert [row["epoch"] for row in metrics(tmp_path / "killed")] == ["1", "2", "3"]
    assert not (tmp_path / "killed" / "state").exists()

    again = cli("train", "--resume", "--out", "killed", cwd=tmp_path)
    assert again.returncode == 0
    assert "resnet8 on digits" in again.stdout


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_in_mid_epoch_and_the_resume_is_bit_equal(
    number: signal.Signals, code: int, cli: Any, warm: Warm, tmp_path: Path, whole: Path
) -> None:
    victim = Victim(warm, TRAIN, "stopped", tmp_path)
    os.kill(victim.pid, number)
    ended, said = victim.end()
    assert ended == code
    assert "mate-edge train --resume --out stopped" in said.splitlines()[-1]
    assert os.listdir(victim.states) == ["epoch-1-step-5"]
    resumed = cli("train", "--resume", "--out", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 1 and 5 steps" in resumed.stderr
    assert_same_weights(whole, tmp_path / "stopped")
    one, other = (metrics(folder) for folder in (whole, tmp_path / "stopped"))
    counted = [name for name in one[0] if name not in TIMES]
    own = [name for name in counted if name.startswith(("teacher_accuracy", "kl_"))]
    for name in set(counted) - set(own):  # the method's sums begin anew with the process
        assert [row[name] for row in one] == [row[name] for row in other]


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that weights and rows are equal, and that each epoch has one row."""
    assert_same_weights(one, other)
    expected, found = (
        [{name: row[name] for name in row if name not in TIMES} for row in metrics(folder)]
        for folder in (one, other)
    )
    assert found == expected


@pytest.mark.parametrize(
    ("call", "epoch", "after"),
    [
        pytest.param(1, 1, "epoch 1", marks=pytest.mark.slow),
        (2, 2, "epoch 2"),
        (3, 2, "the last epoch"),  # of the test images: the last epoch's validation is kept
    ],
)
def test_a_signal_stops_an_evaluation_at_once_and_costs_no_step(
    call: int,
    epoch: int,
    after: str,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    real, calls = ending.compute_logits, 0

    def signalled(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the evaluation goes on after the signal")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ending, "compute_logits", signalled)
        with pytest.raises(TrainingStopped, match=f"after {after}: .*--resume --out") as stopped:
            run_training(SHORT, out, resume=False)
    assert stopped.value.exit_code == 143
    assert [path.name for path in (out / "state").iterdir()] == [f"epoch-{epoch}"]
    assert run_training(Options(), out, resume=True)[1].finished
    assert_same_run(short, out)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_row_that_is_written_when_a_signal_comes_is_not_written_again(
    epoch: int, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ending.write_metrics

    def signalled(folder: Path, rows: list[Any]) -> None:
        real(folder, rows)
        if len(rows) == epoch:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ending, "write_metrics", signalled)
        with pytest.raises(TrainingStopped, match=f"after epoch {epoch}: "):
            run_training(SHORT, tmp_path / "run", resume=False)
    assert len(metrics(tmp_path / "run")) == epoch
    assert run_training(Options(), tmp_path / "run", resume=True)[1].finished
    assert_same_run(short, tmp_path / "run")


def test_a_kill_while_the_old_state_is_removed_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = make_accelerator("fp32")
    save_state(accelerator, tmp_path, Position(epoch=1))

    class Killed(BaseException):
        pass

    def remove_a_file(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "position.json").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_a_file)
        with pytest.raises(Killed):
            save_state(accelerator, tmp_path, Position(epoch=2))
    assert load_state(accelerator, tmp_path) == Position(epoch=2)
    save_state(accelerator, tmp_path, Position(epoch=3, step=4))
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["epoch-3-step-4"]


def test_a_signal_to_the_whole_group_saves_though_workers_dropout_and_parts_are_in_play(
    cli: Any, warm: Warm, tmp_path: Path, with_dropout: str
) -> None:
    command = [*SMALL, "--epochs", "3", "--arch", with_dropout, "--workers", "1", "--randaugment",
               "5", "--mixup", "0.2", "--accumulate", "2"]  # fmt: skip
    done = cli(*command, "--out", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    victim = Victim(warm, command, "stopped", tmp_path)
    os.killpg(victim.pid, signal.SIGTERM)
    ended, said = victim.end()
    assert ended == 143, said
    assert os.listdir(victim.states) == ["epoch-1-step-5"]
    resumed = cli("train", "--resume", "--out", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_resume_with_other_options_is_refused_and_changes_nothing(quick: Options) -> None:
    folder, run, _ = new_run(quick, None)
    before = (folder / "run.json").read_bytes()
    for options, says in (
        (Options(arch="resnet20"), "arch resnet8, not resnet20"),
        (Options(epochs=9), "epochs 2, not 9"),
        (Options(method_options={"beta": 0.5}), r"method_options {'beta': 0.7}, not {'beta': 0.5}"),
        (Options(seed=4), "seed 0, not 4"),
    ):
        with pytest.raises(UsageError, match=says):
            old_run(options, folder)
    assert (folder / "run.json").read_bytes() == before
    same = Options(data="digits", epochs=2, method="mate", method_options={"beta": 0.7})
    assert old_run(same, None)[1] == run


def test_a_training_on_some_images_resumes_on_the_same_ones(quick: Options) -> None:
    import dataclasses

    options = dataclasses.replace(quick, train_images=150)
    folder, run, dataset = new_run(options, None)
    assert run.train_images == 150
    assert old_run(Options(), folder)[2].train.identity() == dataset.train.identity()
    assert old_run(Options(train_images=150), folder)[1] == run
    with pytest.raises(UsageError, match="train_images 150, not 200"):
        old_run(Options(train_images=200), folder)
    other = dataclasses.replace(options, seed=7)
    assert new_run(other, None)[1].images_sha256 == run.images_sha256


def test_a_run_from_before_files_were_reduced_goes_on_as_it_began(quick: Options) -> None:
    folder, run, _ = new_run(quick, None)
    assert run.preprocessing.reducing_gap == 2.0
    fields = json.loads((folder / "run.json").read_bytes())
    del fields["preprocessing"]["reducing_gap"]
    (folder / "run.json").write_text(json.dumps(fields))
    _, earlier, dataset = old_run(Options(), folder)
    assert earlier.preprocessing == dataset.preprocessing != run.preprocessing
    assert dataset.preprocessing.reducing_gap is None


def test_images_that_changed_since_are_noticed(tmp_path: Path, quick: Options) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (130, 130)).save(tmp_path / "set" / name / f"{number:02}.png")
    options = Options(data="set", arch="resnet8", size=128, batch_size=8)
    folder, run, _ = new_run(options, None)
    assert old_run(Options(data="set"), folder)[1] == run
    (tmp_path / "set" / "bee" / "03.png").unlink()
    with pytest.raises(RunError, match="have changed"):
        old_run(Options(), folder)


@pytest.mark.parametrize("size", [32, 128])
def test_a_folder_of_images_may_move(size: int, tmp_path: Path, quick: Options) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            shade = Image.new("L", (130, 130), number)
            shade.save(tmp_path / "set" / name / f"{number:02}.png")
    options = Options(data="set", arch="resnet8", size=size, batch_size=8)
    folder, _, _ = new_run(options, None)
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(RunError, match="are not in .*/set: give --data FOLDER, where they are now"):
        old_run(Options(), folder)
    moved = old_run(Options(data="moved"), folder)[1]
    assert moved.data == str(tmp_path / "moved")
    assert old_run(Options(), folder)[1] == moved == read_run(folder)
    (tmp_path / "moved" / "bee" / "03.png").unlink()
    (tmp_path / "moved").rename(tmp_path / "set")
    with pytest.raises(RunError, match="images of set have changed"):
        old_run(Options(data="set"), folder)
    assert read_run(folder) == moved


def test_a_damaged_state_is_a_clear_error(quick: Options) -> None:
    folder, _, _ = new_run(quick, None)
    state = folder / "state" / "epoch-1"
    state.mkdir(parents=True)
    with pytest.raises(RunError, match=r"position.json is missing"):
        run_training(Options(), folder, resume=True)
    (state / "position.json").write_bytes(b"[")
    with pytest.raises(RunError, match="epoch-1 cannot be loaded"):
        run_training(Options(), folder, resume=True)
    (state / "position.json").write_bytes(b'{"epoch": 1}')
    (state / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="epoch-1 cannot be loaded"):
        run_training(Options(), folder, resume=True)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PK"), Path.unlink])
def test_a_random_state_that_cannot_be_restored_is_a_clear_error(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    accelerator = make_accelerator("fp32")
    save_state(accelerator, tmp_path, Position(epoch=1))
    assert load_state(accelerator, tmp_path) == Position(epoch=1)
    damage(tmp_path / "state" / "epoch-1" / "random_states_0.pkl")
    with pytest.raises(RunError, match="epoch-1 cannot be loaded"):
        load_state(accelerator, tmp_path)


def test_damage_that_torch_reports_without_a_word_is_named_by_its_type(tmp_path: Path) -> None:
    class Silent:
        def load_state(self, path: str) -> None:
            raise EOFError

    (tmp_path / "state" / "epoch-1").mkdir(parents=True)
    (tmp_path / "state" / "epoch-1" / "position.json").write_text('{"epoch": 1}')
    with pytest.raises(RunError, match=r"epoch-1 cannot be loaded \(EOFError\): remove it"):
        load_state(cast(Any, Silent()), tmp_path)
