"""Data sets by name. To add one: a file with a function `load` or a `LAYOUT`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.train.data import (
    cifar,
    cub200,
    digits,
    fashion_mnist,
    folder,
    mit67,
    stanford_dogs,
    tiny_imagenet,
)
from mate_edge.train.data.dataset import Dataset, check_splits, train_on_some
from mate_edge.train.data.layout import Layout, check_size

OF_ONE_SIZE: dict[str, Callable[[], Dataset]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": partial(cifar.load, "cifar10"),
    "cifar100": partial(cifar.load, "cifar100"),
}
LAYOUTS: dict[str, Layout] = {
    "tinyimagenet": tiny_imagenet.LAYOUT,
    "cub200": cub200.LAYOUT,
    "stanford-dogs": stanford_dogs.LAYOUT,
    "mit67": mit67.LAYOUT,
}
DATASETS = (*OF_ONE_SIZE, *LAYOUTS)


def load_dataset(name: str, size: int | None = None, train_images: int | None = None) -> Dataset:
    """Load a data set by its name, or by the path of a folder.

    Args:
        name: in `DATASETS`, or a folder (anything with a separator in it, or that exists): a copy
            of a published set, or else one subfolder a class.
        size: of the network's input in pixels; the set's own when None, 224 for a folder.
        train_images: how many of the training images to train on; all when None.

    Raises:
        UsageError: an unknown name, or a size or number of images that cannot be.
        DataError: missing, empty or malformed.
    """
    dataset = check_splits(_load(name, size))
    return dataset if train_images is None else train_on_some(dataset, train_images)


def _load(name: str, size: int | None) -> Dataset:
    path = Path(name)
    if name not in DATASETS and path.is_dir():
        for known, layout in LAYOUTS.items():
            if layout.recognises(path):
                return layout.load(known, path.resolve(), size)
        size = check_size(folder.SIZE if size is None else size)
        return folder.load(path.resolve(), size)
    if name not in DATASETS and len(path.parts) > 1:
        raise UsageError(f"--data {name} is no folder: check the path")
    folders = ", or name a folder of images, and there is none of this name here"
    look_up("--data", name, dict.fromkeys(DATASETS), folders)
    if name in LAYOUTS:
        return LAYOUTS[name].load(name, None, size)
    if size is not None:
        raise UsageError(f"--size is for folders of images; {name} has its own")
    return OF_ONE_SIZE[name]()
