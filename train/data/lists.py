"""The text files in which published data sets list their images: read without trust."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

from mate_edge import files
from mate_edge.errors import DataError
from mate_edge.train.data.dataset import Dataset, from_files
from mate_edge.train.data.images import FileImages


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list that say something.

    Raises:
        DataError: missing, or not text.
    """
    data = files.read_bytes(path, files.MAX_JSON_BYTES, DataError)
    try:
        return [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error}): unpack the data set again") from None


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """Return the first `columns` columns of each line, split at `separator` (None: white space).

    Raises:
        DataError: missing, not text, or a line with fewer columns.
    """
    rows = [line.split(separator) for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) < columns:
            raise DataError(
                f"{path} is damaged: line {number} that says something has {len(row)} of {columns} "
                "columns; unpack the data set again"
            )
    return [row[:columns] for row in rows]


def listed(folder: Path, name: str) -> Path:
    """Return the path of a file that a list names, relative to `folder`.

    Raises:
        DataError: the name leads out of the folder.
    """
    path = PureWindowsPath(name)  # knows both separators and drives
    if path.anchor or ".." in path.parts or not path.parts or "\0" in name:
        raise DataError(f"a list names a file outside {folder}: {name!r}; do not use this copy")
    return folder / name


def from_names(
    images: Path, train: Sequence[str], test: Sequence[str], size: int, title: Callable[[str], str]
) -> Dataset:
    """Make a data set of listed images; a tenth of the training images becomes validation.

    Args:
        images: the folder that the names are relative to.
        train: `FOLDER/FILE` of each training image, one folder a class.
        test: likewise.
        size: of the network's input, pixels.
        title: from a folder's name to that of the class.

    Raises:
        DataError: a listed file that is missing or outside `images`, or fewer than two classes.
    """
    folders = sorted({_folder(name) for name in train})
    if len(folders) < 2:
        raise DataError(f"{images.parent} lists {len(folders)} classes: unpack the data set again")
    if unknown := {_folder(name) for name in test} - set(folders):
        raise DataError(
            f"{images.parent} lists no training image of {min(unknown)}: unpack it again"
        )
    labels = {folder: label for label, folder in enumerate(folders)}
    training, testing = (
        FileImages.of((listed(images, name), labels[_folder(name)]) for name in names)
        for names in (train, test)
    )
    missing = [path for path in training.paths + testing.paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is listed but missing, as are {len(missing) - 1} more: unpack the data "
            "set again"
        )
    return from_files(tuple(title(folder) for folder in folders), training, testing, size)


def _folder(name: str) -> str:
    return name.split("/")[0]
