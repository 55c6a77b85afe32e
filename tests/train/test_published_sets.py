"""Data sets in files, read in the layout that their authors published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mate_edge.errors import DataError, UsageError
from mate_edge.train.data import load_dataset


def write_picture(path: Path, level: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level,) * 3).save(path, "JPEG")


WNIDS = ("n02", "n01", "n07")


def write_tiny(root: Path) -> Path:
    """Three classes of 20 training and 4 validation images; class k has the brightness 50 k."""
    folder = root / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(20):
            write_picture(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", label * 50)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("a_0.JPEG\t0\t1\t2\t3\n")
    lines = []
    for number in range(12):
        write_picture(folder / "val" / "images" / f"val_{number}.JPEG", number % 3 * 50)
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text(
        "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn07\tcrane\n"
    )
    return folder


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_tiny_imagenet_tests_on_its_validation_images_and_validates_on_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path)
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    dataset = load_dataset("tinyimagenet")
    assert dataset.classes == ("crane (n02)", "goldfish", "crane (n07)")
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [54, 6, 12]
    assert dataset.test.labels.tolist() == [0, 1, 2] * 4
    assert (dataset.arch, dataset.recipe.epochs) == ("resnet18", 200)
    assert (dataset.preprocessing.size, dataset.preprocessing.resize) == (64, 64)
    for split in (dataset.train, dataset.val, dataset.test):
        pixels = split.plain(range(len(split.labels)), dataset.preprocessing)
        levels = pixels.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, split.labels * 50, atol=2)


def test_a_copy_of_tiny_imagenet_is_recognised_by_its_path_at_any_size(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path).rename(tmp_path / "mine")
    dataset = load_dataset(str(folder), 32)
    assert dataset.classes[1] == "goldfish"
    assert dataset.train.plain([0], dataset.preprocessing).shape == (1, 32, 32, 3)
    with pytest.raises(UsageError, match="between 16 and 224 pixels, not 225"):
        load_dataset(str(folder), 225)


def test_fewer_lines_of_wnids_are_fewer_classes(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    (folder / "wnids.txt").write_text("n07\nn01\n")
    dataset = load_dataset(str(folder))
    assert dataset.classes == ("crane", "goldfish")
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [36, 4, 8]
    assert dataset.test.labels.tolist() == [1, 0] * 4


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("wnids.txt", "n02\nn01\n", "", "two different classes or more"),
        ("wnids.txt", "n02", "n01", "two different classes or more"),
        ("wnids.txt", "n02", "n03", "n03/images has no images"),
        ("wnids.txt", "n02", "../train/n02", "names a file outside"),
        ("words.txt", "n01\t", "n01 ", "line 2 .* 1 of 2 columns"),
        ("val/val_annotations.txt", "val_3.JPEG\tn02\t0\t0\t63\t63\n", "",
         r"no line for 1 of the images .* val_3.JPEG"),
        ("val/val_annotations.txt", "val_3.JPEG\tn02\t0\t0\t63\t63\n", "val_3.JPEG\n",
         "line 4 .* 1 of 2 columns"),
        ("val/val_annotations.txt", "\tn07\t", "\tn09\t", "no image of n07"),
        ("val/val_annotations.txt", "\tn07\t", "\tn07\t0\n/etc/passwd\tn07\t", "outside"),
    ],
)  # fmt: skip
def test_a_damaged_list_of_tiny_imagenet_is_a_clear_error(
    file: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path)
    replace_in(folder / file, old, new)
    with pytest.raises(DataError, match=says):
        load_dataset(str(folder))


@pytest.mark.parametrize("file", ["words.txt", "val/val_annotations.txt"])
def test_a_missing_list_is_named(file: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        load_dataset(str(folder))


@pytest.mark.parametrize("name", ["tinyimagenet"])
def test_a_set_in_files_that_is_not_to_be_had_says_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=f"no network.*{tmp_path}.*--data"):
        load_dataset(name)
