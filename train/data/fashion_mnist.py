"""Fashion-MNIST (Xiao et al., arXiv:1708.07747): 70,000 gray images of clothing, 28x28."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import DataError
from mate_edge.runs import Recipe
from mate_edge.train.data.dataset import Dataset, from_arrays
from mate_edge.train.data.images import MemoryImages
from mate_edge.train.data.places import data_folder, download

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
RECIPE = Recipe(epochs=30, weight_decay=1e-4, milestones=(0.6, 0.85))
"""Chosen on validation: resnet8 under-fits in few epochs with CIFAR's stronger decay."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def load() -> Dataset:
    """Load from Debian's package, from torchvision's layout in the data folder, or download.

    Raises:
        DataError: not found and not downloadable, or damaged.
    """
    folder = _find()
    splits = []
    for split in ("train", "t10k"):
        pixels = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", header=16)
        labels = _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", header=8)
        if len(pixels) != len(labels) * 28 * 28 or labels.max(initial=0) > 9:
            raise DataError(f"Fashion-MNIST in {folder} is damaged: install it again")
        splits.append(MemoryImages(pixels.reshape(-1, 28, 28, 1), labels.astype(np.int64)))
    train, test = splits
    return from_arrays(CLASSES, train, test, flip=True, arch="resnet8", recipe=RECIPE)


def _find() -> Path:
    place = data_folder() / "FashionMNIST"
    cached = place / "raw"

    def is_there(folder: Path = cached) -> bool:
        return (folder / "t10k-labels-idx1-ubyte.gz").is_file()

    for folder in (DEBIAN, cached):
        if is_there(folder):
            return folder

    def fetch(into: Path) -> None:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(into), download=True)

    download(
        "Fashion-MNIST",
        place,
        is_there,
        fetch,
        f"apt-get install dataset-fashion-mnist, or put its four .gz files into {cached}",
    )
    return cached


def _read_idx(path: Path, header: int) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is missing or damaged ({error}): install it again") from None
