"""Bundles of a lower precision: measured on the run's own images, or not written at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from mate_edge.bundle import Bundle, Manifest, read_bundle
from mate_edge.cli import app
from mate_edge.decide.simulate import simulate
from mate_edge.decide.temperature import fit_temperature
from mate_edge.errors import EngineError, ExportError, UsageError
from mate_edge.export import measure
from mate_edge.export.measure import check_drop
from mate_edge.export.models import Models
from mate_edge.export.targets import TARGETS
from mate_edge.images import normalize
from mate_edge.runs import Run, read_finished_run, read_outputs
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.verify import verify
from mate_edge.train.data import load_dataset

Export = Callable[..., tuple[Path, Manifest]]
DROP = 3.0  # of 144 images and a network of three epochs, one point is one image


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return read_finished_run(run_folder)


@pytest.fixture(scope="module")
def outputs(run_folder: Path, run: Run) -> dict[str, Any]:
    return read_outputs(run_folder, run)


@pytest.fixture(
    scope="module",
    params=[("cuda", "fp16"), ("jetson", "int8"), ("cpu", "int8")],
    ids=lambda p: " ".join(p),
)
def lowered(
    request: pytest.FixtureRequest, quick_export: Export, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    target, precision = request.param
    folder = tmp_path_factory.mktemp("lowered")
    max_batch = 1 if target == "cpu" else 4
    out, _ = quick_export(
        folder / f"{precision}.mate", target, precision, max_batch=max_batch, max_drop=DROP
    )
    assert os.listdir(folder) == [out.name]
    return read_bundle(out)


def test_the_manifest_says_what_was_made_for_what(lowered: Bundle, bundle_folder: Path) -> None:
    manifest, before = lowered.manifest, read_bundle(bundle_folder).manifest
    on_cpu = manifest.target == "cpu"
    build = ("onnxruntime", 1) if on_cpu else ("tensorrt", 4)
    assert (manifest.build.engine, manifest.build.max_batch) == build
    segments, border = manifest.segments, "float32" if on_cpu else "float16"
    assert [s.input.dtype for s in segments] == ["float32", border, border]
    assert [s.outputs[-1].dtype for s in segments] == ["float32"] * 3
    smaller = 1 if on_cpu else 2
    assert [smaller * e.border_bytes for e in manifest.exits] == [
        e.border_bytes for e in before.exits
    ]
    assert [e.test_accuracy for e in manifest.exits] == [None] * 3
    assert [e.flops for e in manifest.exits] == [e.flops for e in before.exits]


def test_accuracy_is_measured_before_and_after(lowered: Bundle, run: Run) -> None:
    assert run.results is not None
    exits = lowered.manifest.exits
    assert [e.fp32_val_accuracy for e in exits] == list(run.results.val_accuracy)
    validation = load_dataset(run.data).val
    images = normalize(
        validation.plain(range(len(validation.labels)), run.preprocessing), run.preprocessing
    )
    with make_engine("onnxruntime", lowered, 1, False) as engine:
        engine.load(images)
        for k, stated in enumerate(exits, start=1):
            found = float((engine.run(k).argmax(-1) == validation.labels).mean())
            assert found == stated.val_accuracy
            assert stated.fp32_val_accuracy is not None
            assert found >= stated.fp32_val_accuracy - DROP / 100


def test_temperatures_and_calibration_are_those_of_the_lowered_exits(
    lowered: Bundle, outputs: dict[str, Any]
) -> None:
    stored: dict[str, Any] = lowered.arrays(lowered.manifest.calibration)
    logits = stored["logits"].astype(np.float32)
    assert stored["labels"].tolist() == outputs["val_labels"].tolist()
    assert logits.shape == outputs["val_logits"].shape
    assert not np.array_equal(stored["logits"], outputs["val_logits"].astype(np.float16))
    for k, exit_ in enumerate(lowered.manifest.exits):
        fitted = fit_temperature(logits[:, k], stored["labels"])
        assert exit_.temperature == pytest.approx(fitted, rel=0.01)


def test_golden_logits_are_the_lowered_segments(lowered: Bundle) -> None:
    golden: dict[str, Any] = lowered.arrays(lowered.manifest.golden)
    images = normalize(golden["images"], lowered.manifest.preprocessing)
    with make_engine("onnxruntime", lowered, 1, False) as engine:
        engine.load(images)
        for k in range(1, 4):
            np.testing.assert_allclose(engine.run(k), golden["logits"][:, k - 1], rtol=1e-5)


@pytest.mark.parametrize("policy", ["fast", "balanced", "accurate", "deepest"])
def test_the_runtime_takes_the_exits_that_the_simulation_takes(
    policy: str, lowered: Bundle, run: Run
) -> None:
    validation = load_dataset(run.data).val
    pixels = validation.plain(range(len(validation.labels)), run.preprocessing)
    with make_engine("onnxruntime", lowered, 1, False) as engine:
        engine.load(normalize(pixels, run.preprocessing))
        logits = np.stack([engine.run(k) for k in range(1, 4)], axis=1)
    with Predictor.load(lowered.folder, policy=policy) as predictor:
        expected = simulate(predictor.policy, logits)
        single = [predictor.predict(frame) for frame in pixels]
        together = predictor.predict_batch(list(pixels))
    for found in (single, together):
        assert [p.exit for p in found] == expected.exits.tolist()
        assert [p.index for p in found] == expected.predictions.tolist()
    if policy in lowered.manifest.operating_points:
        point = lowered.manifest.operating_points[policy]
        assert expected.accuracy(validation.labels) == point.val_accuracy
        assert expected.exit_shares(3) == point.val_exit_shares


def test_an_old_onnxruntime_refuses_int8_and_says_what_to_install(
    lowered: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    if (lowered.manifest.target, lowered.manifest.precision) == ("jetson", "int8"):
        with pytest.raises(EngineError, match="pip install 'onnxruntime>=1.30'"):
            make_engine("onnxruntime", lowered, 1, False)
    else:
        make_engine("onnxruntime", lowered, 1, False).close()


@pytest.mark.parametrize("lowered", [("cpu", "int8")], indirect=True)
def test_int8_for_a_cpu_is_smaller_and_verify_accepts_it(
    lowered: Bundle, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path))
    whole, before = lowered.manifest.unsplit, read_bundle(bundle_folder).manifest.unsplit
    assert whole.bytes < 0.5 * before.bytes  # the graph itself is as large as these few weights
    found = verify(lowered.folder, None, lambda line: None, threads=1)
    assert found.accepted, found.refusals


def test_fp32_for_a_gpu_needs_no_images_and_is_the_bundle_of_a_cpu(
    quick_export: Export, run: Run, bundle_folder: Path, tmp_path: Path
) -> None:
    gone = msgspec.structs.replace(run, data=str(tmp_path / "gone"))
    _, manifest = quick_export(tmp_path / "b.mate", "cuda", "fp32", run=gone)
    cpu = read_bundle(bundle_folder).manifest
    assert manifest.segments == cpu.segments
    assert manifest.exits == cpu.exits
    assert manifest.golden == cpu.golden
    assert (cpu.build.engine, manifest.build.engine) == ("onnxruntime", "tensorrt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "nowhere/photos"}, "nowhere/photos is no folder"),
        ({"images_sha256": "0" * 64}, "its images have changed since"),
        ({"train_images": 1000}, "its images have changed since"),
    ],
)
def test_images_that_are_gone_or_changed_are_asked_for(
    change: dict[str, Any], says: str, quick_export: Export, run: Run, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(run, **change)
    with pytest.raises(ExportError, match=says) as raised:
        quick_export(tmp_path / "b.mate", "jetson", None, run=other)
    assert "--precision fp32, which needs none" in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_drop_beyond_the_allowed_one_leaves_no_bundle(
    quick_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.some_images
    monkeypatch.setattr(measure, "some_images", lambda *given: real(*given) / 50)
    with pytest.raises(ExportError) as raised:
        quick_export(tmp_path / "b.mate", "jetson", "int8", max_drop=2)
    for text in ("exit ", "% of 144 validation images in int8", "--max-drop 2", "--precision fp16"):
        assert text in str(raised.value)
    assert os.listdir(tmp_path) == []
    out, _ = quick_export(tmp_path / "b.mate", "jetson", "int8", max_drop=100)
    assert out.exists()


def test_a_cpu_is_offered_no_precision_that_it_does_not_have() -> None:
    labels = np.zeros(10, np.int64)
    before = np.tile(np.eye(2, dtype=np.float32)[0], (10, 1, 1))
    cpu = TARGETS["cpu"].precisions
    with pytest.raises(ExportError, match="choose --precision fp32, or allow"):
        check_drop(before, 1 - before, labels, "int8", 1.0, cpu)


def test_the_exit_that_loses_most_is_named() -> None:
    labels = np.arange(200) % 2
    right = np.eye(2, dtype=np.float32)[labels]
    before = np.stack([right, right, right], axis=1)
    after = before.copy()
    after[:2, 0], after[:4, 1] = 1 - after[:2, 0], 1 - after[:4, 1]
    was, now = check_drop(before, after, labels, "fp16", 2.0, ("fp16", "fp32"))
    assert was == (1.0, 1.0, 1.0)
    assert now == (0.99, 0.98, 1.0)
    with pytest.raises(ExportError) as raised:
        check_drop(before, after, labels, "fp16", 1.9, ("fp16", "fp32"))
    assert str(raised.value) == (
        "exit 2 falls from 100.00 % to 98.00 % of 200 validation images in fp16, more than "
        "--max-drop 1.9: choose --precision fp32, or allow a larger --max-drop"
    )


@pytest.mark.parametrize(
    ("target", "precision", "options", "says"),
    [
        ("jetson", "int4", {}, "choose from fp16, fp32, int8"),
        ("cuda", None, {"max_drop": -1}, "--max-drop must lie between 0 and 100"),
        ("cuda", None, {"max_drop": float("nan")}, "--max-drop"),
        ("rtx", None, {"max_batch": 0}, "--max-batch must lie between 1 and 1024"),
        ("cpu", None, {"max_batch": 2}, "cpu takes any batch"),
    ],
)
def test_an_option_that_cannot_work_is_a_clear_error(
    target: str,
    precision: str | None,
    options: dict[str, Any],
    says: str,
    quick_export: Export,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=says):
        quick_export(tmp_path / "b.mate", target, precision, **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["cuda", "jetson", "rtx"])
def test_nvidia_targets_default_to_fp16_and_say_in_two_lines_how_to_build(name: str) -> None:
    target = TARGETS[name]
    assert target.precisions == ("fp16", "fp32", "int8")
    lines = target.next_steps(Path("bundles/b.mate"))
    assert len(lines) == 2
    assert "mate-edge build" in lines[1]
    assert "b.mate" in lines[1]


def test_the_command_prints_both_accuracies_and_how_to_go_on(
    fp32_models: Models, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mate_edge.export.export.export_models", lambda *_: fp32_models)
    options = ("--target", "rtx", "--max-batch", "2", "--out", "b.mate")
    done = CliRunner().invoke(app, ["export", str(run_folder), *options])
    assert done.exit_code == 0, done.output
    manifest = read_bundle(tmp_path / "b.mate").manifest
    assert (manifest.precision, manifest.build.engine) == ("fp16", "tensorrt_rtx")
    assert manifest.build.max_batch == 2
    for k, exit_ in enumerate(manifest.exits, start=1):
        assert exit_.fp32_val_accuracy is not None
        row = (
            f"exit {k}",
            f"{100 * exit_.fp32_val_accuracy:.2f}",
            f"{100 * exit_.val_accuracy:.2f}",
        )
        assert any(all(text in line for text in row) for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1].endswith(
        "mate-edge build b.mate --compute-capability 8.6,8.9"
    )


@pytest.mark.slow
@pytest.mark.int8
def test_every_exit_stays_within_a_point_of_fp32_on_fashion_mnist(cli: Any, tmp_path: Path) -> None:
    trained = cli("train", "--data", "fashion-mnist", "--arch", "resnet8", "--train-images", 5000,
                  "--epochs", 6, "--validate-every", 6, "--out", "run", cwd=tmp_path)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    for precision in ("fp16", "int8"):
        done = cli("export", "run", "--target", "jetson", "--precision", precision,
                   "--max-drop", 1, "--out", f"{precision}.mate", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        for exit_ in read_bundle(tmp_path / f"{precision}.mate").manifest.exits:
            assert exit_.fp32_val_accuracy is not None
            assert abs(exit_.fp32_val_accuracy - exit_.val_accuracy) <= 0.01
