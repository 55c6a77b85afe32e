"""What training sees of an image, in which order, and what evaluation sees."""

from __future__ import annotations

import struct
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

from mate_edge.errors import ImageError
from mate_edge.images import Preprocessing, crop, decode, open_image
from mate_edge.runs import Recipe
from mate_edge.train.data import load_dataset
from mate_edge.train.data.augment import PADDING, crop_resized, crop_shifted, flip_some
from mate_edge.train.data.images import FileImages, MemoryImages
from mate_edge.train.data.loader import make_loader
from mate_edge.train.loop import make_accelerator

RECIPE = Recipe(epochs=2, batch_size=32)


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
