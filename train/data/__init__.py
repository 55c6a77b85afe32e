"""Data sets by name. To add one: a file with a function `load`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.train.data import cifar, digits, fashion_mnist, folder
from mate_edge.train.data.dataset import Dataset

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": partial(cifar.load, "cifar10"),
    "cifar100": partial(cifar.load, "cifar100"),
}
FOLDER_SIZE = 224


def load_dataset(name: str, size: int | None = None) -> Dataset:
    """Load a data set by its name, or a folder of images by its path.

    Args:
        name: in `DATASETS`, or a folder (anything with a separator in it, or that exists).
        size: of the network's input in pixels, for a folder; 224 when None.

    Raises:
        UsageError: an unknown name, or a size for a set that has its own.
        DataError: missing, empty or malformed.
    """
    path = Path(name)
    if name not in DATASETS and path.is_dir():
        if size is not None and not 16 <= size <= 1024:
            raise UsageError(f"--size must lie between 16 and 1024 pixels, not {size}")
        return folder.load(path.resolve(), size or FOLDER_SIZE)
    if name not in DATASETS and len(path.parts) > 1:
        raise UsageError(f"--data {name} is no folder: check the path")
    dataset = look_up("--data", name, DATASETS)
    if size is not None:
        raise UsageError(f"--size is for folders of images; {name} has its own")
    return dataset()
