"""Stanford Dogs (Khosla et al., FGVC workshop at CVPR 2011): 20,580 photographs of 120 breeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from mate_edge.errors import DataError
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.layout import Layout
from mate_edge.train.data.lists import from_names
from mate_edge.train.data.places import fetch_tar

URL = "http://vision.stanford.edu/aditya86/ImageNetDogs"
PROGRAM = """
import sys
sys.path = [folder for folder in sys.path if folder]
import json, numpy, scipy.io
found = scipy.io.loadmat(sys.argv[1], appendmat=False, squeeze_me=True)["file_list"]
print(json.dumps(numpy.atleast_1d(found).tolist()))
"""
"""In a process of its own, since SciPy's reader crashes on some damaged files."""


def read(folder: Path, size: int) -> Dataset:
    """Read the set from `folder`, for a network whose input is `size` pixels wide and high.

    Raises:
        DataError: a list or an image is missing, or a list is damaged.
    """
    train, test = (_read_mat(folder / f"{split}_list.mat") for split in ("train", "test"))
    return from_names(folder / "Images", train, test, size, _title)


def _read_mat(path: Path) -> list[str]:
    """Return `file_list`, a column of strings such as `n02085620-Chihuahua/n02085620_5927.jpg`."""
    if not path.is_file():
        raise DataError(f"{path} is missing: unpack lists.tar of the data set beside Images/")
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return msgspec.json.decode(done.stdout, type=list[str])
    except msgspec.DecodeError:
        reason = (done.stderr.splitlines() or ["no list of names"])[-1]
        raise DataError(f"{path} is damaged ({reason}): unpack lists.tar again") from None


def _title(folder: str) -> str:
    return folder.split("-", 1)[-1].replace("_", " ")


def _fetch(folder: Path) -> None:
    for archive in ("images.tar", "lists.tar"):
        fetch_tar(f"{URL}/{archive}", folder)


LAYOUT = Layout("stanford-dogs", "train_list.mat", 224, read, _fetch)
