"""Which engine is taken, when it is built, and what goes into it raw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mate_edge
from mate_edge.bundle import read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.errors import EngineError, EngineNotBuilt, ImageError, UsageError
from mate_edge.images import crop, from_array, normalize
from mate_edge.runtime import engines
from mate_edge.runtime.classify import ClassifyOptions, classify
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.predictor import Predictor

Golden = dict[str, np.ndarray]


def bundle_for(folder: Path, engine: str, precision: str = "fp16") -> Path:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest |= {"build": {"engine": engine, "max_batch": 1}, "precision": precision}
    path.write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def for_a_gpu(own_bundle: Path) -> Path:
    return bundle_for(own_bundle, "tensorrt")


def run(bundle: Path, pictures: Path, *names: str, **options: Any) -> int:
    chosen: dict[str, Any] = {
        "policy": None, "max_ms": None, "engine": None, "threads": 1, "json": False,
    } | options  # fmt: skip
    return classify([str(pictures / name) for name in names], bundle, ClassifyOptions(**chosen))


# which one


def test_a_bundle_for_the_cpu_runs_on_onnxruntime_even_beside_a_gpu(
    gpu: None, bundle_folder: Path
) -> None:
    assert engines.choose_engine(read_bundle(bundle_folder)) == "onnxruntime"


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("fp32", "runs the fp32 segments instead"),
        ("fp16", "runs the fp16 segments instead, more slowly than fp32 ones would"),
    ],
)
def test_without_a_gpu_it_falls_back_and_warns_once(
    precision: str,
    says: str,
    no_gpu: None,
    own_bundle: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle_for(own_bundle, "tensorrt", precision)
    assert run(own_bundle, pictures, "0.png", "1.png") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "GPU" in line]
    assert warnings == [f"mate-edge: no NVIDIA GPU here: onnxruntime on the CPU {says}"]


def test_a_library_user_gets_a_python_warning_instead(no_gpu: None, for_a_gpu: Path) -> None:
    with pytest.warns(UserWarning, match="no NVIDIA GPU here"):
        predictor = mate_edge.load(for_a_gpu)
    assert isinstance(predictor.engine, OnnxRuntimeEngine)


@pytest.mark.parametrize("threads", [0, -1, 3000])
def test_a_number_of_threads_that_makes_no_sense_is_refused(
    threads: int, bundle_folder: Path
) -> None:
    with pytest.raises(UsageError, match=f"--threads must lie between 1 and .*, not {threads}"):
        mate_edge.load(bundle_folder, threads=threads)


def test_naming_the_engine_silences_the_warning(
    no_gpu: None, for_a_gpu: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(for_a_gpu, pictures, "0.png", engine="onnxruntime") == 0
    assert "GPU" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("here", "missing"),
    [
        ((), "tensorrt and cuda.bindings or pycuda"),
        (("tensorrt",), "cuda.bindings or pycuda"),
        (("pycuda",), "tensorrt"),
    ],
)
def test_with_a_gpu_but_not_all_that_it_needs_it_stops_with_the_fix(
    here: tuple[str, ...],
    missing: str,
    gpu: None,
    for_a_gpu: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: name if name in here else None)
    with pytest.raises(EngineError, match=f"but {missing} cannot be imported.*mate-edge doctor"):
        Predictor.load(for_a_gpu)


def test_cuda_bindings_without_its_parent_package_is_just_missing() -> None:
    assert not engines._importable("no_such_package.bindings")


def test_with_all_that_it_needs_the_bundles_engine_is_taken(
    gpu: None, builder: Any, for_a_gpu: Path
) -> None:
    assert engines.choose_engine(read_bundle(for_a_gpu)) == "tensorrt"


# building


@pytest.mark.parametrize("half", [(), (1,)])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("0.png",), {"policy": "deepest"}),
        (("0.png", "1.png"), {}),
        (("0.png",), {"max_ms": 100_000.0}),
    ],
)
def test_run_builds_what_is_missing_and_says_so(
    names: tuple[str, ...],
    options: dict[str, Any],
    half: tuple[int, ...],
    gpu: None,
    builder: Any,
    for_a_gpu: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builder.built = half
    assert run(for_a_gpu, pictures, *names, **options) == 0
    assert [bundle.folder for bundle in builder.done] == [for_a_gpu]
    out, err = capsys.readouterr()
    assert "not built on this device: building them, once" in err
    for name in names:
        (row,) = [line for line in out.splitlines() if name in line]
        assert "policy" in row or "last-exit" in row
    assert run(for_a_gpu, pictures, *names, **options) == 0
    assert len(builder.done) == 1
    assert "building" not in capsys.readouterr().err


def test_the_library_never_builds(gpu: None, builder: Any, for_a_gpu: Path) -> None:
    with pytest.raises(EngineNotBuilt, match="mate-edge build"):
        Predictor.load(for_a_gpu)
    assert builder.done == []


# raw frames


class FrameEngine(OnnxRuntimeEngine):
    """Preprocesses frames of 48 x 32 in BGR itself, wherever they lie."""

    frame_shape = (32, 48)
    frame_color = "bgr"
    loaded: int = 0

    def load_frame(self, frame: Any) -> None:
        self.loaded += 1
        pixels = frame if isinstance(frame, np.ndarray) else frame.pixels
        pre = self.bundle.manifest.preprocessing
        self.load(normalize(crop(from_array(pixels, "bgr"), pre)[None], pre))


class OnDevice:
    """A frame that says that it lies on a GPU."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.__cuda_array_interface__ = pixels.__array_interface__


class ByDLPack:
    """A frame that can only be handed over by DLPack, from a device of the kind given."""

    def __init__(self, pixels: np.ndarray, kind: int) -> None:
        self.pixels, self.shape, self.kind = pixels, pixels.shape, kind

    def __dlpack__(self, **options: Any) -> Any:
        assert self.kind in (1, 3), "nobody on the host may read it"
        return self.pixels.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)


@pytest.fixture
def raw(bundle_folder: Path) -> Predictor:
    return Predictor(FrameEngine(read_bundle(bundle_folder), 1), "deepest")


def test_a_frame_of_the_built_shape_and_color_is_preprocessed_by_the_engine(
    raw: Predictor, frame: np.ndarray
) -> None:
    plain = Predictor(OnnxRuntimeEngine(raw.bundle, 1), "deepest")
    expected = plain.predict(frame, color="bgr").probabilities
    for given in (frame, OnDevice(frame), ByDLPack(frame, kind=2)):
        found = raw.predict(given, color="bgr")
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
        assert found.decode_ms == 0
        assert found.preprocess_ms > 0
    assert raw.engine.loaded == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["another color", "another shape", "encoded"])
def test_any_other_frame_is_preprocessed_on_the_cpu(
    how: str, raw: Predictor, frame: np.ndarray, pictures: Path
) -> None:
    if how == "another color":
        raw.predict(frame, color="rgb")
    elif how == "another shape":
        raw.predict(frame[:31], color="bgr")
    else:
        raw.predict(pictures / "0.png", color="bgr")
    assert raw.engine.loaded == 0  # type: ignore[attr-defined]


def test_a_batch_is_preprocessed_on_the_cpu(raw: Predictor, frame: np.ndarray) -> None:
    assert len(raw.predict_batch([frame, frame])) == 2
    with pytest.raises(ImageError, match="one by one"):
        raw.predict_batch([OnDevice(frame)])


@pytest.mark.parametrize("kind", [1, 3], ids=["pageable", "pinned"])
def test_an_array_of_another_library_in_host_memory_counts_as_numpy(
    kind: int, raw: Predictor, frame: np.ndarray
) -> None:
    small = np.ascontiguousarray(frame[:8, :8])
    found = raw.predict(ByDLPack(small, kind))
    np.testing.assert_array_equal(found.probabilities, raw.predict(small).probabilities)


@pytest.mark.parametrize("wrap", [OnDevice, lambda pixels: ByDLPack(pixels, kind=2)])
def test_a_frame_on_the_device_that_the_engine_does_not_take_says_what_to_build(
    wrap: Any, raw: Predictor, frame: np.ndarray, bundle_folder: Path
) -> None:
    with pytest.raises(ImageError, match=r"takes 32x48x3 bgr uint8: .* --frame 40x30"):
        raw.predict(wrap(np.ascontiguousarray(frame[:30, :40])), color="bgr")
    with pytest.raises(ImageError, match="is 32x48x3 rgb, the engine takes 32x48x3 bgr"):
        raw.predict(wrap(frame), color="rgb")
    plain = Predictor(OnnxRuntimeEngine(raw.bundle, 1))
    with pytest.raises(ImageError, match="takes none: type mate-edge build --frame 48x32"):
        plain.predict(wrap(frame))
    with pytest.raises(EngineError, match="takes no frames"):
        plain.engine.load_frame(wrap(frame))


def test_a_device_frame_of_floats_is_refused(raw: Predictor, frame: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8"):
        raw.predict(OnDevice(frame.astype(np.float32)), color="bgr")


# half precision on the CPU


@pytest.mark.parametrize("policy", ["balanced", "deepest"])
def test_segments_of_half_precision_run_on_the_cpu(
    policy: str, half_bundle: Path, no_gpu: None
) -> None:
    with pytest.warns(UserWarning, match="fp16 segments"):
        predictor = Predictor.load(half_bundle, policy=policy, threads=1)
    golden: Golden = predictor.bundle.arrays(predictor.manifest.golden)
    expected = simulate(predictor.policy, golden["logits"])
    for found in (
        [predictor.predict(pixels) for pixels in golden["images"]],
        predictor.predict_batch(list(golden["images"])),
    ):
        assert [p.exit for p in found] == expected.exits.tolist()
        assert [p.index for p in found] == expected.predictions.tolist()
    if policy == "balanced":
        assert set(expected.exits) == {1, 2}
