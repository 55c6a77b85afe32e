"""Preprocessing as an ONNX graph: from a raw frame of one size to the network's input, on the GPU.

It computes what `mate_edge.images.crop` and `normalize` compute, to the bit. Pillow's antialiased
resize is separable: a product with one constant matrix along each side of the frame, rounded to 8
bits after each. The centre crop keeps the rows of those matrices that it needs, and the frame is
cut to the pixels that those rows read. What is left is square, so either order of the two products
costs the same, and that of `crop` (across, then down) rounds as it does.

Pillow sums integers: pixels times weights of 22 bits. One product in float32 would differ by a grey
level wherever such a sum lies near a half, which for some sizes is one pixel in 70, and twice that
is two levels. So each matrix is the sum of two, whose entries have 11 bits: all products and sums
are whole numbers below 2 ** 24, exact in float32, in any order, and also on tensor cores in TF32,
which TensorRT takes where it is faster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import UsageError
from mate_edge.images import Preprocessing, crop_start, scale_and_shift, scaled_size

if TYPE_CHECKING:
    from onnx import NodeProto

INPUT, OUTPUT = "frame", "images"
OPSET, IR_VERSION = 18, 8
GRAPH = 1
"""Raised with every change of what the graph computes: an engine of another one is not used."""
MAX_SIDE = 16384
LUMA = (19595.0, 38470.0, 7471.0)
"""Red, green and blue in 1/65536, Pillow's `L24` (libImaging/Convert.c): exact in float32."""
WEIGHT_BITS = 22
EXACT_BITS = 11
"""Of a whole number, in TF32 and in FP16."""


@dataclass(frozen=True)
class Split:
    """A matrix of weights as `high + unit * low`; sums with grey levels are exact in float32.

    Attributes:
        high: float32, multiples of `unit` that sum to about 1 in each row.
        low: float32 below 1, what is left, in units.
        unit: a power of two.
    """

    high: NDArray[np.float32]
    low: NDArray[np.float32]
    unit: np.float32


@dataclass(frozen=True)
class Axis:
    """How one side of a frame is scaled and cut.

    Attributes:
        start: the first pixel of the frame that is read.
        stop: the pixel after the last.
        weights: [size, stop - start]; None when nothing is scaled, only cut.
    """

    start: int
    stop: int
    weights: Split | None


def parse_frame(text: str) -> tuple[int, int]:
    """Return width and height of a frame from `1280x720`.

    Raises:
        UsageError: another form, or a side above `MAX_SIDE`.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text.strip().lower(), re.ASCII)
    if match is None:
        raise UsageError(f"--frame takes WIDTHxHEIGHT in pixels, such as 1280x720, not {text!r}")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > MAX_SIDE:
        raise UsageError(f"--frame {text} is too large: at most {MAX_SIDE} pixels a side")
    return width, height


def resize_weights(length: int, scaled: int, first: int, count: int) -> NDArray[np.int64]:
    """Return rows of the matrix [scaled, length] of Pillow's antialiased bilinear resize.

    The entries are whole numbers; each row's sum is 2 ** 22, or off by a few. Source:
    `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's libImaging/Resample.c: a triangle
    as wide as the scale (one pixel at least) around each new pixel's centre.

    Args:
        length: pixels before.
        scaled: pixels after.
        first: the first row that is wanted.
        count: how many rows are.
    """
    scale = length / scaled
    support = max(scale, 1.0)
    centers = (np.arange(first, first + count)[:, None] + 0.5) * scale
    pixels = np.arange(length)
    begin = np.trunc(np.maximum(centers - support + 0.5, 0))
    end = np.trunc(centers + support + 0.5)
    triangle = np.maximum(1 - np.abs((pixels - centers + 0.5) * (1 / support)), 0)
    weights = np.where((begin <= pixels) & (pixels < end), triangle, 0)
    weights /= weights.cumsum(axis=1)[:, -1:]  # one after another, as Pillow adds them
    whole: NDArray[np.int64] = np.floor(weights * 2**WEIGHT_BITS + 0.5).astype(np.int64)
    return whole


def split_weights(weights: NDArray[np.int64]) -> Split:
    """Return weights of 22 bits as the sum of two matrices of 11 bits; see `Split`."""
    shift = max(int(weights.max() - 1).bit_length() - EXACT_BITS, WEIGHT_BITS + 8 - 24)
    return Split(
        high=((weights >> shift) * 2.0 ** (shift - WEIGHT_BITS)).astype(np.float32),
        low=((weights & (2**shift - 1)) * 2.0**-shift).astype(np.float32),
        unit=np.float32(2.0 ** (shift - WEIGHT_BITS)),
    )


def scale_and_cut(length: int, scaled: int, size: int) -> Axis:
    """Return how a side of `length` pixels becomes the centre `size` of `scaled` pixels."""
    first = crop_start(scaled, size)
    if length == scaled:
        return Axis(first, first + size, None)
    weights = resize_weights(length, scaled, first, size)
    used = np.flatnonzero(weights.any(axis=0))
    start, stop = int(used[0]), int(used[-1]) + 1
    return Axis(start, stop, split_weights(weights[:, start:stop]))


def preprocess_model(
    preprocessing: Preprocessing, width: int, height: int, color: Literal["rgb", "bgr"] = "rgb"
) -> bytes:
    """Return the ONNX graph that preprocesses frames of one size.

    Its input `frame` is uint8 [height, width, 3], its output `images` float32
    [1, channels, size, size]. It uses only operators that TensorRT 10.3 reads.

    Args:
        preprocessing: of the bundle.
        width: of the frame, pixels.
        height: of the frame, pixels.
        color: the channel order of the frame.

    Raises:
        UsageError: the Python package `onnx` is missing.
        ImageError: the frame is so long and thin that scaled it would exceed `MAX_PIXELS`.
    """
    onnx = _import_onnx()
    scaled = scaled_size(width, height, preprocessing, f"a frame of {width}x{height}")
    size = preprocessing.size
    across, down = (
        scale_and_cut(*sides, size) for sides in zip((width, height), scaled, strict=True)
    )
    graph = _Graph(onnx)
    # TensorRT takes uint8 at the network's border alone, to be cast at once
    pixels = graph.add("Cast", INPUT, to=onnx.TensorProto.FLOAT)
    cut = np.array([[down.start, across.start], [down.stop, across.stop]], np.int64)
    if (cut != [[0, 0], [height, width]]).any():
        pixels = graph.add("Slice", pixels, *cut, np.array([0, 1], np.int64))
    planes = graph.add("Transpose", pixels, perm=[2, 0, 1])
    order = (0, 1, 2) if color == "rgb" else (2, 1, 0)
    if preprocessing.channels == 1:
        luma = np.array([LUMA[c] for c in order], np.float32)[:, None, None]
        gray = graph.add("ReduceSum", graph.add("Mul", planes, luma), np.array([0], np.int64))
        planes = graph.round(graph.add("Mul", gray, np.float32(2**-16)))
    if across.weights is not None:  # the order in `crop`
        planes = graph.scale(planes, across.weights, "across")
    if down.weights is not None:
        planes = graph.scale(planes, down.weights, "down")
    if preprocessing.channels == 3 and color == "bgr":
        planes = graph.add("Gather", planes, np.array(order, np.int64), axis=0)
    scale, shift = scale_and_shift(preprocessing.mean, preprocessing.std)
    normal = graph.add("Sub", graph.add("Mul", planes, scale), shift)
    shape = (1, preprocessing.channels, size, size)
    graph.add("Reshape", normal, np.array(shape, np.int64), output=OUTPUT)
    return graph.to_bytes((height, width, 3), shape)


class _Graph:
    """A chain of ONNX nodes in the making."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[NodeProto] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        """Add a node; an input is a tensor's name or an array. Return its output's name."""
        names = [given if isinstance(given, str) else self._constant(given) for given in inputs]
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, names, [output], **attributes))
        return output

    def round(self, values: str) -> str:
        """Round to whole grey levels, halves up. No weight is negative: nothing needs clipping."""
        return self.add("Floor", self.add("Add", values, np.float32(0.5)))

    def scale(self, planes: str, weights: Split, along: Literal["across", "down"]) -> str:
        """Scale planes [c, h, w] along one side as Pillow does, to whole grey levels.

        The low product's fraction cannot change the rounded sum, whose high part is whole units.
        """

        def product(matrix: NDArray[np.float32]) -> str:
            if along == "across":
                return self.add("MatMul", planes, np.ascontiguousarray(matrix.T))
            return self.add("MatMul", matrix, planes)

        total = product(weights.high)
        if weights.low.any():
            units = self.add("Floor", product(weights.low))
            total = self.add("Add", total, self.add("Mul", units, weights.unit))
        return self.round(total)

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def to_bytes(self, frame: tuple[int, ...], images: tuple[int, ...]) -> bytes:
        """Return the checked model, from a frame of that shape to images of that shape."""
        onnx, helper = self.onnx, self.onnx.helper
        graph = helper.make_graph(
            self.nodes,
            "preprocess",
            [helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, frame)],
            [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, images)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def _import_onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError:
        raise UsageError(
            "preprocessing on the GPU needs the Python package onnx: pip install onnx"
        ) from None
    return onnx
