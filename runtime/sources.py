"""What the user names to be classified: images, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mate_edge.errors import DataError, UsageError
from mate_edge.images import SUFFIXES
from mate_edge.names import some


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


def find_labelled(
    folder: Path, classes: Sequence[str], say: Callable[[str], object]
) -> list[tuple[Path, int]]:
    """Return the images of DIR/CLASS/... with the number of their class, sorted.

    A folder is a class's when it has its name; a slash of a name is an underscore in a folder's.

    Args:
        folder: DIR.
        classes: of the bundle.
        say: told which classes have no images, and which folders are no class.

    Raises:
        DataError: no such folder, or no image of any class in it.
    """
    try:
        found = {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    labelled, missing = [], []
    for number, name in enumerate(classes):
        entry = found.pop(name.replace("/", "_"), None)
        images = [] if entry is None else _images_in(entry)
        labelled += [(image, number) for image in images]
        if not images:
            missing.append(name)
    if not labelled:
        holds = f"the folders {some(sorted(found))}" if found else "no other folders"
        raise DataError(
            f"{folder} holds no images of the bundle's classes ({some(classes)}): it must have a "
            f"folder for each, and has {holds}"
        )
    if missing:
        say(f"{len(missing)} of {len(classes)} classes have no images: {some(missing)}")
    if found:
        say(f"folders that are no class of the bundle are left out: {some(sorted(found))}")
    return labelled


def holds_images(folder: Path) -> bool:
    """Say whether a folder holds folders with images."""
    if not _is_folder(folder):
        return False
    return any(file.suffix.lower() in SUFFIXES for file in folder.glob("*/**/*"))


def shown(path: str | Path) -> str:
    """Return a path as text that can be written; a byte that is no UTF-8 becomes a mark."""
    return os.fsencode(path).decode("utf-8", "replace")


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
