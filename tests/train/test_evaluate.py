"""`mate-edge evaluate`: from cached logits, without the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mate_edge import files
from mate_edge.errors import RunError
from mate_edge.runs import read_finished_run, read_outputs
from mate_edge.train.evaluate import spread


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "own"))


def test_evaluate_counts_what_training_counted_and_writes_figures_and_curves(
    cli: Any, own_run: Path
) -> None:
    done = cli("evaluate", own_run)
    assert done.returncode == 0, done.stderr
    run = read_finished_run(own_run)
    assert run.results is not None
    found = json.loads((own_run / "evaluation.json").read_bytes())
    assert [exit_["accuracy"] for exit_ in found["exits"]] == list(run.results.test_accuracy)
    assert found["ensemble"] == pytest.approx(run.results.test_ensemble)
    for exit_, flops in zip(found["exits"], run.results.cumulative_flops, strict=True):
        assert exit_["cumulative_flops"] == flops
        assert sum(part["count"] for part in exit_["reliability"]) == 359
    assert (own_run / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert f"{100 * run.results.test_accuracy[0]:.2f}" in done.stdout


def test_it_needs_the_outputs_alone_and_speaks_json(cli: Any, own_run: Path) -> None:
    (own_run / "model.safetensors").unlink()
    done = cli("evaluate", own_run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((own_run / "evaluation.json").read_bytes())


def test_altered_outputs_are_refused(cli: Any, own_run: Path) -> None:
    path = own_run / "outputs.npz"
    path.write_bytes(path.read_bytes()[:-20])
    done = cli("evaluate", own_run)
    assert done.returncode == 2
    assert "SHA-256 differs" in done.stderr
    assert not (own_run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("val_logits", lambda array: array[:, :1]),
        ("test_logits", None),
        ("test_labels", lambda array: array[:-1]),
        ("val_labels", lambda array: array + 10),
        ("val_images", None),
        ("val_images", lambda array: array[:, :-1]),
        ("val_image_indices", lambda array: array + 10**6),
    ],
)
def test_outputs_that_do_not_fit_the_run_are_refused(
    name: str, change: Callable[[Any], Any] | None, own_run: Path
) -> None:
    run = read_finished_run(own_run)
    outputs: dict[str, Any] = read_outputs(own_run, run)
    changed = outputs.pop(name)
    if change is not None:
        outputs[name] = change(changed)
    data = files.arrays_to_bytes(outputs)
    (own_run / "outputs.npz").write_bytes(data)
    run.files["outputs.npz"] = files.sha256(data)
    with pytest.raises(RunError, match=r"outputs\.npz does not fit run\.json: train again"):
        read_outputs(own_run, run)


def test_the_flops_of_training_are_those_of_the_profile(cli: Any, own_run: Path) -> None:
    profile = json.loads(cli("profile", own_run, "--json").stdout)
    run = read_finished_run(own_run)
    assert run.results is not None
    assert list(run.results.cumulative_flops) == [
        exit_["cumulative_flops"] for exit_ in profile["exits"]
    ]


def test_samples_are_spread_evenly() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 64).tolist() == [0, 1, 2]
