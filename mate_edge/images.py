"""Decode and preprocess images: the one implementation, for evaluation and for the runtime.

Training's evaluation and the runtime both call `decode`, `crop` and `normalize`, so the network
sees the same numbers of a file in both by construction.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mate_edge.errors import ImageError
from mate_edge.files import read_regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow's decoders that are tried; the others (EPS starts a program) never see a user's file."""

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
MAX_PIXELS = 89_478_485  # Pillow's own limit: 358 MB as RGB, of which Pillow keeps 4 bytes a pixel
MAX_SIDE = 8192
"""Of a network's input."""
STRIP = 256
"""Rows of a transparent image that are in memory as several copies at once."""
MAX_IMAGE_BYTES = 2**30  # `MAX_PIXELS` of 64 bits fit, and a header
TOO_LARGE = f"has more than {MAX_PIXELS} pixels: scale it down first"
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""
REDUCIBLE = ("JPEG", "MPO")
"""The formats whose decoder can leave out what is not needed; a camera's MPO begins with a JPEG."""
_REDUCTIONS = (8, 4, 2)
"""What it can divide width and height by; a side that is no multiple would be scaled askew."""


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """How an image becomes a network's input.

    The shorter side is scaled to `resize` pixels (bilinear with antialiasing, as Pillow does), the
    centre `size` x `size` is cut out, and each channel becomes `(value / 255 - mean) / std`.

    Attributes:
        reducing_gap: a JPEG file is decoded at an eighth, a quarter or a half of its size, the
            first that divides both sides and leaves this many times `resize` of the shorter one
            (as in Pillow's `thumbnail`); None decodes all of it.
    """

    channels: Literal[1, 3]
    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reducing_gap: float | None = None

    def __post_init__(self) -> None:
        if not (len(self.mean) == len(self.std) == self.channels):
            raise ValueError(f"mean and std need {self.channels} values each")
        if not 1 <= self.size <= self.resize <= MAX_SIDE:
            raise ValueError(f"size {self.size} and resize {self.resize} do not fit together")
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError("std must be positive")
        if self.reducing_gap is not None and not 1 <= self.reducing_gap < float("inf"):
            raise ValueError(f"reducing_gap must be 1 or more, not {self.reducing_gap}")

    def reduction(self, side: float, kept: int) -> float:
        """Return by how much an image may be reduced whose `side` is to be scaled to `kept`."""
        return 1.0 if self.reducing_gap is None else side / (kept * self.reducing_gap)


def read_image(path: str | Path) -> bytes:
    """Return the encoded bytes of an image file.

    Raises:
        ImageError: it is missing, cannot be read, is larger than `MAX_IMAGE_BYTES`, or a pipe or a
            device.
    """
    try:
        return read_regular(path, MAX_IMAGE_BYTES, ImageError)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except OSError as reason:
        raise ImageError(f"cannot read {path}: {reason.strerror}") from None


def decode(
    source: str | Path | bytes,
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Image.Image:
    """Decode an image file to an upright 8-bit picture of mode L or RGB.

    EXIF rotation is applied; 16-bit gray is cut to its upper 8 bits; palettes, CMYK and the like
    become RGB; what is transparent shows white.

    Args:
        source: a path, or the encoded bytes.
        name: what errors call it; the path when None.
        preprocessing: what the picture is decoded for, see its `reducing_gap`; None decodes all.

    Raises:
        ImageError: missing, empty, truncated, not an image, or larger than `MAX_PIXELS`.
    """
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    with open_image(source, name) as image:
        reduction = 1.0
        if preprocessing is not None:
            reduction = preprocessing.reduction(min(image.size), preprocessing.resize)
        return standardize(image, name, reduction)


def open_image(source: str | Path | bytes, name: str) -> Image.Image:
    """Read an image file's header; `standardize` decodes the rest.

    Args:
        source: a path, or the encoded bytes.
        name: what errors call it.

    Raises:
        ImageError: missing, empty, not an image, or more than twice `MAX_PIXELS`.
    """
    data = source if isinstance(source, bytes) else read_image(source)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} {TOO_LARGE}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image in a known format") from None
    except Exception as reason:  # Pillow's decoders raise a dozen types on malformed data
        raise ImageError(f"{name} is damaged: {reason}") from None


def upright_size(image: Image.Image, name: str = "the image") -> tuple[int, int]:
    """Return width and height as `standardize` without a reduction leaves them.

    Args:
        image: of a `REDUCIBLE` format, opened; or from `standardize`.
        name: what errors call it.

    Raises:
        ImageError: its EXIF data is damaged.
    """
    try:
        sideways = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    except Exception as reason:  # as in `decode`
        raise ImageError(f"{name} is damaged: {reason}") from None
    return image.size[::-1] if sideways else image.size


def standardize(image: Image.Image, name: str = "the image", reduction: float = 1.0) -> Image.Image:
    """Bring a PIL image of any mode to an upright 8-bit one of mode L or RGB; see `decode`.

    Args:
        image: not changed, but for what is not decoded yet.
        name: what errors call it.
        reduction: a JPEG file that is not decoded yet may be decoded so many times smaller, or
            less: by 8, 4 or 2 where that divides both sides.

    Returns:
        An image that is upright for this function, too.

    Raises:
        ImageError: truncated, of 32 bits a pixel, empty, or larger than `MAX_PIXELS`.
    """
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name} {TOO_LARGE}")
    if not image.width * image.height:
        raise ImageError(f"{name} has no pixels: it is {image.width}x{image.height}")
    try:
        for by in _REDUCTIONS:
            if by <= reduction and image.width % by == image.height % by == 0:
                image.draft(None, (image.width // by, image.height // by))
                break
        image.load()
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        picture = _to_8_bits(image, name)
        if turn is not None:
            picture = picture.transpose(turn)
            picture.info = {}  # which holds the orientation
        return picture
    except ImageError:
        raise
    except Exception as reason:  # as in `decode`
        raise ImageError(f"{name} is damaged: {reason}") from None


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16 bits; older Pillow calls them 32
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise ImageError(f"{name} has 32 bits a pixel: convert it to 8 or 16 bits")
        upper = np.empty(values.shape, np.uint8)
        return Image.fromarray(np.right_shift(values, 8, out=upper, casting="unsafe"))
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _over_white(image: Image.Image) -> Image.Image:
    seen = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        seen.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return seen


def from_array(frame: NDArray[np.uint8], color: Literal["rgb", "bgr"] = "rgb") -> Image.Image:
    """Wrap a frame, uint8 [H, W], [H, W, 1] or [H, W, 3], without decoding anything.

    Raises:
        ImageError: another dtype or shape, or an empty frame.
    """
    if frame.dtype != np.uint8:
        raise ImageError(f"a frame must be uint8 in 0..255, not {frame.dtype}")
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[:, :, 0]
    if frame.size == 0 or not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)):
        raise ImageError(
            f"a frame must have the shape [H, W, 3], [H, W, 1] or [H, W], not {frame.shape}"
        )
    if frame.ndim == 3 and color == "bgr":
        frame = frame[:, :, ::-1]
    return Image.fromarray(np.ascontiguousarray(frame))


def scaled_size(
    width: int, height: int, preprocessing: Preprocessing, name: str
) -> tuple[int, int]:
    """Return width and height once the shorter side is `resize`, as torchvision's `Resize` does.

    Raises:
        ImageError: so long and thin that the scaled image would exceed `MAX_PIXELS`.
    """
    short = preprocessing.resize
    if min(width, height) == short:
        return width, height
    if width <= height:
        scaled = short, max(short, int(short * height / width))
    else:
        scaled = max(short, int(short * width / height)), short
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise ImageError(f"{name} is too long and thin to be scaled: cut it first")
    return scaled


def crop_start(length: int, size: int) -> int:
    """Return where the centre `size` of `length` pixels begins, as torchvision's `CenterCrop`."""
    return round((length - size) / 2)


def crop(
    image: Image.Image, preprocessing: Preprocessing, name: str = "the image"
) -> NDArray[np.uint8]:
    """Scale and cut an image of any size: uint8 [size, size, channels].

    Raises:
        ImageError: as `scaled_size`.
    """
    mode = "RGB" if preprocessing.channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = scaled_size(*image.size, preprocessing, name)
    if (width, height) != image.size:
        # which side goes first, and so rounds first, differs between Pillow's versions
        across = image.resize((width, image.height), Image.Resampling.BILINEAR)
        image = across.resize((width, height), Image.Resampling.BILINEAR)
    size = preprocessing.size
    if (width, height) != (size, size):
        left, top = crop_start(width, size), crop_start(height, size)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, preprocessing.channels)


@lru_cache(maxsize=8)
def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what pixels are multiplied by, and what is then taken off, float32 [C, 1, 1] each."""
    scale = np.array([1 / (255 * s) for s in std], np.float32)
    shift = np.array([m / s for m, s in zip(mean, std, strict=True)], np.float32)
    scale.flags.writeable = shift.flags.writeable = False  # they are kept
    return scale[:, None, None], shift[:, None, None]


def normalize(
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Turn pixels uint8 [n, H, W, C] into a network's input, float32 [n, C, H, W].

    Args:
        pixels: from `crop`, stacked.
        preprocessing: whose `mean` and `std` are applied.
        out: where to write, allocated when None.
    """
    scale, shift = scale_and_shift(preprocessing.mean, preprocessing.std)
    planes = pixels.transpose(0, 3, 1, 2)
    if out is None:
        out = np.empty(planes.shape, np.float32)
    np.multiply(planes, scale, out=out)
    out -= shift
    return out
