"""Image files: of folders, of globs, and of labelled folders."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

from mate_edge.errors import DataError, ImageError, UsageError
from mate_edge.images import SUFFIXES
from mate_edge.names import some

KINDS = " ".join(sorted(SUFFIXES))
VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in [
        "mp4",
        "m4v",
        "mov",
        "mkv",
        "webm",
        "avi",
        "ts",
        "mts",
        "m2ts",
        "mpg",
        "mpeg",
        "wmv",
        "flv",
        "ogv",
        "3gp",
        "h264",
        "h265",
        "hevc",
        "mjpeg",
        "y4m",
    ]
)


def find_images(sources: Iterable[str]) -> Iterator[Path]:
    """Yield the image files that `sources` name, folders and globs expanded, each list sorted.

    A file named outright is yielded whatever its suffix, even when it is missing: to say so is the
    reader's part.

    Raises:
        UsageError: a folder without images, or a glob that matches nothing.
        ImageError: a folder that cannot be read.
    """
    for source in sources:
        path = Path(source)
        if is_folder(path):
            found = list(images_in(path))
            if not found:
                raise UsageError(f"the folder {source} holds no images ({KINDS})")
            yield from found
        elif not is_glob(source):
            yield path
        else:
            matches = match(source)
            if not matches:
                raise UsageError(f"nothing matches {source!r}")
            images = dict.fromkeys(  # a folder and what is in it may both be matched
                image
                for file in matches
                for image in (images_in(file) if file.is_dir() else [file])
            )
            if not images:
                raise UsageError(f"what {source!r} matches holds no images ({KINDS})")
            yield from images


def walk(folder: Path, suffixes: Set[str]) -> Iterator[Path | ImageError]:
    """Yield the files of such suffixes in a folder and those in it, sorted; links are followed.

    The names of one folder, and of those it lies in, are in memory. A folder that cannot be read
    yields its error. A file that has gone since it was listed is yielded all the same: to say so is
    the reader's part.

    Args:
        folder: to look into.
        suffixes: in lower case.
    """

    def is_wanted(name: str, is_dir: bool) -> bool:
        return is_dir or os.path.splitext(name)[1].lower() in suffixes

    for found in _tree(folder, is_wanted):
        if isinstance(found, ImageError):
            yield found
        elif not found[1] and (os.path.isfile(found[0]) or not os.path.exists(found[0])):
            yield found[0]


def _tree(
    folder: Path, is_wanted: Callable[[str, bool], bool]
) -> Iterator[tuple[Path, bool] | ImageError]:
    """Yield a folder and what it and the folders in it hold, sorted, and whether each is a folder.

    A link back to a folder that it lies in yields nothing: circles come to an end.

    Args:
        folder: to look into.
        is_wanted: says of a name, and whether it is a folder's, whether to go there.
    """
    levels: list[tuple[Path, Iterator[tuple[str, bool]]]] = [(folder, iter([("", True)]))]
    above: list[tuple[int, int]] = []  # device and inode of each level's folder, but the first's
    while levels:
        parent, names = levels[-1]
        name, is_dir = next(names, (None, False))
        if name is None:
            levels.pop()
            del above[-1:]
            continue
        path = parent / name
        if is_dir:
            try:
                status = os.stat(path)
                here = (status.st_dev, status.st_ino)
                if here in above:
                    continue
                with os.scandir(path) as entries:
                    all_in = ((entry.name, _leads_to_folder(entry)) for entry in entries)
                    found = sorted(one for one in all_in if is_wanted(*one))
            except OSError as error:
                yield ImageError(f"cannot read the folder {path}: {error.strerror}")
                continue
            above.append(here)
            levels.append((path, iter(found)))
        yield path, is_dir


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and those in it, sorted.

    Raises:
        ImageError: one of the folders cannot be read.
    """
    for found in walk(folder, SUFFIXES):
        if isinstance(found, ImageError):
            raise found
        yield found


def is_glob(source: str) -> bool:
    """Say whether it is a pattern, and no file of that very name."""
    return glob.has_magic(source) and not exists(Path(source))


def match(pattern: str) -> list[Path]:
    """Return what a pattern matches, sorted; `**` is any number of folders.

    No folder that lies in another one of them: what it holds is that one's, too.
    """
    found = [Path(path) for path in sorted({str(Path(path)) for path in _glob(pattern)})]
    folders = {path for path in found if is_folder(path)}
    if Path(pattern).name == "**":  # it matches all that lies in its folders
        return [path for path in found if path not in folders]
    return [path for path in found if path not in folders or folders.isdisjoint(path.parents)]


def _glob(pattern: str) -> Iterator[str]:
    """Yield what `glob.glob` does, whose own `**` follows links in circles."""
    before, *after = re.split(r"(?:^|(?<=/))\*\*(?:/+|$)", pattern, maxsplit=1)
    if not after:
        yield from glob.iglob(pattern)
        return
    for top in glob.iglob(before) if before else ("",):
        for found in _tree(Path(top), lambda name, is_dir: is_dir and not name.startswith(".")):
            if not isinstance(found, ImageError):
                yield from _glob(os.path.join(glob.escape(str(found[0])), after[0] or "*"))


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
        ImageError: a folder in it that cannot be read.
    """
    try:
        found = {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    labelled, missing = [], []
    for number, name in enumerate(classes):
        entry = found.pop(name.replace("/", "_"), None)
        images = [] if entry is None else list(images_in(entry))
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
    if not is_folder(folder):
        return False
    return any(file.suffix.lower() in SUFFIXES for file in folder.glob("*/**/*"))


def is_folder(path: Path) -> bool:
    """Say whether it is a folder that can be looked at."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be searched
        return False


def exists(path: Path) -> bool:
    """Say whether a path leads anywhere; a name that is too long does not."""
    try:
        return path.exists()
    except OSError:
        return False
