"""Data sets in files, in the layout that their authors published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mate_edge.errors import UsageError
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.places import data_folder, download

MIN_SIZE, MAX_SIZE = 16, 1024  # pixels


@dataclass(frozen=True)
class Layout:
    """How a published data set is found, recognised and read.

    Attributes:
        folder: its name in the data folder.
        marker: a file in it that tells it from others.
        size: of the network's input in pixels, when the user gives none.
        read: from a folder and a size to the data set.
        fetch: downloads it, so that the marker appears in the folder given.
        max_size: the largest size that may be given.
    """

    folder: str
    marker: str
    size: int
    read: Callable[[Path, int], Dataset]
    fetch: Callable[[Path], object]
    max_size: int = MAX_SIZE

    def recognises(self, folder: Path) -> bool:
        """Say whether `folder` holds this data set."""
        return (folder / self.marker).is_file()

    def load(self, name: str, folder: Path | None, size: int | None) -> Dataset:
        """Load the data set from `folder`, or from the data folder, downloading it if need be.

        Raises:
            UsageError: a size out of range.
            DataError: not found and not downloadable, or damaged.
        """
        size = check_size(self.size if size is None else size, self.max_size)
        return self.read(folder or self._find(name), size)

    def _find(self, name: str) -> Path:
        folder = data_folder() / self.folder
        if not self.recognises(folder):
            download(
                name,
                folder,
                lambda: self.recognises(folder),
                lambda into: self.fetch(into / self.folder),
                f"put it where {folder / self.marker} exists, or give its folder to --data",
            )
        return folder


def check_size(size: int, most: int = MAX_SIZE) -> int:
    """Return `size`, the network's input in pixels.

    Raises:
        UsageError: out of range.
    """
    if not MIN_SIZE <= size <= most:
        raise UsageError(f"--size must lie between {MIN_SIZE} and {most} pixels, not {size}")
    return size
