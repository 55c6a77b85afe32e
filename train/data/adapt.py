"""A data set as an imported network takes it: its order of the classes, its mean and deviation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from mate_edge import files
from mate_edge.errors import DataError, UsageError
from mate_edge.images import MAX_SIDE
from mate_edge.names import some
from mate_edge.train.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from mate_edge.train.data.folder import as_numbers
from mate_edge.train.data.images import LARGE

T = TypeVar("T")


def read_classes(file: Path) -> tuple[str, ...]:
    """Read one class name per line, in the order of the network's outputs.

    Raises:
        DataError: the file cannot be read, or names a class twice.
    """
    data = files.read_bytes(file, files.MAX_JSON_BYTES, DataError)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"--classes {file} is not UTF-8 text") from None
    names = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"--classes {file} names these more than once: {some(twice)}")
    return names


def reorder_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """Renumber the labels so that label i means `classes[i]`.

    Raises:
        DataError: these are not the data set's classes.
    """
    missing = sorted(set(dataset.classes) - set(classes))
    extra = sorted(set(classes) - set(dataset.classes))
    if missing or extra:
        parts = [f"{len(missing)} of the data set are missing ({some(missing)})"] * bool(missing)
        parts += [f"{len(extra)} are not in the data set ({some(extra)})"] * bool(extra)
        raise DataError(f"the classes do not match: {'; '.join(parts)}")
    new = np.array([classes.index(name) for name in dataset.classes], np.int64)

    def renumber(images: T) -> T:
        split = cast(Any, images)
        renumbered: T = dataclasses.replace(split, labels=new[split.labels])
        return renumbered

    return dataclasses.replace(
        dataset,
        classes=classes,
        train=renumber(dataset.train),
        val=renumber(dataset.val),
        test=renumber(dataset.test),
    )


def note_order(dataset: Dataset) -> Dataset:
    """Say so where the classes are numbers in the order of text: `10` before `2`."""
    numbers = as_numbers(dataset.classes)
    if numbers == sorted(numbers):
        return dataset
    return dataset.noting(
        f"the classes are numbers in the order of text, {some(dataset.classes)}: --classes FILE "
        "gives another order"
    )


def check_order(classes: tuple[str, ...]) -> None:
    """Refuse numbers in the order of text: no network was trained with that by intention.

    Raises:
        UsageError: the classes' names are such numbers.
    """
    numbers = as_numbers(classes)
    if numbers != sorted(numbers):
        raise UsageError(
            f"the classes are numbers in the order of text, {some(classes)}, and the order of your "
            "network's outputs is not known: give --classes FILE, a name a line, in that order"
        )


def parse_statistics(option: str, text: str, channels: int) -> tuple[float, ...]:
    """Return a number for each channel, of `0.5` (for all of them) or `0.49,0.48,0.45`.

    Raises:
        UsageError: no such numbers, another number of them, or a deviation that is not positive.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1:
        values *= channels
    lowest = 0.0 if option == "--mean" else 1e-6
    if len(values) != channels or not all(lowest <= value <= 1 for value in values):
        raise UsageError(
            f"{option} takes {channels} numbers such as {','.join(['0.5'] * channels)}, of pixels "
            f"from 0 to 1, not {text!r}"
        )
    return values


def use_statistics(
    dataset: Dataset, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Dataset:
    """Normalize with another mean and deviation, one a channel; None keeps the data set's own."""
    own = dataset.preprocessing
    preprocessing = msgspec.structs.replace(own, mean=mean or own.mean, std=std or own.std)
    return dataclasses.replace(dataset, preprocessing=preprocessing)


def use_resize(dataset: Dataset, resize: int | None) -> Dataset:
    """Scale the shorter side to so many pixels before the centre is cut out; None: as it was.

    Raises:
        UsageError: the images are of the network's own size already, or it is below that.
    """
    own = dataset.preprocessing
    if resize is None or resize == own.resize:
        return dataset
    if own.resize == own.size:
        raise UsageError(
            f"--resize goes with images in files and --size {LARGE} or more: these are scaled to "
            f"{own.size} pixels as they are read"
        )
    if not own.size <= resize <= MAX_SIDE:
        raise UsageError(f"--resize must lie between {own.size} and {MAX_SIDE}, not {resize}")
    preprocessing = msgspec.structs.replace(own, resize=resize)
    return dataclasses.replace(dataset, preprocessing=preprocessing)


def use_imagenet_statistics(dataset: Dataset) -> Dataset:
    """Normalize colour images with ImageNet's mean and deviation, as imported networks expect."""
    if dataset.preprocessing.channels != 3:
        return dataset
    return use_statistics(dataset, IMAGENET_MEAN, IMAGENET_STD)
