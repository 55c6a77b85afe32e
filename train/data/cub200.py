"""CUB-200-2011 (Wah et al., Caltech CNS-TR-2011-001): 11,788 photographs of 200 birds."""

from __future__ import annotations

from pathlib import Path

from mate_edge.errors import DataError
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.layout import Layout
from mate_edge.train.data.lists import from_names, read_table
from mate_edge.train.data.places import fetch_tar

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


def read(folder: Path, size: int) -> Dataset:
    """Read the set from `folder`, for a network whose input is `size` pixels wide and high.

    The folder of an image is its class, `001.Black_footed_Albatross`, so the lists of classes and
    labels, which repeat it, are not needed.

    Raises:
        DataError: a list or an image is missing, or a list is damaged.
    """
    splits = folder / "train_test_split.txt"
    names = read_table(folder / "images.txt", 2)
    uses = dict(read_table(splits, 2))
    for number, name in names:
        if uses.get(number) not in ("0", "1"):
            raise DataError(
                f"{splits} must give 1 (training) or 0 (test) for image {number}, {name}: unpack "
                "the data set again"
            )
    train, test = ([name for number, name in names if uses[number] == use] for use in ("1", "0"))
    return from_names(folder / "images", train, test, size, _title)


def _title(folder: str) -> str:
    return folder.split(".", 1)[-1].replace("_", " ")


def _fetch(folder: Path) -> None:
    fetch_tar(URL, folder.parent, MD5)


LAYOUT = Layout("CUB_200_2011", "train_test_split.txt", 224, read, _fetch)
