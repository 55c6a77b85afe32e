"""Decoding and preprocessing: any image in, the network's numbers out."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mate_edge.errors import ImageError
from mate_edge.images import (
    MAX_IMAGE_BYTES,
    Preprocessing,
    crop,
    decode,
    from_array,
    normalize,
    standardize,
    upright_size,
)

RGB = Preprocessing(channels=3, size=8, resize=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
GRAY = Preprocessing(channels=1, size=8, resize=8, mean=(0.5,), std=(0.25,))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", width: int = 12, height: int = 10) -> Image.Image:
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_listed_format_is_decoded(kind: str) -> None:
    image = decode(encode(gradient(), kind))
    assert image.size == (12, 10)
    assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(gradient(), int)).max() < 60


def test_sixteen_bit_gray_keeps_its_upper_eight_bits() -> None:
    values = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
    assert np.array_equal(decode(encode(Image.fromarray(values))), values >> 8)
    assert np.array_equal(decode(encode(Image.fromarray(values), "TIFF")), values >> 8)


def test_cmyk_is_shown_as_rgb() -> None:
    red = Image.new("CMYK", (9, 9), (0, 255, 255, 0))
    shown = np.asarray(decode(encode(red, "JPEG", quality=100)), int)
    assert np.abs(shown - [255, 0, 0]).max() < 10


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (3, 3), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert np.asarray(decode(encode(image)))[0, 0].tolist() == [10, 200, 30]


def test_one_bit_images_are_black_and_white() -> None:
    image = decode(encode(Image.fromarray(np.array([[True, False]]))))
    assert np.asarray(image).tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 0))
    image.paste((10, 10, 10, 255), (0, 0, 2, 4))
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([0, 0, 0, 10, 10, 10])
        palette.paste(1, (0, 0, 2, 4))
        data = encode(palette, transparency=0)
    else:
        data = encode(image.convert(mode))
    shown = np.asarray(decode(data))
    assert (shown[:, :2] == 10).all()
    assert (shown[:, 2:] == 255).all()


def test_a_tall_transparent_image_is_composed_like_a_small_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 3, 4), np.uint8)
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    assert np.array_equal(np.asarray(decode(encode(image))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exif_rotation_is_applied(orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(mode), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    shown = decode(data)
    assert np.array_equal(shown, expected.convert(shown.mode))


def test_bytes_and_paths_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(gradient(), "JPEG"))
    assert np.array_equal(decode(path), decode(path.read_bytes()))


def damaged_images() -> dict[str, bytes]:
    whole = encode(gradient(width=64, height=64))
    return {
        "empty": b"",
        "text": b"this is not an image, whatever its name says",
        "truncated png": whole[: len(whole) // 2],
        "truncated jpeg": encode(gradient(width=640, height=640), "JPEG")[:3000],
        "only a header": whole[:20],
        "flipped bytes": whole[:60] + bytes(b ^ 0xFF for b in whole[60:]),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "floats": encode(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"),
        "32 bits": encode(Image.fromarray(np.full((3, 3), 1 << 20, np.int32)), "TIFF"),
    }


@pytest.mark.parametrize("kind", damaged_images())
def test_a_damaged_image_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(damaged_images()[kind])
    with pytest.raises(ImageError, match=r"bad\.png"):
        decode(path)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot read"):
        decode(tmp_path)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="pixels"):
        decode(bomb)


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_arbitrary_bytes_never_raise_anything_but_an_image_error(data: bytes, cut: int) -> None:
    for candidate in (data, encode(gradient())[:cut] + data):
        with contextlib.suppress(ImageError):
            decode(candidate)


@given(width=st.integers(1, 90), height=st.integers(1, 90), mode=st.sampled_from(["L", "RGB"]))
def test_crop_gives_the_network_its_size_whatever_the_image(
    width: int, height: int, mode: str
) -> None:
    for preprocessing in (RGB, GRAY):
        pixels = crop(
            Image.new(mode, (width, height), 77 if mode == "L" else (77,) * 3), preprocessing
        )
        assert pixels.shape == (8, 8, preprocessing.channels)
        assert pixels.dtype == np.uint8
        assert (pixels == 77).all()


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    assert np.array_equal(crop(Image.fromarray(pixels), GRAY)[..., 0], pixels)


def test_normalize_is_the_closed_form_in_channel_first_order() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    expected = ((pixels / 255 - RGB.mean) / RGB.std).transpose(0, 3, 1, 2)
    found = normalize(pixels, RGB)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    given_buffer = np.empty_like(found)
    assert normalize(pixels, RGB, given_buffer) is given_buffer
    assert np.array_equal(given_buffer, found)


def test_frames_are_taken_in_either_channel_order() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    assert np.array_equal(from_array(frame), frame)
    assert np.array_equal(from_array(frame[..., ::-1], "bgr"), frame)
    assert np.array_equal(from_array(frame[..., 0]), frame[..., 0])
    assert np.array_equal(from_array(frame[..., :1]), frame[..., 0])


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_a_frame_of_another_kind_is_a_clear_error(frame: np.ndarray) -> None:
    with pytest.raises(ImageError, match="a frame must"):
        from_array(frame)


def test_a_pil_image_is_taken_like_its_file_when_that_is_not_reduced() -> None:
    deep = Image.fromarray(np.array([[0, 0x1234], [0xFF00, 0xFFFF]], np.uint16))
    clear = Image.new("RGBA", (4, 4), (10, 10, 10, 0))
    for image in (deep, clear, gradient("CMYK"), gradient("L")):
        kind = "TIFF" if image.mode == "CMYK" else "PNG"
        assert np.array_equal(standardize(image), decode(encode(image, kind)))
    whole = encode(gradient(width=64, height=64))
    with pytest.raises(ImageError, match="damaged"):
        standardize(Image.open(io.BytesIO(whole[: len(whole) // 2])))


def test_a_file_without_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png is a pipe or a device"):
        decode(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="/dev/zero is a pipe or a device"):
        decode("/dev/zero")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(ImageError, match=r"huge\.png is larger than"):
        decode(tmp_path / "huge.png")


# a JPEG file larger than needed is decoded smaller


def waves(width: int, height: int) -> Image.Image:
    """A smooth picture, in which no two corners look alike."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [np.sin(3 * x + 5 * y), np.cos(7 * x * y), x * x - y]
    values = np.stack([127 + 100 * plane for plane in planes], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    gap=st.floats(1, 4),
    orientation=st.integers(1, 8),
)
def test_decoding_leaves_reducing_gap_times_the_pixels_that_are_needed(
    width: int, height: int, gap: float, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(waves(width, height), "JPEG", quality=95, exif=exif)
    wanted = msgspec.structs.replace(RGB, reducing_gap=gap)
    whole, reduced = decode(data), decode(data, preprocessing=wanted)
    fits = [by for by in (8, 4, 2) if width % by == height % by == 0]
    by = next((by for by in fits if min(width, height) >= by * gap * RGB.resize), 1)
    assert reduced.size == tuple(side // by for side in whole.size)
    if by == 1:
        assert np.array_equal(reduced, whole)


@given(width=st.integers(16, 60), height=st.integers(16, 60), by=st.sampled_from([2, 4, 8]))
def test_a_reduced_picture_looks_alike(width: int, height: int, by: int) -> None:
    shorter = min(width, height)
    wanted = Preprocessing(
        channels=3, size=shorter, resize=shorter, mean=(0,) * 3, std=(1,) * 3, reducing_gap=1.0
    )
    data = encode(waves(width * by, height * by), "JPEG", quality=95, subsampling=0)
    reduced = decode(data, preprocessing=wanted)
    assert reduced.size == (width, height)
    difference = crop(reduced, wanted).astype(int) - crop(decode(data), wanted)
    assert np.abs(difference).mean() < 3


def test_only_jpeg_files_are_reduced_and_only_where_the_preprocessing_says_so() -> None:
    wanted = msgspec.structs.replace(RGB, reducing_gap=2.0)
    large = waves(200, 160)
    files = {kind: encode(large, kind) for kind in ("JPEG", "PNG", "WEBP")}
    files["MPO"] = encode(large, "MPO", save_all=True, append_images=[large])
    sizes = {kind: decode(data, preprocessing=wanted).size for kind, data in files.items()}
    assert sizes == {"JPEG": (25, 20), "PNG": (200, 160), "WEBP": (200, 160), "MPO": (25, 20)}
    assert decode(files["JPEG"], preprocessing=RGB).size == (200, 160), "an older bundle's"
    for mode in ("L", "CMYK"):
        data = encode(large.convert(mode), "JPEG", quality=95, progressive=True)
        whole, reduced = (crop(decode(data, preprocessing=pre), RGB) for pre in (None, wanted))
        assert np.abs(reduced.astype(int) - whole).mean() < 4


def test_a_picture_in_memory_stays_as_it_is_and_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encode(waves(200, 160), "JPEG", exif=exif)))
    upright = standardize(opened)
    assert opened.size == (200, 160)
    assert upright.size == standardize(upright).size == upright_size(upright) == (160, 200)
    assert upright_size(opened) == (160, 200)
    assert from_array(np.asarray(opened)).size == (200, 160)


def test_a_truncated_or_too_large_jpeg_is_refused_however_small_it_is_wanted() -> None:
    wanted = msgspec.structs.replace(RGB, reducing_gap=2.0)
    data = encode(waves(400, 300), "JPEG")
    for cut in (len(data) // 3, len(data) // 2):
        with pytest.raises(ImageError, match="damaged"):
            decode(data[:cut], preprocessing=wanted)
    start = data.index(b"\xff\xc0") + 5  # the frame header's height and width
    bomb = data[:start] + struct.pack(">HH", 10_000, 10_000) + data[start + 4 :]
    with pytest.raises(ImageError, match="has more than"):
        decode(bomb, preprocessing=wanted)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_long_thin_image_does_not_fill_the_memory(size: tuple[int, int]) -> None:
    large = Preprocessing(channels=3, size=224, resize=256, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ImageError, match=r"thin\.png is too long and thin"):
        crop(decode(encode(Image.new("L", size))), large, "thin.png")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.1,)},
        {"std": (0.0, 1.0, 1.0)},
        {"size": 0},
        {"size": 20, "resize": 10},
        {"reducing_gap": 0.5},
        {"reducing_gap": float("inf")},
        {"reducing_gap": float("nan")},
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    fields = {name: getattr(RGB, name) for name in RGB.__struct_fields__}
    with pytest.raises(ValueError, match="."):
        Preprocessing(**(fields | change))
