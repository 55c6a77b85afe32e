"""What the user names to be classified: images, folders and globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from mate_edge.errors import UsageError
from mate_edge.images import SUFFIXES


def find_images(sources: Iterable[str]) -> Iterator[Path]:
    """Yield the image files that `sources` name, folders and globs expanded, each list sorted.

    A file named outright is yielded whatever its suffix, even when it is missing: to say so is the
    reader's part.

    Raises:
        UsageError: a folder without images, or a glob that matches nothing.
    """
    for source in sources:
        path = Path(source)
        if _is_folder(path):
            found = _images_in(path)
            if not found:
                kinds = " ".join(sorted(SUFFIXES))
                raise UsageError(f"the folder {source} holds no images ({kinds})")
            yield from found
        elif not glob.has_magic(source) or _exists(path):
            yield path
        else:
            matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
            if not matches:
                raise UsageError(f"nothing matches {source!r}")
            for match in matches:
                yield from _images_in(match) if match.is_dir() else [match]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be searched
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
