"""A folder of images, one subfolder a class: `DIR/train/CLASS/*.jpg`, `DIR/val`, `DIR/test`.

Without `train/` the classes lie in DIR itself. Without `val/`, a tenth of the training images
validates. Without `test/`, `val/` is the test split (as is usual with ImageNet), or else another
tenth of the training images is. `val/` and `test/` may lack classes, as happens with rare ones.
What begins with a dot, such as a notebook's checkpoints, is nobody's image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mate_edge.errors import DataError, ImageError
from mate_edge.images import FORMATS, SUFFIXES, decode
from mate_edge.names import some
from mate_edge.train.data.dataset import Dataset, from_files
from mate_edge.train.data.images import FileImages
from mate_edge.train.data.splits import FEWEST, split_off

SIZE = 224
SPLITS = {
    "train": ("train", "training", "trainset", "train_set"),
    "val": ("val", "valid", "validation", "valset", "val_set"),
    "test": ("test", "testing", "testset", "test_set"),
}
"""What people call the folder of a split, in lower case; only the first name is one here."""


LOOKED_AT = 100
"""The headers of about so many images are read, so that a large folder loads as fast as before."""
MANY = 0.1
"""If so large a share of images is too small, it is said."""


def load(root: Path, size: int) -> Dataset:
    """Load a folder of images for a network whose input is `size` pixels wide and high.

    Raises:
        DataError: fewer than two classes, a class folder without images, a split with a class that
            training does not have, or too few images to split.
        ImageError: an image that cannot be read.
    """
    top = root / "train" if (root / "train").is_dir() else root
    if top == root and any((root / name).is_dir() for name in ("val", "test")):
        raise DataError(f"{root} has val/ or test/ but no train/: put the training images there")
    classes = _class_folders(top)
    _check_names(root, top)
    if len(classes) < 2:
        raise DataError(
            f"{top} needs two class folders or more, and has {len(classes)}: put each class's "
            "images into a folder of its own"
        )
    train = _scan(top, classes, classes)
    notes = [*_note_gaps(classes), *_note_loose(top), *_note_small(train.paths, size)]
    splits = {}
    for name in ("val", "test"):
        if top != root and (root / name).is_dir():
            found = _class_folders(root / name)
            notes += _note_missing(root / name, found, classes)
            splits[name] = _scan(root / name, found, classes)
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append("val/ serves as the test split, since there is no test/")
    train, split_notes = _split_off_missing(top, train, splits)
    notes += split_notes
    return from_files(classes, train, splits["test"], size, splits["val"]).noting(*notes)


def _split_off_missing(
    top: Path, train: FileImages, splits: dict[str, FileImages]
) -> tuple[FileImages, list[str]]:
    """Add the splits that are missing, of training images; return the others, and what was done.

    Raises:
        DataError: there are too few.
    """
    wanted = [name for name in ("test", "val") if name not in splits]
    images, notes = len(train.labels), []
    for name in wanted:
        chosen = split_off(train.labels)
        if not chosen.any():
            raise DataError(
                f"{top} has {images} images, too few to split off {' and '.join(wanted)}: it takes "
                f"{FEWEST + len(wanted) - 1} or more, {len(wanted) + 1} of each class; add some, "
                "or make train/, val/ and test/ yourself"
            )
        splits[name], train = train.pick(chosen), train.pick(~chosen)
        notes.append(f"{chosen.sum()} of {len(chosen)} training images are split off as {name}")
    return train, notes


def _class_folders(top: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in top.iterdir() if e.is_dir() and not e.name.startswith(".")))


def as_numbers(classes: Sequence[str]) -> list[int]:
    """Return the classes' names as whole numbers, or nothing where one is none."""
    return [int(name) for name in classes] if all(n.isdecimal() for n in classes) else []


def _note_gaps(classes: tuple[str, ...]) -> list[str]:
    """Say which numbers are missing where the classes' names count; ids are too far apart."""
    numbers = as_numbers(classes)
    if not numbers or max(numbers) - min(numbers) >= 2 * len(numbers):
        return []
    gaps = sorted(set(range(min(numbers), max(numbers))) - set(numbers))
    missing = some([str(number) for number in gaps])
    return [f"the classes are numbers, and there is no folder {missing}"] if gaps else []


def _note_loose(top: Path) -> list[str]:
    """Name images that lie beside the class folders."""
    loose = sorted(
        entry.name
        for entry in top.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )
    return [f"images outside the class folders are left out: {some(loose)}"] if loose else []


def _note_small(images: Sequence[Path], size: int) -> list[str]:
    """Say so where many images are much smaller than the network's input, by some of them."""
    looked_at = images[:: max(1, len(images) // LOOKED_AT)]
    small = sum(_shorter_side(image) < size / 2 for image in looked_at)
    if small < MANY * len(looked_at):
        return []
    return [
        f"{small} of {len(looked_at)} images looked at are smaller than half of --size {size} and "
        "are scaled up: a smaller --size shows as much, and trains faster"
    ]


def _shorter_side(path: Path) -> float:
    """Return the shorter side in pixels, by the file's header; infinity where that is damaged."""
    if not path.is_file():  # opening a pipe would wait for ever
        return math.inf
    try:
        with Image.open(path, formats=FORMATS) as image:
            return float(min(image.size))
    except Exception:  # as in `decode`, which says what is wrong when the image is needed
        return math.inf


def _check_names(root: Path, top: Path) -> None:
    """Refuse folders that are a split by their name and would be a class, or nothing.

    Raises:
        DataError: with the name that they should have.
    """
    otherwise = f", or, if it is a class, put all classes into {root}/train" if top == root else ""
    for name in _class_folders(root):
        meant = next((split for split, names in SPLITS.items() if name.lower() in names), None)
        if meant is not None and name != meant:
            raise DataError(f"{root / name} looks like a split: rename it to {meant}{otherwise}")


def _note_missing(top: Path, found: tuple[str, ...], classes: tuple[str, ...]) -> list[str]:
    """Say which classes a split lacks.

    Raises:
        DataError: it has none at all, or some that training does not have.
    """
    if not found:
        raise DataError(
            f"{top} has no class folders: put each class's images into a folder of its own, or "
            "remove it"
        )
    if unknown := [name for name in found if name not in classes]:
        raise DataError(
            f"{top} has classes that the training images have not: {', '.join(unknown[:5])}"
        )
    missing = [name for name in classes if name not in found]
    if not missing:
        return []
    return [f"{top.name}/ lacks {len(missing)} of {len(classes)} classes, such as {missing[0]}"]


def _scan(top: Path, found: tuple[str, ...], classes: tuple[str, ...]) -> FileImages:
    pairs: list[tuple[Path, int]] = []
    for name in found:
        images = sorted(
            file
            for file in (top / name).rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(top / name).parts)
        )
        if not any(_is_readable(image) for image in images):
            raise DataError(
                f"the class folder {top / name} has no readable image (of {len(images)} files): "
                "add some or remove the folder"
            )
        label = classes.index(name)
        pairs += [(image, label) for image in images]
    return FileImages.of(pairs)


def _is_readable(path: Path) -> bool:
    try:
        decode(path)
    except ImageError:
        return False
    return True
