"""Which ONNX nodes TensorRT 10.3's parser takes: the floor that every NVIDIA bundle keeps to.

The parsers at hand are newer than the oldest device's, so what they accept proves nothing. The
table is put together from https://github.com/onnx/onnx-tensorrt: `docs/operators.md` of 8.5, what
`docs/Changelog.md` adds up to 10.3 (LayerNormalization, GroupNormalization and IsInf in 8.6,
Hardmax in 9.2, DeformConv in 10.1) and Gelu, which `onnxOpImporters.cpp` of 10.2 imports. What
could not be found there, such as Mish and CastLike of later tables, is left out. The opset range,
9 to 20, is the one that `operators.md` named from 10.0 to 10.8.

`If`, `Loop` and `Scan` are left out on purpose: with them a segment cannot be captured as a CUDA
graph, and a segment always runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mate_edge.errors import ExportError
from mate_edge.export.models import Model

_TENSORRT = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
    DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU Hardmax HardSigmoid
    HardSwish Identity ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax LpNormalization LpPool LRN LSTM MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad
    ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
    RNN RoiAlign Round ScaledTanh Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
    Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
TENSORRT = frozenset(_TENSORRT.split())

Constants = Mapping[str, NDArray[Any]]
Rule = Callable[[onnx.NodeProto, Constants], str | None]
"""Says what TensorRT 10.3 does not take of a node, given the graph's constants, or None."""


def check_operators(model: Model, operators: frozenset[str]) -> None:
    """Hold every node against the table and the rules.

    Raises:
        ExportError: with the model, the node and its operator.
    """
    graph = onnx.load_from_string(model.data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if kind not in operators:
            problem = "is not among its operators"
        elif (found := RULES.get(kind, _anything)(node, constants)) is not None:
            problem = found
        else:
            continue
        raise ExportError(
            f"{model.name}: TensorRT 10.3 does not take the node {node.name!r}, {kind}: it "
            f"{problem}. Choose another --arch, or replace this layer and train again"
        )


def _anything(node: onnx.NodeProto, constants: Constants) -> None:
    return None


def _quantisation(node: onnx.NodeProto, constants: Constants) -> str | None:
    """Only symmetric int8 with constant, positive scales."""
    scale = constants.get(node.input[1])
    if scale is None or not (scale > 0).all():
        return "needs a constant scale above zero"
    if len(node.input) < 3 or node.input[2] not in constants:
        return "needs a constant zero point of int8"
    zero = constants[node.input[2]]
    if zero.dtype != np.int8:
        return f"has a zero point of {zero.dtype}, not of int8"
    return "has a zero point that is not zero" if zero.any() else None


def _pooling(node: onnx.NodeProto, constants: Constants) -> str | None:
    if any(node.output[1:]):
        return "returns indices"
    dilations = _attribute(node, "dilations", [])
    return "is dilated" if any(step != 1 for step in dilations) else None


def _resize(node: onnx.NodeProto, constants: Constants) -> str | None:
    if _attribute(node, "antialias", 0):
        return "smooths (antialias)"
    mode = _attribute(node, "mode", b"nearest").decode()
    return None if mode in ("nearest", "linear") else f"interpolates {mode}"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


RULES: dict[str, Rule] = {
    "QuantizeLinear": _quantisation,
    "DequantizeLinear": _quantisation,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "Resize": _resize,
}
"""The restrictions of the table that an image classifier can meet."""
