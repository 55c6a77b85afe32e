"""Preprocessing on the GPU: the ONNX graph computes what Pillow and numpy compute."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mate_edge.errors import ImageError, UsageError
from mate_edge.images import Preprocessing, crop, normalize
from mate_edge.runtime.frames import (
    parse_frame,
    preprocess_model,
    resize_weights,
    split_weights,
)


def rgb(size: int, resize: int) -> Preprocessing:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(channels=3, size=size, resize=resize, mean=mean, std=std)


def gray(size: int, resize: int) -> Preprocessing:
    return Preprocessing(channels=1, size=size, resize=resize, mean=(0.286,), std=(0.353,))


def run_model(model: bytes, frame: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (images,) = session.run(["images"], {"frame": frame})
    return images


def differences(frame: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return by how many grey levels the graph and Pillow differ, [size, size, channels]."""
    height, width, _ = frame.shape
    images = run_model(preprocess_model(preprocessing, width, height), frame)
    assert images.dtype == np.float32
    assert images.shape == (1, preprocessing.channels, *2 * (preprocessing.size,))
    expected = crop(Image.fromarray(frame), preprocessing)
    np.testing.assert_allclose(images, normalize(expected[None], preprocessing), atol=0.05)
    levels = (images[0].transpose(1, 2, 0) * preprocessing.std + preprocessing.mean) * 255
    return np.abs(levels - expected)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Two real photographs, 640 x 427."""
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("onnx")
    return [Image.fromarray(photo) for photo in datasets.load_sample_images().images]


FRAMES = {
    "wide": (1280, 720),
    "as it is": (640, 427),
    "portrait": (480, 640),
    "square": (500, 500),
    "the scaled size": (384, 256),
    "the network's size": (224, 224),
    "smaller": (100, 75),
    "much smaller": (20, 33),
    "odd": (511, 301),
    "wide and low": (901, 64),
    "almost the scaled size": (257, 255),
    "4K": (3840, 2160),
}


@pytest.mark.parametrize("size", FRAMES.values(), ids=FRAMES)
def test_a_photo_becomes_what_pillow_makes_of_it(
    photos: list[Image.Image], size: tuple[int, int]
) -> None:
    for photo in photos:
        frame = np.asarray(photo.resize(size, Image.Resampling.LANCZOS))
        for preprocessing in (rgb(224, 256), gray(28, 28), rgb(64, 73)):
            assert differences(frame, preprocessing).max() < 1e-3


@settings(max_examples=60)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(1, 40),
    margin=st.integers(0, 20),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
@example(256, 256, 224, 0, 3, 0)  # a scale of 8/7: many sums lie at a half
@example(3, 8, 1, 0, 1, 3)  # Pillow 13 alone would scale it down first
@example(1280, 40, 32, 0, 3, 0)
@example(1, 1, 8, 3, 1, 0)
def test_noise_of_any_size_becomes_what_pillow_makes_of_it(
    width: int, height: int, size: int, margin: int, channels: int, seed: int
) -> None:
    pytest.importorskip("onnx")
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    make = rgb if channels == 3 else gray
    assert differences(frame, make(size, size + margin)).max() < 1e-3


@pytest.mark.parametrize("preprocessing", [rgb(32, 36), gray(32, 36)], ids=["rgb", "gray"])
def test_a_bgr_frame_gives_what_its_rgb_twin_gives(preprocessing: Preprocessing) -> None:
    pytest.importorskip("onnx")
    frame = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    straight = run_model(preprocess_model(preprocessing, 71, 50), frame)
    turned = run_model(preprocess_model(preprocessing, 71, 50, "bgr"), frame[..., ::-1].copy())
    np.testing.assert_array_equal(straight, turned)
    assert not np.array_equal(
        straight, run_model(preprocess_model(preprocessing, 71, 50, "bgr"), frame)
    )


@settings(max_examples=50)
@given(scaled=st.integers(1, 64), scale=st.floats(0.02, 500))
@example(1, 500.0)
@example(10, 1.0)
def test_weights_are_exact_on_tensor_cores_and_sums_are_exact_in_float32(
    scaled: int, scale: float
) -> None:
    whole = resize_weights(max(1, int(scaled * scale)), scaled, 0, scaled)
    assert (whole >= 0).all()
    assert np.abs(whole.sum(axis=1) - 2**22).max() <= np.count_nonzero(whole, axis=1).max()
    split = split_weights(whole)
    assert np.array_equal(split.high + np.float64(split.unit) * split.low, whole / 2**22)
    for matrix in (split.high, split.low):
        behind_the_point = matrix.view(np.uint32) & 0x7FFFFF
        assert not (behind_the_point & 0x1FFF).any(), "TF32 keeps the upper 10 bits of 23"
    low_steps = split.low * (split.unit * 2**22)
    for steps in (split.high / split.unit, low_steps):
        assert np.array_equal(steps, np.rint(steps)), "whole numbers"
        assert 255 * steps.sum(axis=1).max() < 2**24


def test_the_graph_keeps_to_operators_and_opset_of_tensorrt_10_3() -> None:
    onnx = pytest.importorskip("onnx")
    in_10_3 = {
        *("Add", "Cast", "Floor", "Gather", "MatMul", "Mul", "ReduceSum"),
        *("Reshape", "Slice", "Sub", "Transpose"),
    }
    for preprocessing in (rgb(32, 36), gray(32, 32)):
        for color in ("rgb", "bgr"):
            model = onnx.load_from_string(preprocess_model(preprocessing, 71, 50, color))
            assert {node.op_type for node in model.graph.node} <= in_10_3
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
            assert model.graph.node[0].op_type == "Cast"
            assert [given.name for given in model.graph.input] == ["frame"]


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("preprocessing", [rgb(224, 256), gray(28, 28)], ids=["rgb", "gray"])
def test_tensorrt_compiles_the_graph(preprocessing: Preprocessing, color: str) -> None:
    pytest.importorskip("onnx")
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(preprocess_model(preprocessing, 1280, 720, color))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    frame = network.get_input(0)
    assert (frame.dtype, tuple(frame.shape)) == (trt.uint8, (720, 1280, 3))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_without_the_package_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match="pip install onnx"):
        preprocess_model(gray(28, 28), 64, 48)


def test_a_frame_that_is_too_long_and_thin_is_a_clear_error() -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ImageError, match="frame of 16000x2 is too long and thin"):
        preprocess_model(rgb(224, 256), 16000, 2)


def test_a_frame_is_given_as_width_x_height() -> None:
    assert parse_frame("1280x720") == (1280, 720)
    assert parse_frame("640X480") == (640, 480)


@pytest.mark.parametrize("text", ["", "1280", "0x720", "-1x5", "1280x", "1280*720", "٣x٤", "1.5x2"])
def test_a_frame_in_another_form_is_a_clear_error(text: str) -> None:
    with pytest.raises(UsageError, match="such as 1280x720, not"):
        parse_frame(text)


def test_a_frame_larger_than_any_camera_s_is_refused() -> None:
    with pytest.raises(UsageError, match="99999x1 is too large"):
        parse_frame("99999x1")
