"""Machines with and without a GPU, an engine that must be built, a bundle of half precision."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mate_edge.bundle import (
    Build,
    Bundle,
    OperatingPoint,
    Segment,
    Tensor,
    add_file,
    read_bundle,
)
from mate_edge.decide.policy import softmax
from mate_edge.errors import EngineNotBuilt
from mate_edge.files import arrays_to_bytes, write_json
from mate_edge.images import normalize
from mate_edge.runtime import engines
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

WIDTH = 4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA GPU, and with nothing to use it."""
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: True)
    for name in ("tensorrt", "cuda", "cuda.bindings", "pycuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: False)


class Builder:
    """Stands for `mate_edge.runtime.build`: knows what it built, and which segments are built."""

    def __init__(self) -> None:
        self.built: tuple[int, ...] = ()
        self.done: list[Bundle] = []

    def build_engines(self, bundle: Bundle, say: Any) -> None:
        say("building")
        self.done.append(bundle)
        self.built = tuple(range(1, 9))


@pytest.fixture
def builder(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """An engine called tensorrt, with all that it needs, that must be built before it opens."""
    found = Builder()

    class BuiltEngine(OnnxRuntimeEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if not found.built:
                raise EngineNotBuilt("not built on this device: type mate-edge build")
            super().__init__(*arguments, **options)

        def open(self, k: int) -> None:
            if k not in found.built:
                raise EngineNotBuilt("not built on this device: type mate-edge build")
            super().open(k)

    module: Any = types.ModuleType("a_built_engine")
    module.BuiltEngine = BuiltEngine
    monkeypatch.setitem(engines.ENGINES, "tensorrt", "a_built_engine:BuiltEngine")
    for name in ("tensorrt", "pycuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "a_built_engine", module)
    monkeypatch.setitem(sys.modules, "mate_edge.runtime.build", found)  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="session")
def half_bundle(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments in float16 for TensorRT: the border float16, the logits float32."""
    pytest.importorskip("onnx")
    return write_half_bundle(tmp_path_factory.mktemp("half") / "half.mate", bundle_folder)


def write_half_bundle(folder: Path, like: Path) -> Path:
    """Write it for the classes and images of the bundle `like`."""
    folder.mkdir()
    bundle, rng = read_bundle(like), np.random.default_rng(0)
    old, pre = bundle.manifest, bundle.manifest.preprocessing
    sides = (pre.size // 2,) * 2
    images = Tensor(name="images", shape=(pre.channels, pre.size, pre.size), dtype="float32")
    border = Tensor(name="features_1", shape=(WIDTH, *sides), dtype="float16")
    logits = [
        Tensor(name=f"logits_{k}", shape=(len(old.classes),), dtype="float32") for k in (1, 2)
    ]
    segments = []
    for k, (source, targets) in enumerate([(images, (border, logits[0])), (border, logits[1:])], 1):
        file = add_file(folder, f"segments/{k}.onnx", half_segment(source, tuple(targets), rng))
        segments.append(Segment(file=file, input=source, outputs=tuple(targets)))
    pixels: Any = bundle.arrays(old.golden)["images"]
    manifest = msgspec.structs.replace(
        old,
        precision="fp16",
        build=Build(engine="tensorrt"),
        segments=tuple(segments),
        exits=old.exits[-2:],
        operating_points={},
        unsplit=add_file(folder, "unsplit.onnx", bundle.read(old.unsplit)),
    )
    with OnnxRuntimeEngine(Bundle(folder, manifest, ""), 1) as engine:
        engine.load(normalize(pixels, pre))
        found = np.stack([engine.run(1), engine.run(2)], axis=1)
    threshold = float(np.sort(softmax(found[:, 0]).max(axis=-1))[3:5].mean())
    balanced = OperatingPoint(
        policy="confidence",
        parameters={"thresholds": [threshold], "temperatures": [1.0, 1.0]},
        val_accuracy=0.0,
        val_mean_flops=1.0,
        val_exit_shares=(0.5, 0.5),
    )
    golden = add_file(folder, "golden.npz", arrays_to_bytes({"images": pixels, "logits": found}))
    exits = tuple(msgspec.structs.replace(exit_, temperature=1.0) for exit_ in manifest.exits)
    write_json(
        folder / "manifest.json",
        msgspec.structs.replace(
            manifest, exits=exits, golden=golden, operating_points={"balanced": balanced}
        ),
    )
    return folder


def half_segment(source: Tensor, targets: tuple[Tensor, ...], rng: np.random.Generator) -> bytes:
    """Return a convolution and a linear head in float16, as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}

    def value(tensor: Tensor) -> Any:
        shape = ["batch", *tensor.shape]
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], shape)

    classes, first = targets[-1].shape[0], source.dtype == "float32"
    side = source.shape[-1] // 2 if first else source.shape[-1]
    weights = {
        "filter": rng.normal(size=(WIDTH, source.shape[0], 3, 3)) / 3,
        "dense": rng.normal(size=(WIDTH * side * side, classes)) / side,
    }
    features = targets[0].name if len(targets) == 2 else "features"
    node = helper.make_node
    nodes = [
        node("Cast", [source.name], ["half"], to=TensorProto.FLOAT16),
        node(
            "Conv", ["half", "filter"], ["sum"], strides=[2 if first else 1] * 2, pads=[1] * 4
        ),
        node("Relu", ["sum"], [features]),
        node("Flatten", [features], ["flat"]),
        node("MatMul", ["flat", "dense"], ["answer"]),
        node("Cast", ["answer"], [targets[-1].name], to=TensorProto.FLOAT),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(w.astype(np.float16), name) for name, w in weights.items()]
    graph = helper.make_graph(
        nodes, "half", [value(source)], [value(tensor) for tensor in targets], stored
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
