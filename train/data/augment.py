"""Random variations of training images, in numpy and Pillow, driven by numbers given."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from mate_edge.images import REDUCIBLE, Preprocessing, standardize, upright_size

Pixels = NDArray[np.uint8]
PADDING = 4


def crop_shifted(pixels: Pixels, x: NDArray[np.float64], y: NDArray[np.float64]) -> Pixels:
    """Pad by `PADDING` black pixels and cut the old size out, shifted by x and y in [0, 1).

    Args:
        pixels: uint8 [n, H, W, C].
        x: [n], from the leftmost to the rightmost cut.
        y: [n], from the topmost to the lowest cut.
    """
    n, height, width, _ = pixels.shape
    margin = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    padded = np.pad(pixels, margin)
    cuts = sliding_window_view(padded, (height, width), axis=(1, 2))  # [n, y, x, C, H, W], no copy
    shifts = 2 * PADDING + 1
    rows, columns = (y * shifts).astype(np.int64), (x * shifts).astype(np.int64)
    cut: Pixels = cuts.transpose(0, 1, 2, 4, 5, 3)[np.arange(n), rows, columns]
    return cut


def flip_some(pixels: Pixels, random: NDArray[np.float64]) -> Pixels:
    """Mirror the images [n, H, W, C] whose number in [0, 1) is below one half."""
    mirrored = random < 0.5
    flipped: Pixels = pixels.copy()
    flipped[mirrored] = pixels[mirrored, :, ::-1]
    return flipped


def crop_resized(
    image: Image.Image,
    preprocessing: Preprocessing,
    random: np.random.Generator,
    name: str = "the image",
) -> Pixels:
    """Cut a random part of 8 to 100 % of the area, aspect 3:4 to 4:3, and scale it to size.

    Szegedy et al., arXiv:1409.4842; the limits are torchvision's `RandomResizedCrop`'s.

    Args:
        image: opened, and decoded as small as the part allows; or from `decode`.
        preprocessing: whose size and channels the part gets.
        random: what chooses the part.
        name: what errors call the image.

    Returns:
        uint8 [size, size, channels].

    Raises:
        ImageError: as `standardize`.
    """
    if image.format not in REDUCIBLE:
        image = standardize(image, name)
    width, height = upright_size(image, name)
    left, top, w, h = _choose_part(width, height, random)
    size = preprocessing.size
    image = standardize(image, name, preprocessing.reduction(min(w, h), size))
    across, down = image.width / width, image.height / height
    mode = "RGB" if preprocessing.channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    box = (
        round(left * across),
        round(top * down),
        round((left + w) * across),
        round((top + h) * down),
    )
    cut = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(cut).reshape(size, size, preprocessing.channels)


def _choose_part(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the part."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            return int(left), int(top), w, h
    # as torchvision does: the centre, of the nearest aspect
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h
