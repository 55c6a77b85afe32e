"""Data sets in files, read in the layout that their authors published."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mate_edge.errors import DataError, UsageError
from mate_edge.train.data import load_dataset
from mate_edge.train.data.images import FileImages, MemoryImages


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


def test_tiny_imagenet_scaled_up_stays_in_its_files(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    assert isinstance(load_dataset(str(folder), 127).train, MemoryImages)
    dataset = load_dataset(str(folder), 128)
    for split in (dataset.train, dataset.val, dataset.test):
        assert isinstance(split, FileImages)
        levels = split.plain(range(len(split.labels)), dataset.preprocessing).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, split.labels * 50, atol=2)


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


# fine-grained sets: birds, dogs, rooms


CLASSES = {
    "cub200": ("001.Black_footed_Albatross", "002.Laysan_Albatross"),
    "stanford-dogs": ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"),
    "mit67": ("airport_inside", "zoo"),
}
TITLES = {
    "cub200": ("Black footed Albatross", "Laysan Albatross"),
    "stanford-dogs": ("Chihuahua", "Japanese spaniel"),
    "mit67": ("airport inside", "zoo"),
}
PLACES = {"cub200": "CUB_200_2011", "stanford-dogs": "stanford-dogs", "mit67": "mit67"}
TRAIN, TEST = 20, 5


def write_lists(name: str, folder: Path, train: list[str], test: list[str]) -> None:
    if name == "stanford-dogs":
        for split, names in (("train", train), ("test", test)):
            column = np.empty((len(names), 1), object)
            column[:, 0] = names
            savemat(folder / f"{split}_list.mat", {"file_list": column})
    elif name == "mit67":
        (folder / "TrainImages.txt").write_text("\n".join(train))
        (folder / "TestImages.txt").write_text("\n".join(test) + "\n")
    else:
        numbered = list(enumerate(test + train, start=1))
        (folder / "images.txt").write_text("".join(f"{i} {image}\n" for i, image in numbered))
        (folder / "train_test_split.txt").write_text(
            "".join(f"{i} {int(i > len(test))}\n" for i, _ in numbered)
        )


def write_fine_grained(name: str, root: Path) -> tuple[Path, list[str], list[str]]:
    """Two classes, dark and bright, of `TRAIN` + `TEST` images; more images than the lists name."""
    folder = root / PLACES[name]
    images = folder / ("images" if name == "cub200" else "Images")
    train, test = [], []
    for label, kind in enumerate(CLASSES[name]):
        for number in range(TRAIN + TEST + 1):
            write_picture(images / kind / f"{number}.jpg", 100 + 100 * label, side=30)
        train += [f"{kind}/{number}.jpg" for number in range(TRAIN)]
        test += [f"{kind}/{number}.jpg" for number in range(TRAIN, TRAIN + TEST)]
    write_lists(name, folder, train, test)
    return folder, train, test


@pytest.mark.parametrize("name", CLASSES)
def test_a_fine_grained_set_keeps_its_own_split_and_gets_its_usual_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = write_fine_grained(name, tmp_path)
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    dataset = load_dataset(name)
    assert dataset.classes == TITLES[name]
    assert [len(s.labels) for s in (dataset.train, dataset.val, dataset.test)] == [
        2 * TRAIN * 9 // 10, 2 * TRAIN // 10, 2 * TEST
    ]  # fmt: skip
    for split in (dataset.train, dataset.val, dataset.test):
        pixels = split.plain(range(len(split.labels)), dataset.preprocessing)
        assert pixels.shape[1:] == (224, 224, 3)
        np.testing.assert_allclose(pixels.mean((1, 2, 3)), 100 + 100 * split.labels, atol=2)
    assert dataset.preprocessing.resize == 256
    recipe = dataset.recipe
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (
        0.1,
        1e-4,
        32,
        200,
    )
    assert [round(m * recipe.epochs) for m in recipe.milestones] == [100, 150]

    copy = folder.rename(tmp_path / "copy")
    assert load_dataset(str(copy), 64).classes == TITLES[name], "recognised by its path"


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("../secret/1.jpg", "names a file outside"),
        ("/etc/1.jpg", "names a file outside"),
        ("C:/1.jpg", "names a file outside"),
        ("{kind}/../../1.jpg", "names a file outside"),
        ("{kind}/gone.jpg", "gone.jpg is listed but missing"),
        ("other/1.jpg", "listed but missing"),
    ],
)
def test_a_listed_file_must_lie_in_the_set(
    name: str, added: str, says: str, tmp_path: Path
) -> None:
    folder, train, test = write_fine_grained(name, tmp_path)
    write_lists(name, folder, [*train, added.format(kind=CLASSES[name][0])], test)
    with pytest.raises(DataError, match=says):
        load_dataset(str(folder))


@pytest.mark.parametrize("name", CLASSES)
def test_lists_of_one_class_or_of_a_class_never_trained_are_errors(
    name: str, tmp_path: Path
) -> None:
    folder, train, test = write_fine_grained(name, tmp_path)
    write_lists(name, folder, train[:TRAIN], test[:TEST])
    with pytest.raises(DataError, match="lists 1 classes"):
        load_dataset(str(folder))
    write_lists(name, folder, train, [*test, "other/1.jpg"])
    with pytest.raises(DataError, match="no training image of other"):
        load_dataset(str(folder))


def test_every_bird_must_be_told_to_train_or_test(tmp_path: Path) -> None:
    folder, _, _ = write_fine_grained("cub200", tmp_path)
    for old, new in (("\n7 0\n", "\n"), ("\n8 0\n", "\n8 2\n")):
        replace_in(folder / "train_test_split.txt", old, new)
        with pytest.raises(DataError, match=r"must give 1 \(training\) or 0 \(test\) for image 7"):
            load_dataset(str(folder))


@pytest.mark.parametrize("damage", ["cut", "type", "nonsense", "other"])
def test_a_damaged_list_of_dogs_is_a_clear_error_and_never_a_crash(
    damage: str, tmp_path: Path
) -> None:
    folder, _, _ = write_fine_grained("stanford-dogs", tmp_path)
    path = folder / "test_list.mat"
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-200])
    elif damage == "type":  # of the first string: SciPy's reader dies of a segmentation fault
        at = whole.index(b"n02085620-Chihuahua") - 8
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    elif damage == "nonsense":
        path.write_bytes(b"no MATLAB")
    else:
        savemat(path, {"file_list": np.arange(5)})
    with pytest.raises(
        DataError, match=r"test_list\.mat is damaged \(.+\): unpack lists\.tar again"
    ):
        load_dataset(str(folder))


def test_a_missing_list_of_dogs_says_which_archive_has_it(tmp_path: Path) -> None:
    folder, _, _ = write_fine_grained("stanford-dogs", tmp_path)
    (folder / "test_list.mat").unlink()
    with pytest.raises(DataError, match=r"unpack lists\.tar"):
        load_dataset(str(folder))


# downloads


def test_an_archive_that_reaches_outside_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(url: str, root: str, **options: object) -> None:
        Path(root).mkdir()
        with tarfile.open(Path(root) / "images.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("../outside.jpg"))

    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "stanford-dogs").mkdir(parents=True)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", bring)
    with pytest.raises(DataError, match=r"images\.tar is damaged"):
        load_dataset("stanford-dogs")
    assert not list(tmp_path.rglob("outside.jpg"))


def test_a_downloaded_archive_is_unpacked_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, _ = write_fine_grained("cub200", tmp_path / "there")

    def bring(url: str, root: str, md5: str | None) -> None:
        assert md5 is not None
        with tarfile.open(Path(root) / "CUB_200_2011.tgz", "w:gz") as archive:
            archive.add(made, "CUB_200_2011")

    (tmp_path / "data").mkdir()
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("torchvision.datasets.utils.download_url", bring)
    assert load_dataset("cub200").classes == TITLES["cub200"]
    assert [path.name for path in (tmp_path / "data").glob("[!.]*")] == ["CUB_200_2011"]


@pytest.mark.parametrize("name", ["tinyimagenet", *CLASSES])
def test_a_set_in_files_that_is_not_to_be_had_says_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DataError, match=f"no network.*{tmp_path}.*--data"):
        load_dataset(name)


def test_a_set_is_the_same_wherever_its_folder_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fine_grained("cub200", tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    found = []
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "here", tmp_path / "there", Path("there")):
        monkeypatch.setenv("MATE_EDGE_DATA", str(place))
        found.append(load_dataset("cub200").fingerprint())
    assert len(set(found)) == 1
