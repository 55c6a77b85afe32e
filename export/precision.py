"""Precision in the ONNX itself: every engine runs what the file says, layer by layer.

TensorRT's networks are strongly typed, since the flags and calibrators that once lowered the
precision while an engine was built are gone from TensorRT 11. ONNX Runtime's int8 kernels on a CPU
want other types than TensorRT's. So each kind of engine has a table; to add a precision: a function
and a line there.

The images go in as fp32 and the logits come out as fp32; what a segment hands over is fp16 on a GPU
and fp32 on a CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import MinMaxCalibrater
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from mate_edge.bundle import Tensor
from mate_edge.errors import ExportError
from mate_edge.export.models import BATCH, Model, Models, run_model
from mate_edge.export.segments import IMAGES, strip
from mate_edge.runtime.engines.onnxruntime import check_rounding

CALIBRATION_IMAGES = 256
"""Training images whose activations give the scales of int8 and are held against fp16's range."""

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 2
"""How far below fp16's largest number activations must stay: other images may lead further."""

ROUNDS_TO_ZERO = float(np.finfo(np.float16).smallest_subnormal) / 2
INT8_OPSET = 19
"""From this opset on QuantizeLinear takes fp16."""

WEIGHTED = ["Conv", "Gemm", "MatMul"]
"""What int8 is for. Their inputs and weights are quantised, their outputs are not: TensorRT fuses
the activation behind them in, and logits of int8 would tie. On Fashion-MNIST (resnet8) quantised
outputs make the error of the logits four times as large."""


@dataclass(frozen=True)
class Conversion:
    """How a model in fp32 becomes one of a lower precision.

    Attributes:
        convert: given the model and what goes into it.
        as_written: whether ONNX Runtime must compute the result node by node to tell what the
            engine will; else it may fuse nodes as it does on the device.
    """

    convert: Callable[[Model, NDArray[np.generic]], Model]
    as_written: bool


def lower(models: Models, conversion: Conversion, images: NDArray[np.float32]) -> Models:
    """Return the same network in another precision.

    Each segment is calibrated on what really reaches it: on what the segment before, already
    lowered, makes of the images.

    Args:
        models: in fp32.
        conversion: to the precision wanted.
        images: float32 [n, C, H, W], preprocessed training images.

    Raises:
        ExportError: a weight or an activation does not fit into fp16.
        EngineError: this ONNX Runtime is too old to quantise fp16.
    """
    segments = lower_segments(models.segments, conversion, images)
    return Models(tuple(segments), conversion.convert(models.unsplit, images))


def lower_segments(
    models: Sequence[Model], conversion: Conversion, images: NDArray[np.float32]
) -> list[Model]:
    """Lower the segments alone; see `lower`."""
    inputs: NDArray[np.generic] = images
    segments = []
    for model in models:
        segments.append(conversion.convert(model, inputs))
        inputs = run_model(segments[-1], inputs, conversion.as_written)
    return segments


def to_fp16(model: Model, inputs: NDArray[np.generic]) -> Model:
    """Convert weights and activations to fp16, but for the images and the logits."""
    with _on_disk(_prepare_weights(model)) as path:
        _check_range(model, path, inputs)
        return _to_fp16(model, onnx.load(path))


def to_int8(model: Model, inputs: NDArray[np.generic]) -> Model:
    """Quantise convolutions and matrix products with symmetric scales; the rest becomes fp16.

    Depth-wise convolutions, which are cheap, stay fp16: TensorRT has no int8 kernels for some of
    them (NVIDIA/TensorRT issues 3385 and 4060, on an Orin).

    The scale of a weight is its output channel's, that of an activation its tensor's: the largest
    value that the inputs lead to is 127.
    """
    check_rounding(f"{model.name} in int8")
    with _on_disk(_prepare_weights(model)) as path:
        _check_range(model, path, inputs)
        proto = _quantise(
            path,
            _Batches(model.input.name, inputs),
            nodes_to_exclude=_depthwise(path),
            op_types_to_quantize=WEIGHTED,
            activation_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
                "OpTypesToExcludeOutputQuantization": WEIGHTED,
            },
        )
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset < INT8_OPSET:
        raise ExportError(
            f"int8 needs ONNX opset {INT8_OPSET} or newer, and torch wrote {opset}: upgrade torch"
        )
    return _to_fp16(model, proto)


def _depthwise(path: Path) -> list[str]:
    """Return the names of the convolutions that see one channel each."""
    graph = onnx.load(path).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and shapes.get(node.input[1], (0, 0))[1] == 1
        and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]


def to_u8s8(model: Model, inputs: NDArray[np.generic]) -> Model:
    """Quantise all that ONNX Runtime has int8 kernels for; borders and logits stay fp32.

    Activations are uint8 with a zero point, weights int8 with a scale for each output channel. A
    weight takes 7 bits of the 8 (`reduce_range`): without VNNI an x86 CPU adds two products of
    uint8 and int8 in 16 bits, where those of full range overflow without a word. Signed activations
    would leave a speed-up of 1.2 of 2.2 (resnet18, AVX2), and sums in fp32 between the convolutions
    one of 1.0 of 1.5 (mobilenet_v2).
    """
    with _on_disk(onnx.load_from_string(model.data)) as path:
        proto = _quantise(
            path,
            _Batches(model.input.name, inputs),
            activation_type=QuantType.QUInt8,
            reduce_range=True,
            extra_options={
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return replace(model, data=proto.SerializeToString())


FOR_TENSORRT: dict[str, Conversion] = {
    "fp16": Conversion(to_fp16, as_written=True),
    "int8": Conversion(to_int8, as_written=True),
}
FOR_ONNX_RUNTIME: dict[str, Conversion] = {"int8": Conversion(to_u8s8, as_written=False)}
"""For the CPU."""


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the inputs of a model as fp32, a batch at a time."""

    def __init__(self, name: str, inputs: NDArray[np.generic]) -> None:
        self._batches = (
            {name: inputs[start : start + BATCH].astype(np.float32)}
            for start in range(0, len(inputs), BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """See `CalibrationDataReader`."""
        return next(self._batches, None)


def _quantise(path: Path, batches: _Batches, **options: Any) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear into the model at `path`, calibrated on `batches`."""
    quantised = path.with_name("quantised.onnx")
    quantize_static(
        path,
        quantised,
        batches,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        **options,
    )
    return onnx.load(quantised)


@contextmanager
def _on_disk(proto: onnx.ModelProto) -> Iterator[Path]:
    """Yield the path of a model, in a folder that vanishes afterwards."""
    with tempfile.TemporaryDirectory(prefix="mate-edge-") as folder:
        path = Path(folder) / "model.onnx"
        add_pre_process_metadata(proto)  # else the quantiser warns: BatchNorm is folded already
        onnx.save(proto, path)
        yield path


def _check_range(model: Model, path: Path, inputs: NDArray[np.generic]) -> None:
    """Refuse activations near or beyond fp16's largest number.

    ONNX Runtime on a CPU computes fp16 nodes in fp32 and would not show it.
    """
    calibrater = MinMaxCalibrater(
        path, augmented_model_path=str(path.with_name("ranges.onnx")), symmetric=True
    )
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collect_data(_Batches(model.input.name, inputs))
    ranges = calibrater.compute_data()
    for name in (name for node in calibrater.model.graph.node for name in node.output):
        largest = float(np.max(ranges[name].range_value[1])) if name in ranges else 0.0
        if not largest <= LARGEST / HEADROOM:
            raise ExportError(
                f"{model.name}: the activation {name!r} reaches {largest:.3g} on training images, "
                f"too much for fp16, whose largest number is {LARGEST:g}: choose --precision fp32, "
                "or train with a normalisation behind this layer"
            )


def _to_fp16(model: Model, proto: onnx.ModelProto) -> Model:
    del proto.graph.value_info[:]  # the converter infers them anew
    kept = {IMAGES, model.outputs[-1].name}
    proto = convert_float_to_float16(proto, keep_io_types=list(kept), op_block_list=[])
    del proto.graph.value_info[:]
    OnnxModel.graph_topological_sort(proto.graph)
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)

    def retyped(tensor: Tensor) -> Tensor:
        dtype = "float32" if tensor.name in kept else "float16"
        return msgspec.structs.replace(tensor, dtype=dtype)

    return replace(
        model,
        data=proto.SerializeToString(),
        input=retyped(model.input),
        outputs=tuple(retyped(tensor) for tensor in model.outputs),
    )


def _prepare_weights(model: Model) -> onnx.ModelProto:
    """Refuse weights beyond fp16's largest number, and round to zero what is nearer to it.

    The converter would cut the former off and raise the latter to the smallest number, which is
    right for the bounds of a Clip (no activation lies beyond them) and for a scale, never zero.
    """
    proto = onnx.load_from_string(model.data)
    graph = proto.graph
    bounds = {bound for node in graph.node if node.op_type == "Clip" for bound in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in bounds:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0))
        if not largest <= LARGEST:
            raise ExportError(
                f"{model.name}: the weight {tensor.name!r} reaches {largest:.3g}, beyond fp16's "
                f"largest number {LARGEST:g}: choose --precision fp32, or train again"
            )
        rounded = np.where(np.abs(values) <= ROUNDS_TO_ZERO, np.float32(0), values)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return proto
