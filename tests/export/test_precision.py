"""fp16 and int8 in the ONNX itself, on networks small enough to be counted by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mate_edge.bundle import Tensor
from mate_edge.errors import EngineError, ExportError
from mate_edge.export.models import Chain, Model, run_model
from mate_edge.export.precision import FOR_TENSORRT, lower_segments, to_fp16, to_int8, to_u8s8

CLASSES, CHANNELS, SIZE = 3, 4, 6
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 1, (8, 2, SIZE, SIZE)).astype(np.float32)
WEIGHTS = RNG.normal(0, 1, (CHANNELS, 2, 3, 3)).astype(np.float32)


def segment(
    weights: np.ndarray = WEIGHTS, k: int = 1, last: bool = False, bound: float = 6.0
) -> Model:
    """Conv, Clip, a residual Add; then a head of a mean and a Gemm."""
    source, features, logits = (
        ("images" if k == 1 else "features_1"),
        f"features_{k}",
        f"logits_{k}",
    )
    classifier = RNG.normal(0, 1, (CLASSES, CHANNELS)).astype(np.float32)
    constants = {
        "weights": weights,
        "bias": np.linspace(-1, 1, CHANNELS, dtype=np.float32),
        "low": np.float32(0),
        "high": np.float32(bound),
        "axes": np.array([2, 3]),
        "classifier": classifier,
        "offset": np.ones(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", [source, "weights", "bias"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["conv", "low", "high"], ["clip"], "clip"),
        helper.make_node("Add", ["clip", "conv"], [features], "add"),
        helper.make_node("ReduceMean", [features, "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "classifier", "offset"], [logits], "gemm", transB=1),
    ]
    inside, outside = ["n", weights.shape[1], SIZE, SIZE], ["n", CHANNELS, SIZE, SIZE]
    values = {features: outside, logits: ["n", CLASSES]}
    if last:
        del values[features]
    graph = helper.make_graph(
        nodes,
        "segment",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, inside)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in values.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return Model(
        f"segment {k}",
        model.SerializeToString(),
        Tensor(name=source, shape=tuple(inside[1:]), dtype="float32"),
        tuple(Tensor(name=n, shape=tuple(s[1:]), dtype="float32") for n, s in values.items()),
    )


def graph_of(model: Model) -> onnx.GraphProto:
    return onnx.load_from_string(model.data).graph


def constants_of(model: Model) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph_of(model).initializer}


def quantised(model: Model, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point of the tensor of that name."""
    (node,) = (
        node
        for node in graph_of(model).node
        if node.op_type == "QuantizeLinear" and node.input[0] == name
    )
    constants = constants_of(model)
    return constants[node.input[1]], constants[node.input[2]]


def declared(model: Model) -> dict[str, str]:
    graph = graph_of(model)
    kinds = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    return {v.name: kinds[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.output)}


@pytest.mark.parametrize("convert", [to_fp16, pytest.param(to_int8, marks=pytest.mark.int8)])
def test_only_images_and_logits_stay_fp32(convert: Any) -> None:
    first, second = (
        segment(),
        segment(RNG.normal(0, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32), 2, last=True),
    )
    one = convert(first, IMAGES)
    two = convert(second, run_model(one, IMAGES))
    assert declared(one) == {"images": "float32", "features_1": "float16", "logits_1": "float32"}
    assert declared(two) == {"features_1": "float16", "logits_2": "float32"}
    for model in (one, two):
        assert declared(model) == {t.name: t.dtype for t in (model.input, *model.outputs)}
        floats = [v for v in constants_of(model).values() if v.dtype.kind == "f"]
        assert floats
        assert {v.dtype for v in floats} == {np.dtype(np.float16)}
    assert (one.border_bytes, two.border_bytes) == (CHANNELS * SIZE * SIZE * 2, 0)


def test_fp16_computes_what_fp32_does_up_to_its_rounding() -> None:
    model = segment()
    expected = Chain([model]).logits(IMAGES)
    found = Chain([to_fp16(model, IMAGES)]).logits(IMAGES)
    assert 0 < np.abs(found - expected).max() < 0.005 * np.abs(expected).max()


def test_a_weight_beyond_fp16_is_named() -> None:
    weights = WEIGHTS.copy()
    weights[0, 0, 0, 0] = 70000.0
    with pytest.raises(ExportError, match=r"segment 1: the weight 'weights' reaches 7e\+04"):
        to_fp16(segment(weights), IMAGES / 1e6)


def test_an_activation_beyond_fp16_is_named() -> None:
    with pytest.raises(ExportError, match="segment 1: the activation 'conv' reaches") as raised:
        to_fp16(segment(1e4 * WEIGHTS), IMAGES)
    assert "--precision fp32" in str(raised.value)


def test_a_bound_beyond_fp16_is_cut_off_and_what_is_nearer_to_zero_becomes_zero() -> None:
    weights = WEIGHTS.copy()
    weights[0, 0, 0, :] = [2e-8, -2e-8, 5e-8]
    constants = constants_of(to_fp16(segment(weights, bound=3.4e38), IMAGES))
    assert constants["high"] == np.float16(65504)
    assert constants["weights"][0, 0, 0].tolist() == [0, 0, np.float16(5e-8)]


@pytest.mark.int8
def test_int8_quantises_inputs_and_weights_of_convolutions_and_products_alone() -> None:
    graph = graph_of(to_int8(segment(), IMAGES))
    maker = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            found = name in maker and maker[name].op_type == "DequantizeLinear"
            wanted = node.op_type in ("Conv", "Gemm", "MatMul") and position < 2
            assert found == wanted, (node.op_type, name)
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 4


@pytest.mark.int8
def test_int8_scales_map_the_largest_value_to_127() -> None:
    model = to_int8(segment(), IMAGES)
    scale, zero = quantised(model, "weights")
    assert scale == pytest.approx(np.abs(WEIGHTS).max(axis=(1, 2, 3)) / 127, rel=1e-3)
    assert zero.dtype == np.int8
    assert not zero.any()
    for name, values in (
        ("graph_input_cast_0", IMAGES),
        ("mean", run_model(segment(), IMAGES).mean(axis=(2, 3))),
    ):
        scale, zero = quantised(model, name)
        assert scale == pytest.approx(np.abs(values).max() / 127, rel=2e-3)
        assert (zero.dtype, zero.tolist()) == (np.int8, 0)


def test_int8_for_a_cpu_leaves_images_borders_and_logits_fp32() -> None:
    before = segment()
    model = to_u8s8(before, IMAGES)
    assert declared(model) == dict.fromkeys(("images", "features_1", "logits_1"), "float32")
    maker = {name: node.op_type for node in graph_of(model).node for name in node.output}
    assert maker["features_1"] == "DequantizeLinear"
    assert maker["logits_1"] == "Gemm"
    found, expected = (Chain([m], as_written=False).logits(IMAGES) for m in (model, before))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


def test_int8_for_a_cpu_has_unsigned_activations_and_weights_of_seven_bits() -> None:
    model = to_u8s8(segment(), IMAGES)
    constants = constants_of(model)
    scale, zero = quantised(model, "images")
    low, high = min(0, IMAGES.min()), IMAGES.max()
    assert zero.dtype == np.uint8
    assert scale == pytest.approx((high - low) / 255, rel=1e-3)
    assert zero == round(-low / ((high - low) / 255))
    stored = constants["weights_quantized"]
    assert stored.dtype == np.int8
    assert np.abs(stored.astype(int)).max(axis=(1, 2, 3)).tolist() == [64] * CHANNELS
    assert constants["weights_scale"] == pytest.approx(
        np.abs(WEIGHTS).max(axis=(1, 2, 3)) / 64, rel=1e-3
    )


def test_int8_for_a_cpu_does_not_care_about_fp16() -> None:
    to_u8s8(segment(1e6 * WEIGHTS), IMAGES)


@pytest.mark.int8
def test_a_dead_channel_has_a_scale_above_zero() -> None:
    weights = WEIGHTS.copy()
    weights[1] = 0
    weights[2] = 1e-9
    model = to_int8(segment(weights), IMAGES)
    scale, _ = quantised(model, "weights")
    assert (scale > 0).all()
    assert np.isfinite(Chain([model]).logits(IMAGES)).all()


@pytest.mark.int8
def test_a_segment_is_calibrated_on_what_the_quantised_one_before_hands_over() -> None:
    second = segment(RNG.normal(0, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32), 2)
    one, two = lower_segments([segment(), second], FOR_TENSORRT["int8"], IMAGES)
    scale, _ = quantised(two, "features_1")
    reaches = np.abs(run_model(one, IMAGES).astype(np.float32)).max() / 127
    would_reach = np.abs(run_model(segment(), IMAGES)).max() / 127
    assert scale == pytest.approx(reaches, rel=5e-4)
    assert scale != pytest.approx(would_reach, rel=5e-4)


@pytest.mark.parametrize(
    "convert", [to_fp16, pytest.param(to_int8, marks=pytest.mark.int8), to_u8s8]
)
def test_the_same_images_give_the_same_bytes_and_no_temporary_file_stays(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = segment()
    assert convert(model, IMAGES).data == convert(model, IMAGES).data
    if convert is not to_u8s8:
        with pytest.raises(ExportError):
            convert(segment(1e4 * WEIGHTS), IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_an_onnxruntime_that_quantises_fp16_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.29.4")
    with pytest.raises(EngineError, match=r"onnxruntime 1.29.4 .*pip install 'onnxruntime>=1.30'"):
        to_int8(segment(), IMAGES)
