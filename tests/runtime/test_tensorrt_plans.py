"""What TensorRT's engines are loaded from: the library, the driver and the plans on the disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import build_fakes, compile_to_fake

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.errors import EngineError, EngineNotBuilt, MateEdgeError
from mate_edge.images import normalize
from mate_edge.runtime.build import build_engines
from mate_edge.runtime.engines.tensorrt import TensorRTEngine
from mate_edge.runtime.plans import EngineRecipe, Plans, segment_name

Golden = dict[str, np.ndarray]
GpuBundle = Callable[..., Bundle]


def plan_files(bundle: Bundle) -> tuple[Plans, Path]:
    engine = TensorRTEngine(bundle)
    plans = engine._shared.plans
    return plans, plans.path(segment_name(bundle.manifest.segments[0].file.sha256))


@pytest.fixture
def images_of(golden: Golden) -> Any:
    return lambda bundle: normalize(golden["images"], bundle.manifest.preprocessing)


def test_an_engine_of_another_build_of_the_library_is_not_loaded(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    """TensorRT refuses the engines of 10.13.0.35 in 10.13.0.40."""
    bundle = gpu_bundle()
    install(version="10.13.0.35")
    build_fakes(bundle)
    install(version="10.13.0.40")
    with pytest.raises(EngineNotBuilt, match=r"tensorrt-10\.13\.0\.40-.*mate-edge build"):
        TensorRTEngine(bundle)


@pytest.mark.parametrize(
    ("library", "version", "advice"),
    [("tensorrt", "10.2.0", "JetPack 6.1"), ("tensorrt", "8.6.1.6", "10.3 or later"),
     ("tensorrt_rtx", "1.2.0.54", "pip install -U tensorrt-rtx")],
)  # fmt: skip
def test_an_old_library_says_what_to_upgrade(
    library: str, version: str, advice: str, install: Any, gpu_bundle: GpuBundle
) -> None:
    install(library, version=version)
    with pytest.raises(EngineError, match=advice):
        build_fakes(gpu_bundle(library))


def test_a_missing_library_says_how_to_get_it(
    install: Any, gpu_bundle: GpuBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="--system-site-packages"):
        TensorRTEngine(gpu_bundle())


def test_without_any_binding_it_says_how_to_get_one(
    install: Any, gpu_bundle: GpuBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(backend="neither")
    with pytest.raises(
        EngineError, match=r"neither cuda-bindings nor pycuda .*mate-edge\[cuda12\]"
    ):
        TensorRTEngine(gpu_bundle())


@pytest.mark.parametrize(
    ("driver", "message"), [(0, "no NVIDIA driver"), (12020, r"supports CUDA 12.2, .* CUDA 13.0")]
)
def test_a_missing_or_old_driver_is_named(
    driver: int, message: str, install: Any, gpu_bundle: GpuBundle
) -> None:
    gpu = install()
    gpu.driver, gpu.runtime = driver, 13000
    with pytest.raises(EngineError, match=message):
        TensorRTEngine(gpu_bundle())


def test_a_bundle_for_another_engine_is_refused(install: Any, gpu_bundle: GpuBundle) -> None:
    install()
    with pytest.raises(EngineError, match="is for onnxruntime, not for tensorrt"):
        TensorRTEngine(gpu_bundle("onnxruntime"))


def test_an_engine_that_is_not_there_says_what_to_type(install: Any, gpu_bundle: GpuBundle) -> None:
    install()
    bundle = gpu_bundle()
    with pytest.raises(EngineNotBuilt, match=r"segment 1 .* type mate-edge build"):
        TensorRTEngine(bundle)


@pytest.mark.parametrize("damage", [b"", b"FAKEPLAN", None])
def test_a_corrupt_engine_is_not_loaded_and_is_built_again(
    damage: bytes | None, install: Any, gpu_bundle: GpuBundle, images_of: Any
) -> None:
    install()
    bundle = gpu_bundle()
    build_fakes(bundle)
    _, path = plan_files(bundle)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x" if damage is None else damage)
    with pytest.raises(EngineNotBuilt, match="mate-edge build"):
        TensorRTEngine(bundle).open(1)
    lines: list[str] = []
    build_engines(bundle, say=lines.append, compiler=compile_to_fake)
    assert sum("built already" in line for line in lines) == 3
    assert path.read_bytes() == data
    with TensorRTEngine(bundle) as engine:
        engine.load(images_of(bundle))
        engine.run(1)


@pytest.mark.parametrize(
    "change",
    [{"bundle": "0" * 64}, {"version": "10.4.0"}, {"cuda": "12.8"}, {"gpu": "Xavier"},
     {"multiprocessors": 8}, {"compute_capability": "7.2"}, {"library": "tensorrt_rtx"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_engine_of_another_key_is_never_loaded(
    change: dict[str, str | int], install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    bundle = gpu_bundle()
    build_fakes(bundle)
    _, path = plan_files(bundle)
    record = path.with_suffix(".json")
    found = json.loads(record.read_bytes())
    found["key"]["platform"].update({k: v for k, v in change.items() if k != "bundle"})
    found["key"].update({k: v for k, v in change.items() if k == "bundle"})
    record.write_text(json.dumps(found))
    with pytest.raises(EngineNotBuilt):
        TensorRTEngine(bundle)


def test_an_engine_of_another_segment_is_never_loaded(install: Any, gpu_bundle: GpuBundle) -> None:
    install()
    bundle = gpu_bundle()
    build_fakes(bundle)
    plans, path = plan_files(bundle)
    other = plans.path(segment_name(bundle.manifest.segments[1].file.sha256))
    for suffix in (".engine", ".json"):
        path.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())
    with pytest.raises(EngineNotBuilt):
        TensorRTEngine(bundle)


def test_an_engine_with_other_tensors_than_the_manifests_is_refused(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    bundle = gpu_bundle()
    build_fakes(bundle)
    plans, _ = plan_files(bundle)
    first, second = (segment.file for segment in bundle.manifest.segments[:2])
    data = compile_to_fake(None, bundle.read(second), "", 8, (8, 6), lambda share: None)
    plans.write(segment_name(first.sha256), first.sha256, EngineRecipe(max_batch=8), data)
    with TensorRTEngine(bundle) as engine, pytest.raises(EngineError, match="other tensors"):
        engine.open(1)


def test_a_hash_that_leads_out_of_the_state_folder_is_refused(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    folder = gpu_bundle().folder
    text = (folder / "manifest.json").read_text()
    sha256 = json.loads(text)["segments"][0]["file"]["sha256"]
    (folder / "manifest.json").write_text(text.replace(sha256, "../../../evil"))
    with pytest.raises(MateEdgeError, match="no SHA-256"):
        TensorRTEngine(read_bundle(folder))
