"""MIT Indoor-67 (Quattoni and Torralba, CVPR 2009): 67 kinds of rooms, 80 + 20 photographs each."""

from __future__ import annotations

from pathlib import Path

from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.layout import Layout
from mate_edge.train.data.lists import from_names, read_lines
from mate_edge.train.data.places import fetch_tar

IMAGES = "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"
LISTS = "http://web.mit.edu/torralba/www"


def read(folder: Path, size: int) -> Dataset:
    """Read the set from `folder`, for a network whose input is `size` pixels wide and high.

    The lists name 80 training and 20 test images a class; the folders hold more.

    Raises:
        DataError: a list or an image is missing, or a list is damaged.
    """
    train, test = (
        [line.strip() for line in read_lines(folder / f"{split}Images.txt")]
        for split in ("Train", "Test")
    )
    return from_names(folder / "Images", train, test, size, _title)


def _title(folder: str) -> str:
    return folder.replace("_", " ")


def _fetch(folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    fetch_tar(IMAGES, folder)
    for split in ("Train", "Test"):
        download_url(f"{LISTS}/{split}Images.txt", str(folder))


LAYOUT = Layout("mit67", "TrainImages.txt", 224, read, _fetch)
