"""Scikit-learn's 1,797 real handwritten digits (8x8, 17 gray levels), shown at 32x32."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mate_edge.runs import Recipe
from mate_edge.train.data.dataset import Dataset, from_arrays
from mate_edge.train.data.images import MemoryImages
from mate_edge.train.data.splits import split_off

SIZE = 32


def load() -> Dataset:
    """Load the digits; a fifth of them is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    shown = [Image.fromarray(d).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for d in small]
    pixels = np.stack([np.asarray(image) for image in shown])[..., None]
    labels = digits.target.astype(np.int64)
    images, test = MemoryImages(pixels, labels), split_off(labels, 0.2)
    return from_arrays(
        tuple(str(digit) for digit in range(10)),
        images.pick(~test),
        images.pick(test),
        flip=False,
        arch="resnet8",
        recipe=Recipe(epochs=15, batch_size=32),
    )
