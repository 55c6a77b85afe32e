"""The allow-list of TensorRT 10.3: what an NVIDIA bundle may not hold is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mate_edge.bundle import Tensor
from mate_edge.errors import ExportError
from mate_edge.export.models import Model, Models
from mate_edge.export.operators import RULES, TENSORRT, check_operators
from mate_edge.images import Preprocessing
from mate_edge.runtime.frames import preprocess_model

SHAPE = (2, 8, 8)


def model_of(
    *nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, rank: int = 4
) -> Model:
    """Nodes that lead from `images` to `logits`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    tensor = Tensor(name="images", shape=SHAPE, dtype="float32")
    return Model("segment 2", model.SerializeToString(), tensor, (tensor,))


def one(kind: str, **attributes: Any) -> Model:
    return model_of(helper.make_node(kind, ["images"], ["logits"], "the_node", **attributes))


def rounded(scale: float = 0.1, zero: np.generic = np.int8(0)) -> Model:  # noqa: B008
    """The images, quantised and back."""
    return model_of(
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "the_node"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], "back"),
        constants={"s": np.array(scale, np.float32), "z": np.array(zero)},
    )


def test_what_is_exported_is_allowed(fp32_models: Models) -> None:
    for model in fp32_models.all:
        check_operators(model, TENSORRT)


def test_the_preprocessing_of_frames_is_allowed() -> None:
    pre = Preprocessing(channels=1, size=8, resize=10, mean=(0.5,), std=(0.2,))
    data = preprocess_model(pre, 40, 30, "bgr")
    tensor = Tensor(name="frame", shape=(40, 3), dtype="float32")
    check_operators(Model("the preprocessing", data, tensor, (tensor,)), TENSORRT)


def test_an_error_names_segment_node_and_operator_and_says_what_to_do() -> None:
    with pytest.raises(ExportError) as raised:
        check_operators(one("Mish"), TENSORRT)
    assert str(raised.value) == (
        "segment 2: TensorRT 10.3 does not take the node 'the_node', Mish: it is not among its "
        "operators. Choose another --arch, or replace this layer and train again"
    )


def test_an_operator_of_another_domain_is_refused_by_its_full_name() -> None:
    node = helper.make_node("Gelu", ["images"], ["logits"], "n", domain="com.microsoft")
    data = onnx.load_from_string(one("Relu").data)
    data.graph.node[0].CopyFrom(node)
    model = Model("segment 1", data.SerializeToString(), one("Relu").input, ())
    with pytest.raises(ExportError, match=r"'n', com\.microsoft\.Gelu"):
        check_operators(model, TENSORRT)


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_a_segment_decides_nothing_by_itself(kind: str) -> None:
    assert kind not in TENSORRT


def test_every_rule_is_about_an_operator_of_the_table() -> None:
    assert set(RULES) <= TENSORRT


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (rounded(zero=np.int8(3)), "QuantizeLinear: it has a zero point that is not zero"),
        (rounded(zero=np.uint8(0)), "a zero point of uint8, not of int8"),
        (rounded(scale=0.0), "needs a constant scale above zero"),
        (one("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), "AveragePool: it is dilated"),
        (one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "MaxPool: it is dilated"),
        (
            model_of(
                helper.make_node("MaxPool", ["images"], ["logits", "where"], kernel_shape=[2, 2])
            ),
            "MaxPool: it returns indices",
        ),
        (
            model_of(
                helper.make_node("Resize", ["images", "", "f"], ["logits"], mode="cubic"),
                constants={"f": np.array([1, 1, 2, 2], np.float32)},
            ),
            "Resize: it interpolates cubic",
        ),
        (
            model_of(
                helper.make_node(
                    "Resize", ["images", "", "f"], ["logits"], mode="linear", antialias=1
                ),
                constants={"f": np.array([1, 1, 0.5, 0.5], np.float32)},
            ),
            "Resize: it smooths",
        ),
    ],
)
def test_a_node_outside_an_operators_restrictions_is_refused(model: Model, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        check_operators(model, TENSORRT)


@pytest.mark.parametrize(
    "model",
    [
        rounded(),
        one("MaxPool", kernel_shape=[2, 2], dilations=[1, 1]),
        one("AveragePool", kernel_shape=[2, 2]),
    ],
)
def test_a_node_within_its_restrictions_passes(model: Model) -> None:
    check_operators(model, TENSORRT)


def test_the_parser_refuses_an_asymmetric_zero_point_too(
    compile_for_rtx: Callable[[Model], list[str]],
) -> None:
    assert compile_for_rtx(rounded()) == []
    errors = compile_for_rtx(rounded(zero=np.int8(3)))
    assert any("the_node" in error and "zero point" in error.lower() for error in errors), errors


def test_the_parser_refuses_an_operator_that_no_version_has(
    compile_for_rtx: Callable[[Model], list[str]],
) -> None:
    det = model_of(helper.make_node("Det", ["images"], ["logits"], "the_node"), rank=2)
    errors = compile_for_rtx(det)
    assert any("the_node" in error for error in errors), errors
    assert any("Det" in error for error in errors), errors


def test_the_list_is_stricter_than_the_parser_at_hand(
    compile_for_rtx: Callable[[Model], list[str]],
) -> None:
    assert compile_for_rtx(one("Mish")) == []
