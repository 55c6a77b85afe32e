"""Export: what is written computes what was trained, or nothing is written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from warm import Warm

from mate_edge import files
from mate_edge.bundle import read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.decide.tune import MAX_DROPS
from mate_edge.errors import ExportError, UsageError
from mate_edge.export.check import check_models
from mate_edge.export.export import export_run
from mate_edge.export.models import Models
from mate_edge.images import normalize
from mate_edge.runs import read_finished_run, read_outputs
from mate_edge.runtime.engines.blocked import read_blocked
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.train.data import load_dataset
from mate_edge.train.evaluate import spread
from mate_edge.train.network import MultiExitNet, load_network


@pytest.fixture(scope="module")
def network(run_folder: Path) -> MultiExitNet:
    return load_network(run_folder, read_finished_run(run_folder))


@pytest.fixture(scope="module")
def images(run_folder: Path) -> np.ndarray:
    run = read_finished_run(run_folder)
    outputs: dict[str, Any] = read_outputs(run_folder, run)
    return normalize(outputs["val_images"], run.preprocessing)


def models(folder: Path) -> dict[str, onnx.ModelProto]:
    bundle = read_bundle(folder)
    listed = [segment.file for segment in bundle.manifest.segments] + [bundle.manifest.unsplit]
    return {file.path: onnx.load_from_string(bundle.read(file)) for file in listed}


def test_every_model_is_self_contained_folded_and_takes_any_batch(bundle_folder: Path) -> None:
    for model in models(bundle_folder).values():
        assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
        assert all(not tensor.external_data for tensor in model.graph.initializer)
        assert 18 <= model.opset_import[0].version <= 21
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param


def test_names_and_shapes_in_the_manifest_are_the_models(bundle_folder: Path) -> None:
    found = models(bundle_folder)
    for segment in read_bundle(bundle_folder).manifest.segments:
        graph = found[segment.file.path].graph
        for tensor, value in zip(
            (segment.input, *segment.outputs), (*graph.input, *graph.output), strict=True
        ):
            assert tensor.name == value.name
            dims = value.type.tensor_type.shape.dim[1:]
            assert tensor.shape == tuple(dim.dim_value for dim in dims)


def test_segments_hand_over_under_the_names_of_the_next_ones_input(bundle_folder: Path) -> None:
    segments = read_bundle(bundle_folder).manifest.segments
    for one, following in pairwise(segments):
        assert one.outputs[0] == following.input


def test_the_check_accepts_the_network_that_was_exported(
    fp32_models: Models, network: MultiExitNet, images: np.ndarray
) -> None:
    assert check_models(fp32_models, network, images) < 1e-4


@pytest.mark.parametrize("part", ["stages.0", "heads.0", "stages.1", "heads.1", "heads.2"])
def test_the_check_refuses_a_network_that_differs_anywhere(
    part: str, fp32_models: Models, run_folder: Path, images: np.ndarray
) -> None:
    other = load_network(run_folder, read_finished_run(run_folder))
    with torch.no_grad():
        list(other.get_submodule(part).parameters())[-1].add_(0.05)
    with pytest.raises(ExportError, match="segment|exit"):
        check_models(fp32_models, other, images)


def test_a_failed_check_leaves_no_bundle(
    quick_export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mate_edge.export.check.TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match="differs from torch"):
        quick_export(tmp_path / "b.mate", "cpu", None)
    assert os.listdir(tmp_path) == []


def test_golden_logits_are_the_networks(
    golden: dict[str, np.ndarray], network: MultiExitNet, images: np.ndarray
) -> None:
    with torch.no_grad():
        few = images[spread(len(images), len(golden["images"]))]
        expected = network(torch.from_numpy(few)).numpy()
    np.testing.assert_allclose(golden["logits"], expected, atol=1e-5)


def test_operating_points_keep_their_bound_on_validation(
    bundle_folder: Path, run_folder: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    manifest = bundle.manifest
    outputs: dict[str, Any] = read_outputs(run_folder, read_finished_run(run_folder))
    logits, labels = outputs["val_logits"], outputs["val_labels"]
    last = (logits[:, -1].argmax(-1) == labels).mean()
    flops = tuple(exit_.cumulative_flops for exit_ in manifest.exits)
    assert list(manifest.operating_points) == ["fast", "balanced", "accurate"]
    for name, point in manifest.operating_points.items():
        outcome = simulate(resolve_policy(bundle, name), logits)
        assert outcome.accuracy(labels) >= last - MAX_DROPS[name] - 1e-9
        assert outcome.accuracy(labels) == point.val_accuracy
        assert outcome.mean_cost(flops) == point.val_mean_flops
        assert outcome.exit_shares(3) == point.val_exit_shares


def test_png_files_of_the_test_split_get_exactly_evaluations_predictions(
    bundle_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    run = read_finished_run(run_folder)
    outputs: dict[str, Any] = read_outputs(run_folder, run)
    dataset = load_dataset(run.data)
    paths = []
    count = len(dataset.test.labels)
    for number, pixels in enumerate(dataset.test.plain(range(count), run.preprocessing)):
        paths.append(tmp_path / f"{number:04}.png")
        Image.fromarray(pixels[..., 0]).save(paths[-1])
    with Predictor.load(bundle_folder) as predictor:
        for policy in ("deepest", "balanced", "fast"):
            predictor.set_policy(policy)
            expected = simulate(predictor.policy, outputs["test_logits"])
            found = [predictor.predict(path) for path in paths]
            assert [p.index for p in found] == expected.predictions.tolist()
            assert [p.exit for p in found] == expected.exits.tolist()


def test_some_exits_are_kept_by_merging_segments(
    run_folder: Path, tmp_path: Path, cli: Any
) -> None:
    run = read_finished_run(run_folder)
    outputs: dict[str, Any] = read_outputs(run_folder, run)
    path = tmp_path / "two.mate"
    done = cli("export", run_folder, "--exits", "1,3", "--out", path)
    assert done.returncode == 0, done.stderr
    assert run.results is not None
    stated = [exit_.test_accuracy for exit_ in read_bundle(path).manifest.exits]
    assert stated == [run.results.test_accuracy[0], run.results.test_accuracy[2]]
    assert read_blocked(read_bundle(path)) is not None  # it was built for this CPU
    with Predictor.load(path, policy="deepest") as predictor:
        found = predictor.predict(outputs["val_images"][0])
        assert found.exit == 2
        assert found.index == outputs["val_logits"][outputs["val_image_indices"][0], 2].argmax()


@pytest.mark.parametrize(
    ("logit", "says"),
    [(7e4, "exit 2 reach 7e[+]04, and a bundle keeps up to 65504"), (np.nan, "nan")],
)
def test_a_network_whose_training_diverged_is_not_exported(
    logit: float, says: str, run_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    run = read_finished_run(folder)
    outputs: dict[str, Any] = read_outputs(folder, run)
    outputs["val_logits"][-1, 1, 0] = logit
    data = files.arrays_to_bytes(outputs)
    (folder / "outputs.npz").write_bytes(data)
    run.files["outputs.npz"] = files.sha256(data)
    with pytest.raises(ExportError, match=f"{says}.*train again with a lower --lr"):
        export_run(folder, run, "cpu", None, None, tmp_path / "b.mate", print)
    assert not (tmp_path / "b.mate").exists()


def test_a_second_bundle_gets_a_free_name_and_is_the_latest(
    quick_export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits-resnet8-mate-cpu.mate", "digits-resnet8-mate-cpu-2.mate"):
        path, _ = quick_export(None, "cpu", None)
        assert path == Path("bundles") / name
        assert (path.parent / "latest").read_text().strip() == name


def test_a_dry_run_prints_the_cuts_and_writes_nothing(
    home: Path, cli: Any, bundle_folder: Path
) -> None:
    before = sorted(os.listdir(home / "bundles"))
    done = cli("export", "--dry-run", "--exits", "1,3", cwd=home)
    assert done.returncode == 0, done.stderr
    for text in ("exit 1", "exit 2", "16x32x32", "65.5 kB", "Ceiling of the speed-up"):
        assert text in done.stdout
    assert "exit 3" not in done.stdout
    assert sorted(os.listdir(home / "bundles")) == before


KILLED = """
import os, signal
from mate_edge.cli import main
from mate_edge.export import export

export.export_models = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_killed_export_leaves_nothing_and_the_same_run_gives_the_same_bundle(
    run_folder: Path, bundle_folder: Path, tmp_path: Path, cli: Any, warm: Warm
) -> None:
    out = tmp_path / "killed.mate"
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    command = [warm.python, program, "export", run_folder, "--out", out]
    assert subprocess.run(command, cwd=tmp_path).returncode == -signal.SIGKILL % 256
    program.unlink()
    assert [path.suffix for path in tmp_path.glob(".killed.mate.*")] == [".tmp"]
    assert not out.exists()
    done = cli("export", run_folder, "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["killed.mate", "state"]  # the device's
    first, other = read_bundle(bundle_folder).manifest, read_bundle(out).manifest
    assert first.segments == other.segments
    assert first.operating_points == other.operating_points


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "jetso"}, "--target"),
        ({"precision": "fp16"}, "--precision of cpu"),
        ({"exits": [3, 1]}, "--exits"),
        ({"exits": [0, 1]}, "from 1 to 3"),
        ({"exits": [4]}, "from 1 to 3"),
        ({"exits": []}, "--exits"),
        ({"exits": [1, 2]}, "must keep the last exit, 3"),
    ],
)
def test_an_option_that_cannot_work_is_a_clear_error(
    options: dict[str, Any], says: str, run_folder: Path, tmp_path: Path
) -> None:
    chosen = {"target": "cpu", "precision": None, "exits": None} | options
    with pytest.raises(UsageError, match=says):
        export_run(run_folder, read_finished_run(run_folder), **chosen,
                   out=tmp_path / "b.mate", say=print)  # fmt: skip
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "cpus"], "Did you mean cpu?"),
        (["--exits", "1,x"], "--exits"),
        (["--precision", "fp16", "--dry-run"], "choose from fp32, int8"),
        ([], "no run under runs/"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, typed: Any, tmp_path: Path
) -> None:
    done = typed("export", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def test_a_bundle_that_exists_is_never_replaced(cli: Any, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old.mate").mkdir()
    done = cli("export", run_folder, "--out", "old.mate", cwd=tmp_path)
    assert done.returncode == 2
    assert "old.mate exists already" in done.stderr
    assert os.listdir(tmp_path / "old.mate") == []
