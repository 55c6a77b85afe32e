"""Two segments written in ONNX by hand, and what an engine answers at each exit and border."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mate_edge.bundle import Bundle, Segment, Tensor, add_file
from mate_edge.runtime.engines.blocked import BLOCKS
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

WIDTH = 2 * max(BLOCKS)


def two_segments(
    folder: Path,
    like: Bundle,
    first: list[Any],
    width: int = WIDTH,
    second: Sequence[Any] = (),
) -> Bundle:
    """Write two segments in ONNX: convolutions, then what `first` says, which makes `features`.

    `first` finds `z` and `c`, the outputs of two convolutions, one after the other; `second` makes
    `pooled from` of the features, by a convolution if nothing is said.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng, classes = np.random.default_rng(0), len(like.manifest.classes)
    node = helper.make_node
    images = like.manifest.segments[0].input
    channels, *sides = images.shape
    features = Tensor(name="features", shape=(width, *sides), dtype="float32")
    logits = Tensor(name="logits", shape=(classes,), dtype="float32")
    head = [
        node("GlobalAveragePool", ["pooled from"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    bodies = (
        ([conv(images.name, "z", "thin"), conv("z", "c", "wide"), *first], images, features),
        (list(second) or [conv("features", "pooled from", "wide")], features, None),
    )
    segments = []
    for k, (nodes, source, target) in enumerate(bodies, start=1):
        if not any("pooled from" in one.output for one in nodes):
            nodes.append(node("Identity", ["features"], ["pooled from"]))
        targets = [tensor for tensor in (target, logits) if tensor is not None]
        weights = {
            "thin": rng.normal(size=(width, channels, 3, 3)),
            "wide": rng.normal(size=(width, width, 3, 3)) / width,
            "dense": rng.normal(size=(width, classes)),
        }
        read = {name for one in (*nodes, *head) for name in one.input}
        described = [
            [
                helper.make_tensor_value_info(one.name, TensorProto.FLOAT, ["n", *one.shape])
                for one in side
            ]
            for side in ([source], targets)
        ]
        stored = [
            numpy_helper.from_array(weight.astype(np.float32), name)
            for name, weight in weights.items()
            if name in read
        ]
        graph = helper.make_graph([*nodes, *head], "small", *described, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        file = add_file(folder, f"segments/{k}.onnx", model.SerializeToString())
        segments.append(Segment(file=file, input=source, outputs=tuple(targets)))
    manifest = msgspec.structs.replace(
        like.manifest,
        segments=tuple(segments),
        exits=like.manifest.exits[-2:],
        operating_points={},
    )
    return Bundle(folder, manifest, "1" * 64)


def conv(source: str, target: str, weights: str) -> Any:
    from onnx import helper

    return helper.make_node("Conv", [source, weights], [target], pads=[1] * 4)


def other(kind: str, *names: str) -> Any:
    from onnx import helper

    return helper.make_node(kind, list(names[:-1]), [names[-1]])


def run(engine: OnnxRuntimeEngine, images: np.ndarray) -> list[np.ndarray]:
    """Return the logits of each exit, and what goes over each border."""
    engine.load(images)
    found = []
    for k in range(1, engine.num_segments + 1):
        found += [engine.run(k), engine.features]
    return found
