"""The text files in which published data sets list their images: read without trust."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from mate_edge import files
from mate_edge.errors import DataError


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
