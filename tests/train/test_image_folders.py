"""Data sets that are folders of images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mate_edge.errors import DataError, ImageError
from mate_edge.train.data import load_dataset
from mate_edge.train.data.splits import split_off

Tree = dict[str, int]


def make_folder(root: Path, tree: Tree, side: int = 40) -> Path:
    """Write `tree[folder]` pictures into each folder, of one brightness a class."""
    for number, (folder, count) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (side + image, side), (number * 9 + 1,) * 3).save(
                root / folder / f"{image}.png"
            )
    return root


def test_a_folder_with_three_splits_keeps_them(tmp_path: Path) -> None:
    tree = {f"{split}/{name}": 12 for split in ("train", "val", "test") for name in ("ant", "bee")}
    dataset = load_dataset(str(make_folder(tmp_path, tree)), 32)
    assert dataset.classes == ("ant", "bee")
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [24, 24, 24]
    assert dataset.note == ""
    assert dataset.preprocessing.size == 32


def test_without_a_test_folder_val_is_the_test_split(tmp_path: Path) -> None:
    tree = {"train/ant": 20, "train/bee": 40, "val/ant": 5, "val/bee": 5}
    dataset = load_dataset(str(make_folder(tmp_path, tree)), 32)
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [54, 6, 10]
    assert "val/ serves as the test split" in dataset.note


def test_folders_in_train_are_classes_whatever_their_names(tmp_path: Path) -> None:
    tree = {"train/test": 20, "train/training": 20}
    assert load_dataset(str(make_folder(tmp_path, tree)), 32).classes == ("test", "training")


def test_what_begins_with_a_dot_is_no_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"ant": 20, "bee": 20, "bee/.ipynb_checkpoints": 20})
    (root / "ant" / "._0.png").write_bytes(b"what macOS leaves")
    dataset = load_dataset(str(root), 32)
    assert sum(len(s.labels) for s in (dataset.train, dataset.val, dataset.test)) == 40


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_folder(tmp_path, {"0": 1, "1": 40, "3": 15})), 32)
    assert dataset.classes == ("0", "1", "3")
    assert (dataset.train.labels == 0).sum() == 1


def test_images_that_are_blown_up_are_noted_by_some_of_them(tmp_path: Path) -> None:
    tree = {f"{split}/{name}": 9 for split in ("train", "val", "test") for name in ("ant", "bee")}
    root = make_folder(tmp_path, tree, side=40)
    for size, noted in ((80, False), (81, True), (224, True)):
        told = (
            f"18 of 18 images looked at are smaller than half of --size {size} and are scaled up: "
            "a smaller --size shows as much, and trains faster"
        )
        assert load_dataset(str(root), size).note == (told if noted else "")
    for image in sorted((root / "train").rglob("*.png"))[:-1]:
        Image.new("L", (300, 200)).save(image)
    assert load_dataset(str(root), 224).note == "", "one of many is no reason"


def test_of_a_large_folder_a_part_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mate_edge.train.data.folder.LOOKED_AT", 5)
    tree = {f"{split}/{name}": 12 for split in ("train", "val", "test") for name in ("ant", "bee")}
    dataset = load_dataset(str(make_folder(tmp_path, tree)), 224)
    assert dataset.note.startswith("6 of 6 images looked at")


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["0", "1", "2"], ""),
        (["00", "01", "10"], ""),
        (["0", "1", "10", "ant"], ""),
        (["117", "199", "431"], ""),  # ids, which count nothing
        (["0", "1", "3"], "the classes are numbers, and there is no folder 2"),
        ([*map(str, range(12))], ""),
    ],
)
def test_of_classes_that_count_gaps_are_noted(names: list[str], note: str, tmp_path: Path) -> None:
    tree = {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in names}
    dataset = load_dataset(str(make_folder(tmp_path, tree)), 32)
    assert dataset.classes == tuple(sorted(names)), "no run's order changes"
    assert dataset.note == note


def test_more_than_ten_times_the_images_of_the_smallest_class_are_noted(tmp_path: Path) -> None:
    tree = {"train/ant": 1, "train/bee": 10, "val/ant": 1, "val/bee": 1, "test/ant": 1,
            "test/bee": 1}  # fmt: skip
    assert load_dataset(str(make_folder(tmp_path / "ten", tree)), 32).note == ""
    tree["train/bee"] = 11
    assert load_dataset(str(make_folder(tmp_path / "eleven", tree)), 32).note == (
        "the classes are unbalanced: 11 training images of bee, 1 of ant"
    )


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    tree = dict.fromkeys(("train/ant", "train/bee", "val/ant", "test/bee"), 2)
    folder = make_folder(tmp_path, tree)
    (folder / "train" / "notes.txt").touch()
    assert "left out" not in load_dataset(str(folder), 32).note
    shutil.copy(next((folder / "train" / "ant").iterdir()), folder / "train" / "stray.png")
    note = load_dataset(str(folder), 32).note
    assert "images outside the class folders are left out: stray.png" in note


def test_validation_and_test_folders_may_lack_rare_classes(tmp_path: Path) -> None:
    tree = {"train/ant": 9, "train/bee": 9, "train/cat": 9, "val/bee": 3, "test/ant": 2,
            "test/cat": 4}  # fmt: skip
    dataset = load_dataset(str(make_folder(tmp_path, tree)), 32)
    assert dataset.val.labels.tolist() == [1] * 3
    assert dataset.test.labels.tolist() == [0] * 2 + [2] * 4
    assert dataset.note == (
        "val/ lacks 2 of 3 classes, such as ant; test/ lacks 1 of 3 classes, such as bee"
    )


def test_a_plain_folder_of_classes_is_split_in_three(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_folder(tmp_path, {"ant": 50, "bee": 50})))
    counts = [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)]
    assert sum(counts) == 100
    assert counts[0] == pytest.approx(81, abs=1)
    assert "10 of 100 training images are split off as test" in dataset.note
    assert "9 of 90 training images are split off as val" in dataset.note
    assert dataset.preprocessing.size == 224
    batch = dataset.train.plain([0, 1], dataset.preprocessing)
    assert batch.shape == (2, 224, 224, 3)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "two class folders or more, and has 0"),
        ({"ant": 9}, "two class folders or more, and has 1"),
        ({"ant": 9, "bee": 0}, "bee has no readable image"),
        ({"ant": 3, "bee": 3}, "has 6 images, too few to split off test and val: it takes 7 or"),
        ({"train/a": 3, "train/b": 2, "test/a": 1}, "5 images, .* split off val: it takes 6 or"),
        ({"train/a": 3, "train/b": 2, "val/a": 1}, "5 images, .* split off val: it takes 6 or"),
        (dict.fromkeys("abcdefgh", 1), "has 8 images, .* 7 or more, 3 of each class; add some, or"),
        ({"train/a": 9, "train/b": 9, "val/a": 1, "val/c": 1}, "training images have not: c"),
        ({"train/a": 9, "train/b": 9, "val/a": 1, "val/b": 0}, "no readable image"),
        ({"train/a": 9, "train/b": 9, "val": 2}, "val has no class folders"),
        ({"val/a": 9, "val/b": 9, "test/a": 9, "test/b": 9}, "no train/"),
        ({"Training/a": 9, "Testing/a": 9}, "Testing looks like a split: rename it to test, or"),
        ({"train/a": 9, "train/b": 9, "valid/a": 9}, "valid looks like a split: rename it to val$"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_a_clear_error(
    tree: Tree, says: str, tmp_path: Path
) -> None:
    make_folder(tmp_path / "set", tree)
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=says):
        load_dataset(str(tmp_path / "set"))


@given(counts=st.lists(st.integers(3, 9), min_size=2, max_size=5).filter(lambda n: sum(n) >= 7))
def test_as_many_images_as_a_message_asks_for_are_enough(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for _ in ("test", "val"):
        chosen = split_off(labels)
        assert chosen.any()
        labels = labels[~chosen]


def test_the_splits_do_not_depend_on_the_order_of_a_set(tmp_path: Path) -> None:
    make_folder(tmp_path, {"ant": 30, "bee": 30})
    program = (
        "from mate_edge.train.data import load_dataset\n"
        f"print(load_dataset({str(tmp_path)!r}).fingerprint())"
    )
    found = set()
    for seed in ("0", "1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_a_class_of_broken_files_and_one_broken_file_are_clear_errors(tmp_path: Path) -> None:
    make_folder(tmp_path, {"ant": 20, "bee": 20})
    for image in (tmp_path / "bee").iterdir():
        image.write_bytes(b"broken")
    with pytest.raises(DataError, match="bee has no readable image"):
        load_dataset(str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "bee" / "00.png")
    with pytest.raises(ImageError, match=r"bee/\d+\.png.* more files fail"):
        load_dataset(str(tmp_path), 32)
