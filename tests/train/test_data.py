"""Data sets by name, and the formats of those whose images have one size."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from mate_edge.errors import DataError, UsageError
from mate_edge.train.data import fashion_mnist, load_dataset


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
