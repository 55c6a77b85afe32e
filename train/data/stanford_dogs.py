"""Stanford Dogs (Khosla et al., FGVC workshop at CVPR 2011): 20,580 photographs of 120 breeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mate_edge.errors import DataError
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.layout import Layout
from mate_edge.train.data.lists import from_names
from mate_edge.train.data.places import fetch_tar

URL = "http://vision.stanford.edu/aditya86/ImageNetDogs"


def read(folder: Path, size: int) -> Dataset:
    """Read the set from `folder`, for a network whose input is `size` pixels wide and high.

    Raises:
        DataError: a list or an image is missing, or a list is damaged.
    """
    train, test = (_read_mat(folder / f"{split}_list.mat") for split in ("train", "test"))
    return from_names(folder / "Images", train, test, size, _title)


def _read_mat(path: Path) -> list[str]:
    """Return `file_list`, a column of strings such as `n02085620-Chihuahua/n02085620_5927.jpg`."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path} is missing: unpack lists.tar of the data set beside Images/")
    try:
        cells = loadmat(path, appendmat=False, variable_names=["file_list"], squeeze_me=True)
        names: list[str] = np.atleast_1d(cells["file_list"]).tolist()
    except Exception as error:  # scipy raises a dozen types on damage
        raise DataError(f"{path} is damaged ({error}): unpack lists.tar again") from None
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is damaged (no list of names): unpack lists.tar again")
    return names


def _title(folder: str) -> str:
    return folder.split("-", 1)[-1].replace("_", " ")


def _fetch(folder: Path) -> None:
    for archive in ("images.tar", "lists.tar"):
        fetch_tar(f"{URL}/{archive}", folder)


LAYOUT = Layout("stanford-dogs", "train_list.mat", 224, read, _fetch)
