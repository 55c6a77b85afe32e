"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in their binary form, which needs no unpickling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mate_edge.errors import DataError
from mate_edge.runs import Recipe
from mate_edge.train.data.dataset import Dataset, from_arrays
from mate_edge.train.data.images import MemoryImages
from mate_edge.train.data.places import data_folder, download


@dataclass(frozen=True)
class Layout:
    """The files of one of the two sets, and how many label bytes precede each image."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        1,
    ),
    "cifar100": Layout(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        2,
    ),
}
IMAGE_BYTES = 3 * 32 * 32
RECIPE = Recipe(epochs=200)


def load(name: str) -> Dataset:
    """Load `cifar10` or `cifar100` from the data folder, downloading it if need be.

    Raises:
        DataError: not found and not downloadable, or damaged.
    """
    layout = LAYOUTS[name]
    folder = data_folder() / layout.folder
    needed = (*layout.train, layout.test, layout.names)

    def is_there() -> bool:
        return all((folder / name).is_file() for name in needed)

    if not is_there():

        def fetch(into: Path) -> None:
            from torchvision.datasets.utils import download_and_extract_archive

            url = f"https://www.cs.toronto.edu/~kriz/{layout.archive}"
            download_and_extract_archive(url, str(into), md5=layout.md5)

        otherwise = f"unpack {layout.archive} so that {folder} holds {', '.join(needed)}"
        download(name, folder, is_there, fetch, otherwise)
    try:
        classes = tuple((folder / layout.names).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder / layout.names} cannot be read ({error}): unpack it again"
        ) from None
    train = [_read(folder / file, layout, len(classes)) for file in layout.train]
    return from_arrays(
        classes,
        MemoryImages(
            np.concatenate([part.pixels for part in train]),
            np.concatenate([part.labels for part in train]),
        ),
        _read(folder / layout.test, layout, len(classes)),
        flip=True,
        arch="resnet18",
        recipe=RECIPE,
    )


def _read(path: Path, layout: Layout, classes: int) -> MemoryImages:
    """Read records of label bytes (the last one counts), then red, green and blue planes."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    record = layout.label_bytes + IMAGE_BYTES
    if len(data) == 0 or len(data) % record:
        raise DataError(f"{path} is damaged: {len(data)} bytes are no multiple of {record}")
    records = data.reshape(-1, record)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{path} is damaged: it has the label {labels.max()} of {classes} classes")
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return MemoryImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)
