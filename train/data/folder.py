"""A folder of images, one subfolder a class: `DIR/train/CLASS/*.jpg`, `DIR/val`, `DIR/test`.

Without `train/` the classes lie in DIR itself. Without `val/`, a tenth of the training images
validates. Without `test/`, `val/` is the test split (as is usual with ImageNet), or else another
tenth of the training images is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import DataError, ImageError
from mate_edge.images import SUFFIXES, Preprocessing, decode
from mate_edge.runs import Recipe
from mate_edge.train.data.dataset import Dataset, channel_statistics, split_off
from mate_edge.train.data.images import FileImages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ARCH = "resnet18"
SIZE = 224
MAX_SIZE = 1024
LARGE = 128
"""From this size on (px), images stay on disk and are cut at random sizes in training."""


def load(root: Path, size: int) -> Dataset:
    """Load a folder of images for a network whose input is `size` pixels wide and high.

    Raises:
        DataError: no classes, a class without images, or splits whose classes differ.
        ImageError: an image that cannot be read.
    """
    top = root / "train" if (root / "train").is_dir() else root
    classes = _classes(top)
    train = _scan(top, classes)
    splits = {
        name: _scan(root / name, classes)
        for name in ("val", "test")
        if top != root and (root / name).is_dir()
    }
    notes = []
    if top == root and any((root / name).is_dir() for name in ("val", "test")):
        raise DataError(f"{root} has val/ or test/ but no train/: put the training images there")
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append("val/ serves as the test split, since there is no test/")
    for name in ("test", "val"):
        if name not in splits:
            chosen = split_off(train.labels)
            if not chosen.any() or chosen.all():
                raise DataError(f"{top} has too few images ({len(chosen)}) to split off {name}")
            splits[name], train = _pick(train, chosen), _pick(train, ~chosen)
            notes.append(f"{chosen.sum()} of {len(chosen)} training images are split off as {name}")
    note = "; ".join(notes)
    return _dataset(classes, train, splits["val"], splits["test"], size, note)


def _dataset(
    classes: tuple[str, ...],
    train: FileImages,
    val: FileImages,
    test: FileImages,
    size: int,
    note: str,
) -> Dataset:
    if size >= LARGE:
        recipe = Recipe(epochs=200, batch_size=32, weight_decay=1e-4, milestones=(0.5, 0.75))
        preprocessing = Preprocessing(
            channels=3,
            size=size,
            resize=round(size * 256 / 224),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        return Dataset(classes, preprocessing, train, val, test, True, ARCH, recipe, note)
    unscaled = Preprocessing(
        channels=3, size=size, resize=size, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    memory = train.in_memory(unscaled)
    mean, std = channel_statistics(memory.pixels)
    preprocessing = Preprocessing(channels=3, size=size, resize=size, mean=mean, std=std)
    return Dataset(
        classes,
        preprocessing,
        memory,
        val.in_memory(preprocessing),
        test.in_memory(preprocessing),
        True,
        ARCH,
        Recipe(epochs=200),
        note,
    )


def _classes(top: Path) -> tuple[str, ...]:
    names = sorted(
        entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(names) < 2:
        raise DataError(
            f"{top} has {len(names)} class folders: put each class's images into a folder of its "
            "own, two classes or more"
        )
    return tuple(names)


def _scan(top: Path, classes: tuple[str, ...]) -> FileImages:
    found = _classes(top)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(f"{top} has other classes than the training images: {', '.join(odd[:5])}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(file for file in (top / name).rglob("*") if file.suffix.lower() in SUFFIXES)
        if not any(_is_readable(image) for image in images):
            raise DataError(
                f"the class folder {top / name} has no readable image (of {len(images)} files): "
                "add some or remove the folder"
            )
        paths += images
        labels += [label] * len(images)
    return FileImages(tuple(paths), np.asarray(labels, np.int64))


def _is_readable(path: Path) -> bool:
    try:
        decode(path)
    except ImageError:
        return False
    return True


def _pick(images: FileImages, chosen: NDArray[np.bool_]) -> FileImages:
    paths = tuple(path for path, keep in zip(images.paths, chosen, strict=True) if keep)
    return FileImages(paths, images.labels[chosen])
