"""From a bundle to a model that serves, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from mate_edge.bundle import Guarantee, read_bundle
from mate_edge.decide.drift import fine_bin
from mate_edge.errors import BundleError, ImageError, MateEdgeError
from mate_edge.runtime import verify as verifying
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.engines.blocked import read_blocked
from mate_edge.runtime.latencies import read_latencies
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.points import keep_point, kept_point
from mate_edge.runtime.policy import choose_policy, resolve_policy
from mate_edge.runtime.serve.catalog import Catalog
from mate_edge.runtime.serve.describe import statistics, summary
from mate_edge.runtime.serve.loading import Options, choose_workers, is_on_gpu, load_model
from mate_edge.runtime.serve.reply import Refusal
from mate_edge.runtime.serve.repository import Repository


def load(folder: Path, options: Options, beside: bool = False) -> tuple[Any, list[str]]:
    said: list[str] = []
    return load_model(
        folder, "digits", "1", options, Metrics(), lambda line: said.append(line), beside
    ), said


def test_engines_that_are_not_built_are_built_first_and_it_is_said(
    bundle_folder: Path, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    model, said = load(bundle_folder, Options(workers=2, engine="tensorrt"))
    assert len(model.predictors) == 2
    assert len(builder.done) == 1
    assert any("are not built on this device: building them" in line for line in said)
    model.close()


def test_what_this_device_has_accepted_is_not_verified_again(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    said = []
    for _ in range(2):
        model, lines = load(bundle_folder, Options(workers=1, policy=0.9))
        model.close()
        said.append(any("verifying" in line for line in lines))
    assert said == [True, False]
    assert read_blocked(read_bundle(bundle_folder)) is not None  # as this CPU computes them
    monkeypatch.setattr(verifying, "package_versions", lambda: {"onnxruntime": "0.1"})
    model, lines = load(bundle_folder, Options(workers=1))
    model.close()
    assert any("verifying" in line for line in lines)


def test_a_damaged_bundle_is_refused_however_often_it_was_accepted(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    load(own_bundle, Options(workers=1))[0].close()
    (own_bundle / "segments" / "2.onnx").write_bytes(b"cut")
    with pytest.raises(BundleError, match=r"2\.onnx is truncated"):
        load(own_bundle, Options(workers=1))


def test_a_policys_file_is_told_without_its_folder(
    typed: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    file = tmp_path / "mine.json"
    done = typed("tune", bundle_folder, "--max-drop", "5", "--out", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, _ = load(bundle_folder, Options(workers=1, policy=str(file)))
    told = summary(model)
    model.close()
    assert told["policy"] == "mine.json"
    assert "mine.json" in told["policies"]
    assert str(tmp_path) not in str(told)


def test_the_first_request_of_any_policy_measures_nothing(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    model, _ = load(bundle_folder, Options(workers=1))
    with contextlib.closing(model):
        timing = model.predictors[0].timing
        monkeypatch.setattr(timing, "_run_noise", None)
        for name in model.policies():
            assert timing.table(resolve_policy(model.bundle, name)).exact is timing.latencies.exact


def test_a_point_that_is_tuned_again_is_what_it_is_now(
    typed: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    model, _ = load(bundle_folder, Options(workers=1))
    found = []
    with contextlib.closing(model):
        for drop in ("50", "0"):
            options = ("--max-drop", drop, "--name", "mine")
            assert typed("tune", bundle_folder, *options, cwd=tmp_path).returncode == 0
            found.append(model._policy("mine"))
    assert found[0] != found[1] == choose_policy(model.bundle, "mine")


def test_loading_again_takes_the_default_point_as_it_is_tuned_now(
    typed: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)

    def tune(drop: str) -> None:
        options = ("--max-drop", drop, "--name", "mine")
        assert typed("tune", bundle_folder, *options, cwd=tmp_path).returncode == 0

    tune("50")
    catalog = Catalog((bundle_folder,), None)
    options = Options(workers=1, policy="mine")
    repository = Repository(catalog, options, Metrics(), lambda line: None)
    repository.load_all()
    (first,) = repository.loaded()
    asyncio.run(repository.load(first.name, None))
    assert repository.loaded() == [first], "nothing has changed"
    tune("0")
    asyncio.run(repository.load(first.name, None))
    (second,) = repository.loaded()
    assert second.predictors[0].policy == resolve_policy(second.bundle, "mine")
    assert second.predictors[0].policy != first.predictors[0].policy

    found = kept_point(second.bundle, "mine")
    assert found is not None
    promise = Guarantee(loss="worse", epsilon=0.1, delta=0.2, n=100, losses=0)
    point = msgspec.structs.replace(found.point, guarantee=promise)
    keep_point(msgspec.structs.replace(found, point=point), None, print)
    asyncio.run(repository.load(first.name, None))
    (third,) = repository.loaded()
    assert third.predictors[0].policy == second.predictors[0].policy
    assert third.predictors[0].chosen.guarantee == promise
    repository.close()


def test_loading_again_takes_the_bundle_that_a_link_points_at_now(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    link = tmp_path / "current"
    for number in range(1, 4):
        folder = Path(shutil.copytree(bundle_folder, tmp_path / f"{number}.mate"))
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["provenance"]["number"] = number
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "segments" / "1.onnx").write_bytes(b"cut")

    def point_at(number: int) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(f"{number}.mate")

    def serving() -> int:
        with repository.model("current") as model:
            found: int = model.manifest.provenance["number"]
            return found

    point_at(1)
    repository = Repository(Catalog([link]), Options(workers=1), Metrics(), lambda line: None)
    repository.load_all()
    with contextlib.closing(repository):
        point_at(2)
        assert repository.index() == [{"name": "current", "version": "1", "state": "READY"}]
        assert serving() == 1
        asyncio.run(repository.load("current", None))
        assert serving() == 2
        point_at(3)
        with pytest.raises(Refusal, match="loaded: segments/1.onnx is truncated"):
            asyncio.run(repository.load("current", None))
        assert serving() == 2


def test_a_start_takes_the_newest_version_that_can_be_loaded(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    for name in ("good/1", "good/2", "bad/1"):
        folder = Path(shutil.copytree(bundle_folder, tmp_path / name))
        if name != "good/1":
            (folder / "segments" / "1.onnx").write_bytes(b"cut")
    (Path(shutil.copytree(bundle_folder, tmp_path / "good/3")) / "manifest.json").write_text("{}")
    assert not is_on_gpu(tmp_path / "good" / "3", None)
    said: list[str] = []
    repository = Repository(Catalog([], tmp_path), Options(workers=1), Metrics(), said.append)
    repository.load_all()
    with contextlib.closing(repository):
        assert [(model.name, model.version) for model in repository.loaded()] == [("good", "1")]
    for left_out in ("good version 3", "good version 2", "bad version 1"):
        assert any(f"{left_out} cannot be loaded and is left out: " in line for line in said)
    shutil.rmtree(tmp_path / "good" / "1")
    for catalog, why in (
        (Catalog([], tmp_path), "no model of .* can be loaded: see above"),
        (Catalog([tmp_path / "bad" / "1", bundle_folder]), "1.onnx is truncated"),
    ):
        repository = Repository(catalog, Options(workers=1), Metrics(), said.append)
        with pytest.raises(MateEdgeError, match=why):
            repository.load_all()


def test_all_loads_that_nobody_waits_for_are_counted(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(*_: object) -> None:
        begun.set()
        assert go_on.wait(30)

    repository = Repository(
        Catalog([bundle_folder]), Options(workers=1), Metrics(), lambda line: None
    )
    monkeypatch.setattr(repository, "_prepare", load)

    async def drop_two() -> None:
        loads = [asyncio.ensure_future(repository.load("one", None)) for _ in range(2)]
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        for one in loads:
            one.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    asyncio.run(drop_two())
    go_on.set()
    assert repository.dropped == 2


def test_what_is_measured_beside_others_is_not_kept_for_other_processes(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    for beside in (True, False):
        model, said = load(bundle_folder, Options(workers=1), beside)
        assert any("was never measured" in line for line in said)
        kept = read_latencies(model.bundle, model.predictors[0].engine)
        model.close()
        assert (kept is None) == beside


def test_requests_that_fail_are_counted(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    model, _ = load(bundle_folder, Options(workers=1))
    with contextlib.closing(model):
        with pytest.raises(ImageError):
            model.classify(0, b"no image", {}, time.perf_counter_ns())
        with pytest.raises(Refusal):
            model.infer(0, b"{}", None, time.perf_counter_ns())
        stats = statistics(model)["inference_stats"]
    assert (stats["fail"]["count"], stats["success"]["count"]) == (2, 0)
    assert stats["fail"]["ns"] > 0


def test_drift_is_of_the_latest_images_and_not_of_all(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MOST_ROUNDS", 10)
    model, _ = load(bundle_folder, Options(workers=2))
    with contextlib.closing(model):
        calm, unsure = (one.tally.fine for one in model.predictors)
        for confidence in calibration_confidences(model):
            calm[fine_bin(confidence)] += 100
        drift = model.drift()
        assert drift.samples >= 5000
        assert not drift.warns
        unsure[fine_bin(0.11)] += 6000
        drift = model.drift()
        assert drift.samples == 6000
        assert drift.warns


def calibration_confidences(model: Any) -> list[float]:
    logits, _ = read_calibration(model.bundle)
    policy = model.predictors[0].policy
    found: list[float] = policy.decide(logits[:, :1])[1].max(axis=-1).tolist()
    return found


def test_workers_fill_the_cores_and_a_gpu_has_one() -> None:
    cores = choose_workers(1, on_gpu=False)
    assert cores >= 1
    assert choose_workers(cores, on_gpu=False) == 1
    assert choose_workers(10 * cores, on_gpu=False) == 1
    assert choose_workers(1, on_gpu=True) == 1
