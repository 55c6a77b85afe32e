"""TinyImageNet (Le and Yang, Stanford CS 231N, 2015): 200 classes of 500 photographs, 64x64.

Its own validation images are the test split here, since its test images have no public labels. A
copy that is cut to fewer classes works too: `wnids.txt` says which ones count.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mate_edge.errors import DataError
from mate_edge.images import SUFFIXES
from mate_edge.train.data.dataset import Dataset, from_files
from mate_edge.train.data.images import FileImages
from mate_edge.train.data.layout import Layout
from mate_edge.train.data.lists import listed, read_lines, read_table

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def read(folder: Path, size: int) -> Dataset:
    """Read the set from `folder`, as `from_files` does: small images into memory.

    Raises:
        DataError: a list or a class is missing or damaged.
        ImageError: an image that cannot be read.
    """
    wnids = [line.strip() for line in read_lines(folder / "wnids.txt")]
    if len(wnids) < 2 or len(set(wnids)) < len(wnids):
        raise DataError(
            f"{folder / 'wnids.txt'} must list two different classes or more, one a line"
        )
    return from_files(
        _names(folder, wnids), _train(folder / "train", wnids), _test(folder / "val", wnids), size
    )


def _names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return each class's first name, with its wnid behind it where two classes share one."""
    words = dict(read_table(folder / "words.txt", 2, "\t"))
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    uses = Counter(names)
    return tuple(
        name if uses[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    )


def _train(folder: Path, wnids: list[str]) -> FileImages:
    pairs: list[tuple[Path, int]] = []
    for label, wnid in enumerate(wnids):
        images = listed(folder, wnid) / "images"
        found = sorted(path for path in images.glob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(
                f"{images} has no images, but wnids.txt lists this class: unpack it again, or "
                "remove the line"
            )
        pairs += [(path, label) for path in found]
    return FileImages.of(pairs)


def _test(folder: Path, wnids: list[str]) -> FileImages:
    annotations, images = folder / "val_annotations.txt", folder / "images"
    rows = read_table(annotations, 2, "\t")
    unlabelled = {path.name for path in images.glob("*")} - {name for name, _ in rows}
    if unlabelled:
        raise DataError(
            f"{annotations} has no line for {len(unlabelled)} of the images beside it, such as "
            f"{min(unlabelled)}: unpack the data set again"
        )
    indices = {wnid: label for label, wnid in enumerate(wnids)}
    if missing := set(wnids) - {wnid for _, wnid in rows}:
        raise DataError(
            f"{annotations} has no image of {min(missing)}, but wnids.txt lists this class: unpack "
            "it again, or remove the line"
        )
    return FileImages.of(
        (listed(images, name), indices[wnid]) for name, wnid in rows if wnid in indices
    )


def _fetch(folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(URL, str(folder.parent), md5=MD5)


LAYOUT = Layout("tiny-imagenet-200", "wnids.txt", 64, read, _fetch, max_size=224)
