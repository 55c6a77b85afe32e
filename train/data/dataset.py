"""What every data set is: classes, three splits, and how to preprocess and train on it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import DataError, UsageError
from mate_edge.images import Preprocessing
from mate_edge.names import some
from mate_edge.runs import Recipe
from mate_edge.train.data.images import (
    LARGE,
    REDUCING_GAP,
    FileImages,
    Images,
    MemoryImages,
)
from mate_edge.train.data.splits import choose_some, split_off

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ARCH = "resnet18"

AT_ONCE = 1000
"""Images whose pixels are counted in one go."""
IMBALANCE = 10
"""How many times the images of the smallest class the largest may have without a word."""


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

    def noting(self, *notes: str) -> Dataset:
        """Return the same data set with more notes."""
        return dataclasses.replace(self, note="; ".join(filter(None, (self.note, *notes))))


def check_splits(dataset: Dataset) -> Dataset:
    """Return the data set, noting when its classes differ much in size.

    Raises:
        DataError: a split without images, or a class without training images.
    """
    for name, split in (("training", dataset.train), ("val", dataset.val), ("test", dataset.test)):
        if not len(split.labels):
            raise DataError(f"there are too few images to have any in the {name} split: add some")
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    if missing := [name for name, n in zip(dataset.classes, counts, strict=True) if n == 0]:
        raise DataError(
            f"no training image shows {some(missing)}, {len(missing)} of {len(counts)} classes: "
            "add images or leave these classes out"
        )
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= IMBALANCE * counts[least]:
        return dataset
    return dataset.noting(
        f"the classes are unbalanced: {counts[most]} training images of {dataset.classes[most]}, "
        f"{counts[least]} of {dataset.classes[least]}"
    )


def train_on_some(dataset: Dataset, count: int) -> Dataset:
    """Keep `count` of the training images, the same share of each class; see `choose_some`.

    Validation, test and preprocessing stay those of the whole set, so that results compare.

    Raises:
        UsageError: more than there are, or fewer than classes.
    """
    labels, classes = dataset.train.labels, len(dataset.classes)
    if not classes <= count <= len(labels):
        raise UsageError(
            f"--train-images must lie between {classes}, one a class, and {len(labels)}, all of "
            f"them, not {count}"
        )
    train = dataset.train.pick(choose_some(labels, count))
    note = f"{count} of {len(labels)} training images are used"
    return dataclasses.replace(dataset, train=train).noting(note)


def from_arrays(
    classes: tuple[str, ...],
    train: MemoryImages,
    test: MemoryImages,
    *,
    val: MemoryImages | None = None,
    flip: bool,
    arch: str,
    recipe: Recipe,
) -> Dataset:
    """Make a data set of images in memory; without `val`, a tenth of `train` becomes validation.

    Mean and standard deviation are those of the training images.
    """
    if val is None:
        chosen = split_off(train.labels)
        train, val = train.pick(~chosen), train.pick(chosen)
    _, size, _, channels = train.pixels.shape
    mean, std = channel_statistics(train.pixels)
    preprocessing = Preprocessing(
        channels=3 if channels == 3 else 1,
        size=size,
        resize=size,
        mean=mean,
        std=std,
        reducing_gap=REDUCING_GAP,
    )
    return Dataset(classes, preprocessing, train, val, test, flip, arch, recipe)


def from_files(
    classes: tuple[str, ...],
    train: FileImages,
    test: FileImages,
    size: int,
    val: FileImages | None = None,
) -> Dataset:
    """Make a data set of photographs in files; without `val`, a tenth of `train` validates.

    Small ones are read into memory; from `LARGE` on they stay in their files and are trained with
    the recipe that is usual for fine-grained sets.

    Args:
        classes: C names.
        train: labels below C.
        test: likewise.
        size: of the network's input, pixels.
        val: likewise.

    Raises:
        ImageError: an image that cannot be read, as far as they are read now.
    """
    if val is None:
        chosen = split_off(train.labels)
        train, val = train.pick(~chosen), train.pick(chosen)
    if size < LARGE:
        return from_arrays(
            classes,
            train.in_memory(size),
            test.in_memory(size),
            val=val.in_memory(size),
            flip=True,
            arch=ARCH,
            recipe=Recipe(epochs=200),
        )
    preprocessing = Preprocessing(
        channels=3,
        size=size,
        resize=round(size * 256 / 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        reducing_gap=REDUCING_GAP,
    )
    recipe = Recipe(epochs=200, batch_size=32, weight_decay=1e-4, milestones=(0.5, 0.75))
    return Dataset(classes, preprocessing, train, val, test, True, ARCH, recipe)


def channel_statistics(
    pixels: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation of pixels / 255, to four decimals."""
    mean, std = [], []
    for c in range(pixels.shape[-1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(pixels), AT_ONCE):  # bincount makes 8 bytes of each
            counts += np.bincount(pixels[start : start + AT_ONCE, ..., c].ravel(), minlength=256)
        values = np.arange(256) / 255
        average = float(counts @ values / counts.sum())
        spread = float(counts @ (values - average) ** 2 / counts.sum()) ** 0.5
        mean.append(round(average, 4))
        std.append(max(round(spread, 4), 1e-4))
    return tuple(mean), tuple(std)
