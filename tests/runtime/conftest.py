"""What the runtime's tests share: the real GPU, fake ones, and a predictor on a clock of its own.

Fake GPUs run onnxruntime, as late as they may.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import make_runtime
from fake_gpu import FakeGpu
from fake_pycuda import make_driver
from fake_tensorrt import build_fakes, make_tensorrt
from timed import Clock, TimedEngine
from timed_bench import Measure, png, subject, with_shares

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.errors import EngineError
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench.bench import measure
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.build import build_engines
from mate_edge.runtime.deadline import LatencyTable
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines import ON_CPU, make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.predictor import Predictor

Install = Callable[..., FakeGpu]
OpenEngine = Callable[[], Engine]


def say_nothing(line: str) -> None:
    pass


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a fake GPU into this process, with one of the two libraries and of the two bindings."""

    def make(
        library: str = "tensorrt",
        backend: str = "cuda-bindings",
        version: str | None = None,
        **options: bool | int,
    ) -> FakeGpu:
        gpu = FakeGpu(**options)  # type: ignore[arg-type]
        versions = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1.116"}
        fake = make_tensorrt(gpu, library, version or versions[library])
        monkeypatch.setitem(sys.modules, library, fake)
        runtime = make_runtime(gpu) if backend == "cuda-bindings" else None
        driver = make_driver(gpu) if backend == "pycuda" else None
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
        monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
        return gpu

    return make


@pytest.fixture
def gpu_bundle(bundle_folder: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Make a bundle for TensorRT out of the CPU's: in fp32 they differ in the manifest only."""

    def make(engine: str = "tensorrt", max_batch: int = 8) -> Bundle:
        folder = tmp_path / f"{engine}.mate"
        if not folder.exists():
            shutil.copytree(bundle_folder, folder)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest.update(target="cuda", build={"engine": engine, "max_batch": max_batch})
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return read_bundle(folder)

    return make


@pytest.fixture(
    params=[
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt on a Jetson",
        "tensorrt through pycuda",
        "tensorrt through pycuda on a Jetson",
        "tensorrt_rtx",
        pytest.param("tensorrt on this GPU", marks=pytest.mark.gpu),
        pytest.param("tensorrt_rtx on this GPU", marks=pytest.mark.gpu),
    ]
)
def open_engine(
    request: pytest.FixtureRequest,
    install: Install,
    gpu_bundle: Callable[..., Bundle],
    bundle_folder: Path,
) -> OpenEngine:
    """Open an engine for batches up to 8, of each kind in turn."""
    kind: str = request.param
    name = kind.split()[0]
    if name in ON_CPU:
        pytest.importorskip(name)
        return lambda: make_engine(name, read_bundle(bundle_folder), 1, shared_pool=False)
    bundle = gpu_bundle(name)
    if kind.endswith("this GPU"):
        try:
            build_engines(bundle, say=say_nothing)
        except EngineError as error:
            pytest.skip(str(error))
    else:
        backend = "pycuda" if "pycuda" in kind else "cuda-bindings"
        install(name, backend, integrated="Jetson" in kind)
        build_fakes(bundle)
    return lambda: make_engine(name, bundle, None, shared_pool=False)


@pytest.fixture
def frames(golden: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The bundle's golden images, uint8 [H, W, C]."""
    return list(golden["images"])


@pytest.fixture
def timed(bundle_folder: Path) -> tuple[Predictor, TimedEngine, Clock]:
    """Segments of 1, 2 and 4 ms, whose table says just that."""
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    predictor = Predictor(engine, "deepest", clock)
    ms = (1.0, 2.0, 4.0)
    predictor.timing.latencies = LatencyTable(ms, ms, ms, 999, True)
    return predictor, engine, clock


@pytest.fixture
def bench_of(bundle_folder: Path, tmp_path: Path) -> Measure:
    """Bench a bundle on a device on which segments take what is said."""

    def run(
        segments_ms: list[float],
        unsplit_ms: float,
        shares: tuple[float, ...] = (0.6, 0.3, 0.1),
        **options: Any,
    ) -> Bench:
        clock = Clock()
        bundle = with_shares(read_bundle(bundle_folder), *shares)
        (found,) = measure(
            [subject(bundle, clock, segments_ms, unsplit_ms)],
            [png()],
            "a test's",
            Options(**{"rounds": 12, **options}),
            say=lambda line: None,
            sleep=lambda seconds: clock.pass_ms(1000 * seconds),
            machine=Machine(root=tmp_path),
        )
        return found

    return run
