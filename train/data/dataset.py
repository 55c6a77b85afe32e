"""What every data set is: classes, three splits, and how to preprocess and train on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.images import Preprocessing
from mate_edge.runs import Recipe
from mate_edge.train.data.images import Images, MemoryImages

SPLIT_SEED = 20240421
"""Fixed, so that every run validates and tests on the same images whatever its seed."""


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        flip: whether a mirrored image keeps its class.
        arch: the default architecture.
        recipe: the default recipe.
        note: what the user should know about the splits, in a few words.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Images
    val: Images
    test: Images
    flip: bool
    arch: str
    recipe: Recipe
    note: str = ""

    def fingerprint(self) -> str:
        """Return the SHA-256 of the labels and images of all splits: what a resume must find."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            digest.update(split.labels.tobytes())
            digest.update(split.identity())
        return digest.hexdigest()


def split_off(labels: NDArray[np.int64], share: float = 0.1) -> NDArray[np.bool_]:
    """Choose `share` of the samples, the same share of each class: bool [N]."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    step = round(1 / share)
    chosen = np.zeros(len(labels), np.bool_)
    chosen[by_class[step // 2 :: step]] = True
    return chosen


def from_arrays(
    classes: tuple[str, ...],
    train: MemoryImages,
    test: MemoryImages,
    *,
    flip: bool,
    arch: str,
    recipe: Recipe,
) -> Dataset:
    """Make a data set of images in memory; a tenth of `train` becomes validation.

    Mean and standard deviation are those of the training images.
    """
    val = split_off(train.labels)
    kept = MemoryImages(train.pixels[~val], train.labels[~val])
    _, size, _, channels = train.pixels.shape
    mean, std = channel_statistics(kept.pixels)
    return Dataset(
        classes,
        Preprocessing(
            channels=3 if channels == 3 else 1, size=size, resize=size, mean=mean, std=std
        ),
        kept,
        MemoryImages(train.pixels[val], train.labels[val]),
        test,
        flip,
        arch,
        recipe,
    )


def channel_statistics(
    pixels: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation of pixels / 255, to four decimals."""
    mean, std = [], []
    for c in range(pixels.shape[-1]):
        counts = np.bincount(pixels[..., c].ravel(), minlength=256)
        values = np.arange(256) / 255
        average = float(counts @ values / counts.sum())
        spread = float(counts @ (values - average) ** 2 / counts.sum()) ** 0.5
        mean.append(round(average, 4))
        std.append(max(round(spread, 4), 1e-4))
    return tuple(mean), tuple(std)
