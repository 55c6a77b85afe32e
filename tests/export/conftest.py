"""What the tests of the export share: models at hand, and a compiler that needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import keep_export_tables

from mate_edge.bundle import Manifest, read_bundle
from mate_edge.errors import EngineError
from mate_edge.export.export import export_run
from mate_edge.export.models import Model, Models
from mate_edge.runs import read_finished_run
from mate_edge.runtime.engines.onnxruntime import check_rounding


@pytest.fixture(scope="session", autouse=True)
def _quick_exports() -> None:
    keep_export_tables()


def skip_without_int8() -> None:
    """Skip what the onnxruntime of Python 3.10 cannot do."""
    try:
        check_rounding("int8")
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _int8(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("int8") is not None:
        skip_without_int8()


def bundled_models(folder: Path) -> Models:
    bundle = read_bundle(folder)
    segments = tuple(
        Model(f"segment {k}", bundle.read(segment.file), segment.input, segment.outputs)
        for k, segment in enumerate(bundle.manifest.segments, start=1)
    )
    (whole,) = bundle.unsplit().manifest.segments
    data = bundle.read(bundle.manifest.unsplit)
    return Models(segments, Model("the unsplit network", data, whole.input, whole.outputs))


@pytest.fixture(scope="session")
def fp32_models(bundle_folder: Path) -> Models:
    """The run's network in fp32, out of its bundle: torch's exporter takes ten seconds."""
    return bundled_models(bundle_folder)


Export = Callable[..., tuple[Path, Manifest]]


@pytest.fixture(scope="session")
def quick_export(run_folder: Path, fp32_models: Models) -> Export:
    """`export_run` of the run, or of `run`, with the models at hand instead of torch's exporter."""

    def export(out: Path | None, target: str, precision: str | None, **options: Any) -> Any:
        if precision == "int8" and target != "cpu":
            skip_without_int8()
        run = options.pop("run", read_finished_run(run_folder))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mate_edge.export.export.export_models", lambda *_: fp32_models)
            return export_run(
                run_folder, run, target, precision, None, out, lambda text: None, **options
            )

    return export


@pytest.fixture(scope="session")
def compile_for_rtx() -> Callable[[Model], list[str]]:
    """Compile a model for batch 1 with TensorRT for RTX; return what goes wrong."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

    class Errors(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.found.append(message)

    def compile_model(model: Model) -> list[str]:
        errors = Errors()
        builder = trt.Builder(errors)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, errors)
        if not parser.parse(model.data):
            return errors.found + [
                f"{parser.get_error(i).node_name()}: {parser.get_error(i).desc()}"
                for i in range(parser.num_errors)
            ]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        profile = builder.create_optimization_profile()
        shape = (1, *model.input.shape)
        profile.set_shape(model.input.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        assert errors.found or engine is not None
        return errors.found

    return compile_model
