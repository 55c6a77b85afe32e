"""Data sets, splits and variations."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mate_edge.errors import DataError, ImageError, UsageError
from mate_edge.images import Preprocessing, crop, decode, open_image
from mate_edge.runs import Recipe
from mate_edge.train.data import fashion_mnist, load_dataset
from mate_edge.train.data.augment import PADDING, crop_resized, crop_shifted, flip_some
from mate_edge.train.data.dataset import channel_statistics
from mate_edge.train.data.images import FileImages, MemoryImages
from mate_edge.train.data.loader import make_loader
from mate_edge.train.data.splits import choose_some, split_off
from mate_edge.train.evaluate import spread
from mate_edge.train.loop import make_accelerator

Tree = dict[str, int]
RECIPE = Recipe(epochs=2, batch_size=32)


def make_folder(root: Path, tree: Tree, side: int = 40) -> Path:
    """Write `tree[folder]` pictures into each folder, of one brightness a class."""
    for number, (folder, count) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (side + image, side), (number * 9 + 1,) * 3).save(
                root / folder / f"{image}.png"
            )
    return root


# splits


def test_digits_are_split_into_three_parts_without_overlap() -> None:
    dataset = load_dataset("digits")
    parts = [dataset.train, dataset.val, dataset.test]
    counts = [len(part.labels) for part in parts]
    assert sum(counts) == 1797
    assert counts[2] == pytest.approx(360, abs=2)
    assert counts[1] == pytest.approx(144, abs=2)
    for part in parts:
        assert set(part.labels) == set(range(10))
    again = load_dataset("digits")
    assert np.array_equal(dataset.test.plain([0], dataset.preprocessing),
                          again.test.plain([0], again.preprocessing))  # fmt: skip


@given(counts=st.lists(st.integers(10, 60), min_size=2, max_size=6))
def test_a_split_takes_the_same_share_of_each_class(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = split_off(labels)
    assert chosen.sum() == pytest.approx(len(labels) / 10, abs=1)
    for label, count in enumerate(counts):
        assert abs(chosen[labels == label].sum() - count / 10) <= 1


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_a_split_leaves_an_image_of_every_class(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    assert set(labels[~split_off(labels)]) == set(range(len(counts)))


@given(data=st.data(), counts=st.lists(st.integers(1, 30), min_size=2, max_size=8))
def test_some_images_are_the_same_share_of_each_class(
    data: st.DataObject, counts: list[int]
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    count = data.draw(st.integers(len(counts), len(labels)))
    chosen = choose_some(labels, count)
    seats = np.bincount(labels[chosen], minlength=len(counts))
    assert seats.sum() == count
    assert seats.min() >= 1
    quotients = [(k + 0.5) / n for n, s in zip(counts, seats, strict=True) for k in range(1, s)]
    refused = [(s + 0.5) / n for n, s in zip(counts, seats, strict=True) if s < n]
    assert max(quotients, default=0) <= min(refused, default=1), "no seat would be fairer elsewhere"


def test_some_images_of_even_classes_are_as_many_of_each() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))
    assert np.bincount(labels[choose_some(labels, 120)]).tolist() == [12] * 10
    assert choose_some(labels, 500).all()
    uneven = np.repeat([0, 1], [900, 100])
    assert np.bincount(uneven[choose_some(uneven, 50)]).tolist() == [45, 5]


def test_more_images_only_add_to_fewer() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    smaller = choose_some(labels, 3)
    for count in range(4, 76):
        larger = choose_some(labels, count)
        assert larger[smaller].all()
        smaller = larger


def test_training_on_some_images_leaves_validation_test_and_preprocessing_whole() -> None:
    whole, some = load_dataset("digits"), load_dataset("digits", train_images=100)
    assert len(some.train.labels) == 100
    assert some.note == f"100 of {len(whole.train.labels)} training images are used"
    assert some.preprocessing == whole.preprocessing
    for one, other in ((whole.val, some.val), (whole.test, some.test)):
        assert one.identity() == other.identity()
    assert some.fingerprint() != whole.fingerprint()
    for count in (9, -1, len(whole.train.labels) + 1):
        with pytest.raises(UsageError, match=f"between 10, one a class, and .* not {count}"):
            load_dataset("digits", train_images=count)


def test_channel_statistics_are_mean_and_deviation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 5, 5, 3), np.uint8)
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 1, 2)), atol=1e-4)


# variations


def test_an_unshifted_crop_is_the_image_and_the_extremes_show_the_padding() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (3, 8, 8, 1), np.uint8)
    middle = np.full(3, 0.5)
    assert np.array_equal(crop_shifted(pixels, middle, middle), pixels)
    corner = crop_shifted(pixels, np.zeros(3), np.zeros(3))
    assert (corner[:, :PADDING] == 0).all()
    assert np.array_equal(corner[:, PADDING:, PADDING:], pixels[:, :-PADDING, :-PADDING])


def test_half_of_the_images_are_mirrored() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    flipped = flip_some(pixels, np.array([0.49, 0.5]))
    assert np.array_equal(flipped[0], pixels[0, :, ::-1])
    assert np.array_equal(flipped[1], pixels[1])


@settings(max_examples=30)
@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 99))
def test_a_random_part_of_any_image_gets_the_networks_size(
    width: int, height: int, seed: int
) -> None:
    preprocessing = Preprocessing(channels=1, size=16, resize=18, mean=(0.5,), std=(0.5,))
    image = Image.new("RGB", (width, height), (50, 50, 50))
    part = crop_resized(image, preprocessing, np.random.default_rng(seed))
    assert part.shape == (16, 16, 1)
    assert (part == 50).all()


def test_of_an_image_that_no_random_part_fits_the_centre_is_taken() -> None:
    largest: Any = SimpleNamespace(uniform=lambda low, high: high)
    pixels = np.zeros((30, 300), np.uint8)
    pixels[:, 130:170] = 255  # the centre, of 4:3
    preprocessing = Preprocessing(channels=1, size=8, resize=8, mean=(0,), std=(1,))
    assert (crop_resized(Image.fromarray(pixels), preprocessing, largest) == 255).all()


def test_a_variation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    memory = MemoryImages(rng.integers(0, 256, (20, 16, 16, 1), np.uint8), np.zeros(20, np.int64))
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (30, 40), np.uint8)).save(paths[-1])
    file = FileImages(tuple(paths), np.zeros(6, np.int64))
    preprocessing = Preprocessing(channels=1, size=16, resize=18, mean=(0.5,), std=(0.5,))
    for images in (memory, file):
        vary = partial(images.augmented, preprocessing=preprocessing, flip=True)
        first = vary([0, 1, 2], seed=0, epoch=0)
        assert np.array_equal(vary([4, 2], seed=0, epoch=0)[1], first[2])
        assert not np.array_equal(vary([0, 1, 2], seed=0, epoch=1), first)
        assert not np.array_equal(vary([0, 1, 2], seed=1, epoch=0), first)


def test_files_are_decoded_side_by_side_to_what_each_gives_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{number}.jpg" for number in range(40))
    for number, path in enumerate(paths):
        side = 200 if number % 4 == 0 else 30  # some take much longer
        Image.fromarray(rng.integers(0, 256, (side, side + 9, 3), np.uint8)).save(path)
    images = FileImages(paths, np.zeros(40, np.int64))
    preprocessing = Preprocessing(channels=3, size=16, resize=18, mean=(0,) * 3, std=(1,) * 3)
    indices = [*range(39, -1, -1), 7]
    found = images.plain(indices, preprocessing)
    assert found.dtype == np.uint8
    for i, pixels in zip(indices, found, strict=True):
        assert np.array_equal(pixels, crop(decode(paths[i]), preprocessing, "x"))
    for i in (8, 31):
        paths[i].write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"31\.jpg"):
        images.plain(indices, preprocessing)


def test_the_order_changes_from_epoch_to_epoch_under_accelerate_too() -> None:
    loader, order = make_loader(load_dataset("digits"), RECIPE, seed=0)
    prepared = make_accelerator("fp32").prepare(loader)
    labels = []
    for epoch in (0, 1, 0):
        order.epoch = epoch
        labels.append(next(iter(prepared))[1].tolist())
    assert labels[0] == labels[2] != labels[1]


def test_an_epoch_is_a_permutation_that_its_number_decides() -> None:
    dataset = load_dataset("digits")
    loader, order = make_loader(dataset, RECIPE, seed=3)
    first = list(order)
    indices = {index for _, index in first}
    used = len(dataset.train.labels) // RECIPE.batch_size * RECIPE.batch_size
    assert len(first) == len(indices) == used, "whole steps, and no image twice"
    assert indices < set(range(len(dataset.train.labels)))
    assert list(order) == first
    order.epoch = 1
    second = list(order)
    assert [i for _, i in second] != [i for _, i in first]
    images, labels = next(iter(loader))
    assert images.shape == (32, 1, 32, 32)
    assert labels.tolist() == dataset.train.labels[[i for _, i in second[:32]]].tolist()


def test_samples_are_spread_evenly() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 64).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(640, 400), (637, 401)], ids=["divisible", "odd"])
def test_a_part_of_a_file_is_that_of_the_upright_picture_however_small_it_is_decoded(
    kind: str, orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    planes = [200 * x, 200 * y, 100 * (x + y)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    written = Image.fromarray(np.stack(planes, -1).astype(np.uint8))
    more = {"save_all": True, "append_images": [written]} if kind == "MPO" else {}
    path = tmp_path / "0.image"
    written.save(path, kind, exif=exif, **more)
    upright = Image.fromarray(np.asarray(decode(path)))
    assert (upright.size == size) == (orientation != 6)
    preprocessing = Preprocessing(
        channels=3, size=24, resize=28, mean=(0,) * 3, std=(1,) * 3, reducing_gap=2.0
    )
    for seed in range(8):
        with open_image(path, "it") as image:
            found = crop_resized(image, preprocessing, np.random.default_rng(seed))
        expected = crop_resized(upright, preprocessing, np.random.default_rng(seed))
        assert np.abs(found.astype(int) - expected).max() <= 4
    plain = FileImages((path,), np.zeros(1, np.int64)).plain([0], preprocessing)[0]
    assert np.abs(plain.astype(int) - crop(upright, preprocessing)).max() <= 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 9_500, 9_500, 8, 0, 0, 0, 0)
    cut_off = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    preprocessing = Preprocessing(channels=3, size=8, resize=8, mean=(0,) * 3, std=(1,) * 3)
    image = open_image(cut_off, "huge")
    with pytest.raises(ImageError, match="huge has more than"):
        crop_resized(image, preprocessing, np.random.default_rng(0), "huge")


# evaluation sees what torchvision's transforms would show


@settings(max_examples=40, deadline=None)
@given(width=st.integers(20, 200), height=st.integers(20, 200), size=st.sampled_from([16, 17, 24]))
def test_scaling_and_cutting_are_torchvisions(width: int, height: int, size: int) -> None:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(values)
    preprocessing = Preprocessing(
        channels=3, size=size, resize=size + 3, mean=(0, 0, 0), std=(1, 1, 1)
    )
    cut = crop(image, preprocessing)
    whole = TF.resize(image, size + 3)
    across_first = TF.resize(TF.resize(image, (height, whole.width)), (whole.height, whole.width))
    assert np.array_equal(cut, TF.center_crop(across_first, size))
    # some versions of Pillow scale a tall image down first, which rounds otherwise
    steps = np.abs(cut.astype(int) - np.asarray(TF.center_crop(whole, size)))
    assert steps.max() <= 1


# folders of images


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
        ({}, "0 class folders"),
        ({"ant": 9}, "1 class folders"),
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


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("digit", None, "Did you mean digits?"),
        ("photos", None, "mit67, or name a folder of images, and there is none of this name here"),
        ("no/such/folder", None, "is no folder"),
        ("digits", 64, "has its own"),
    ],
)
def test_a_wrong_name_is_a_clear_error(name: str, size: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_dataset(name, size)


# named sets, in their own formats


def write_fashion(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        )
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">II", 2049, n) + labels.tobytes())
        )


def test_fashion_mnist_is_read_from_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    folder = tmp_path / "FashionMNIST" / "raw"
    write_fashion(folder, 200)
    dataset = load_dataset("fashion-mnist")
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [180, 20, 200]
    assert dataset.classes[9] == "ankle boot"
    assert dataset.preprocessing.channels == 1
    whole = (folder / "train-images-idx3-ubyte.gz").read_bytes()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(whole[:-50])
    with pytest.raises(DataError, match="damaged"):
        load_dataset("fashion-mnist")


@pytest.mark.parametrize(
    ("name", "folder", "files", "label_bytes", "names"),
    [
        ("cifar10", "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], 1,
         "batches.meta.txt"),
        ("cifar100", "cifar-100-binary", ["train.bin"], 2, "fine_label_names.txt"),
    ],
)  # fmt: skip
def test_cifar_is_read_from_its_binary_form(
    name: str,
    folder: str,
    files: list[str],
    label_bytes: int,
    names: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    place = tmp_path / folder
    place.mkdir()
    (place / names).write_text("cat\ndog\nowl\n")
    labels = np.arange(60, dtype=np.uint8) % 3
    planes = np.zeros((60, 3, 32, 32), np.uint8)
    planes[:, 0] = labels[:, None, None] * 10
    planes[:, 2, 0, 5] = 99
    prefix = np.full((60, label_bytes), 77, np.uint8)
    prefix[:, -1] = labels
    data = np.concatenate([prefix, planes.reshape(60, -1)], axis=1).tobytes()
    test = {"cifar10": "test_batch.bin", "cifar100": "test.bin"}[name]
    for file in (*files, test):
        (place / file).write_bytes(data)
    dataset = load_dataset(name)
    assert dataset.classes == ("cat", "dog", "owl")
    assert len(dataset.test.labels) == 60
    assert dataset.test.labels.tolist() == labels.tolist()
    image = dataset.test.plain([1], dataset.preprocessing)[0]
    assert image.shape == (32, 32, 3)
    assert image[7, 7].tolist() == [10, 0, 0]
    assert image[0, 5].tolist() == [10, 0, 99]
    (place / test).write_bytes(data[:-1])
    with pytest.raises(DataError, match="no multiple"):
        load_dataset(name)
    (place / names).write_text("cat\ndog\nowl\nfox\nyak\n")
    (place / test).write_bytes(data)
    with pytest.raises(DataError, match="no training image shows fox, yak, 2 of 5 classes"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_a_set_that_is_neither_here_nor_to_be_had_says_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    with pytest.raises(DataError, match=f"no network.*{tmp_path}"):
        load_dataset(name)


def test_the_statistics_of_many_images_are_those_of_all_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 3, 3, 2), np.uint8)
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 1, 2)), atol=1e-4)
