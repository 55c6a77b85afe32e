"""Two processes (gloo) against one with the same global batch."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import held
import numpy as np
import pytest
from safetensors.numpy import load_file
from warm import Warm

from mate_edge.errors import RunError
from mate_edge.runs import read_finished_run, read_run
from mate_edge.train.options import Options
from mate_edge.train.start import run_training

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # fmt: skip
TRAIN = ["-m", "mate_edge", "train", "--data", "digits", "--epochs", "2", "--seed", "1",
         "--train-images", "640", "--batch-size", "32"]  # fmt: skip

WATCHED = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from mate_edge.train.loop import make_accelerator, train
from mate_edge.train.options import Options
from mate_edge.train.new import new_run
from mate_edge.train.start import old_run

out, here = Path(sys.argv[1]), PartialState(cpu=True)
options = Options(data="digits", epochs=2, seed=1, train_images=640, batch_size=32)
if here.is_main_process:
    new_run(options, out)
here.wait_for_everyone()
accelerator = make_accelerator("fp32")

def keep(models, weights, folder):
    name = out.with_name(f"rank-{here.process_index}.pt")
    torch.save(dict(accelerator.unwrap_model(models[0]).named_parameters()), name)

accelerator.register_save_state_pre_hook(keep)
train(*old_run(Options(), out), accelerator)
"""


def launch(warm: Warm, *command: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a launcher, which starts two processes; all three find torch imported."""
    return subprocess.Popen(
        [warm.python, *command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(warm.python)},
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def assert_close_weights(one: Path, other: Path) -> None:
    """Assert that nothing but the order of summation differs."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=1e-4)


@pytest.fixture(scope="module")
def alone(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = cli(*TRAIN[2:], "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def together(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two processes that leaves each one's parameters beside it."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "watched.py").write_text(WATCHED)
    finish(launch(warm, *TORCHRUN, "watched.py", "run", cwd=folder))
    return folder / "run"


def test_both_processes_end_with_equal_parameters_the_teacher_weights_too(together: Path) -> None:
    import torch

    first, second = (
        torch.load(together.with_name(f"rank-{rank}.pt"), weights_only=True) for rank in (0, 1)
    )
    assert "method.teacher_weights" in first
    assert first["method.teacher_weights"].abs().max() > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_two_processes_learn_what_one_does_with_the_same_global_batch(
    alone: Path, together: Path
) -> None:
    one, two = (read_finished_run(folder).results for folder in (alone, together))
    assert one is not None
    assert two is not None
    assert np.mean(two.test_accuracy) == pytest.approx(np.mean(one.test_accuracy), abs=0.03)
    with open(together / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(alone / "metrics.csv", newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(rows) == 2
    # the first epochs differ only in BatchNorm's statistics, which are each half batch's own
    assert float(rows[0]["loss"]) == pytest.approx(float(expected[0]["loss"]), rel=0.05)


def test_without_batch_norm_two_processes_reach_the_weights_of_one(
    cli: Any, warm: Warm, tmp_path: Path, without_batch_norm: str
) -> None:
    # the gradient is that of the global batch
    own = ["--arch", without_batch_norm, "--head", "linear", "--lr", "0.01"]
    done = cli(*TRAIN[2:], *own, "--out", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    finish(launch(warm, *TORCHRUN, *TRAIN, *own, "--out", "two", cwd=tmp_path))
    assert_close_weights(tmp_path / "one", tmp_path / "two")


@pytest.fixture(scope="module")
def stopped(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, stopped within its second epoch by a signal to the launcher."""
    folder = tmp_path_factory.mktemp("stopped")
    # they ask every 5th of the 20 steps of an epoch: the 5th time at step 5 of the second
    command = [held.__file__, "5", *TRAIN[2:], "--out", "run"]
    started = launch(warm, *TORCHRUN, *command, cwd=folder)
    while not (folder / "held").exists():
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=100)
    assert started.returncode != 0
    assert "mate-edge train --resume --out run" in said
    assert os.listdir(folder / "run" / "state") == ["epoch-1-step-5"]
    assert not read_run(folder / "run").finished
    return folder / "run"


def test_after_a_signal_both_processes_go_on_to_the_same_weights(
    warm: Warm, together: Path, stopped: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    resumed = ["-m", "mate_edge", "train", "--resume", "--out", "run"]
    finish(launch(warm, *TORCHRUN, *resumed, cwd=tmp_path))
    assert_same_weights(together, run)


def test_within_an_epoch_the_number_of_processes_cannot_change(stopped: Path) -> None:
    says = "stopped within an epoch of 2 processes and cannot go on with 1: resume it with 2"
    with pytest.raises(RunError, match=says):
        run_training(Options(), stopped, resume=True)


INTERRUPTED = """
import signal
import sys
from pathlib import Path

from accelerate import PartialState
from mate_edge.errors import TrainingStopped
from mate_edge.train import ending, loop
from mate_edge.train.options import Options
from mate_edge.train.start import run_training

options = Options(data="digits", arch=sys.argv[1], head="linear", epochs=2, batch_size=32,
                  accumulate=2, precision="bf16", train_images=160)
run_training(options, Path("whole"), resume=False)

rank, stopped = PartialState().process_index, Path("stopped")
loop.LOOK_EVERY = 1

def signal_at(call, module, name):
    real, calls = getattr(module, name), 0

    def signalled(*given):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGTERM)
        return real(*given)

    setattr(module, name, signalled)

def must_stop(after, options, resume):
    try:
        run_training(options, stopped, resume)
    except TrainingStopped as error:
        assert f"stopped after {after}: " in str(error), error
        return
    sys.exit(f"not stopped after {after}")

if rank == 1:
    signal_at(3, loop, "should_stop")
must_stop("step 3 of epoch 1", options, resume=False)
if rank == 0:
    signal_at(2, ending, "compute_logits")
must_stop("epoch 2", Options(), resume=True)
run_training(Options(), stopped, resume=True)
"""


def test_accumulation_in_bf16_goes_on_to_the_same_weights_whichever_process_was_signalled(
    warm: Warm, tmp_path: Path, with_dropout: str
) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    finish(launch(warm, *TORCHRUN, "interrupted.py", with_dropout, cwd=tmp_path))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    with open(tmp_path / "stopped" / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


CONFIDENT = """
from pathlib import Path

import torch
from accelerate import PartialState
from mate_edge.train.losses import make_method

here = PartialState(cpu=True)
method = make_method("dbt", 3, 10, {})
logits = torch.zeros(4, 3, 10)
if here.process_index == 1:
    logits[:, :, 0] = 100  # the mean over both is 0.55
for _ in range(3):
    method(logits, torch.zeros(4, dtype=torch.int64))
Path(f"temperature{here.process_index}").write_text(f"{float(method.temperature):.6f}")
"""


@pytest.mark.slow
def test_dbt_follows_the_confidence_of_all_processes(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "confident.py").write_text(CONFIDENT)
    process = launch(warm, *TORCHRUN, "confident.py", cwd=tmp_path)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    temperatures = [(tmp_path / f"temperature{rank}").read_text() for rank in range(2)]
    assert temperatures == [f"{1.05**3:.6f}"] * 2


def test_accelerate_launches_two_processes_that_reach_the_weights_of_one(
    cli: Any, warm: Warm, tmp_path: Path, without_batch_norm: str
) -> None:
    with open(tmp_path / "own_stages.py", "a") as file:
        file.write("import os\nopen('rank-' + os.environ.get('RANK', 'none'), 'w').close()\n")
    short = [*TRAIN[2:], "--epochs", "1", "--train-images", "256", "--arch", without_batch_norm,
             "--head", "linear", "--lr", "0.01"]  # fmt: skip
    # as it does for GPUs: --cpu, or neither, starts one process
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu",
                "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                "--dynamo_backend", "no", "--main_process_port", "0", "-m",
                "mate_edge"]  # fmt: skip
    finish(launch(warm, *launcher, *short, "--out", "two", cwd=tmp_path))
    assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-0", "rank-1"]
    done = cli(*short, "--out", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_close_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_batch_that_cannot_be_halved_is_a_clear_error(warm: Warm, tmp_path: Path) -> None:
    process = launch(warm, *TORCHRUN, *TRAIN[:-1], "33", "--out", "run", cwd=tmp_path)
    _, said = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "--batch-size 33 cannot be shared out to 2 processes" in said
    assert not (tmp_path / "run").exists()
