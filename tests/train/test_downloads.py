"""Data sets come into the data folder whole, once, and never outside it."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mate_edge.errors import DataError
from mate_edge.train.data.places import download, fetch_tar


class Site:
    """Brings a data set of two files; `stop_at` is the file before which it is interrupted."""

    def __init__(self, root: Path, stop_at: int | None = None) -> None:
        self.place, self.brought, self.stop_at = root / "data" / "set", 0, stop_at

    def is_there(self) -> bool:
        return (self.place / "1").exists()

    def fetch(self, into: Path) -> None:
        self.brought += 1
        (into / "set").mkdir()
        for number in range(2):
            if number == self.stop_at:
                raise KeyboardInterrupt
            (into / "set" / str(number)).write_text("an image")

    def download(self) -> None:
        download("a set", self.place, self.is_there, self.fetch, "put it there")

    def shown(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.place.parent))
            for path in self.place.parent.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )


def test_of_many_that_want_it_at_once_one_downloads_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(site.download) for _ in range(8)]:
            done.result()
    assert site.brought == 1
    assert site.shown() == ["set/0", "set/1"]


def test_one_that_is_interrupted_leaves_nothing_and_the_next_brings_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Site(tmp_path, stop_at=1).download()
    site = Site(tmp_path)
    assert site.shown() == []
    site.download()
    assert site.shown() == ["set/0", "set/1"]


def test_half_a_set_that_is_there_is_moved_aside(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.place.mkdir(parents=True)
    (site.place / "0").write_text("half an image")
    site.download()
    assert site.shown() == ["set-incomplete/0", "set/0", "set/1"]


def test_a_folder_that_cannot_be_made_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match=r"could not be downloaded \(.*\): put it there"):
        Site(tmp_path).download()


@pytest.mark.parametrize("filtered", [True, False])
def test_nothing_is_unpacked_outside_whatever_python_can_do(
    filtered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"set/0": "an image", "../outside": "x", str(tmp_path / "absolute"): "x"}
    if filtered:
        del members["../outside"]  # which is an error there
    else:
        monkeypatch.delattr(tarfile, "data_filter")  # Python 3.11.2, say
        extract = tarfile.TarFile.extractall
        monkeypatch.setattr(
            tarfile.TarFile,
            "extractall",
            lambda self, path, members: extract(self, path, members),
        )

    def bring(url: str, root: str, md5: str | None) -> None:
        with tarfile.open(Path(root) / "set.tar", "w") as archive:
            for name, text in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
            link = tarfile.TarInfo("set/link")
            link.type, link.linkname = tarfile.SYMTYPE, "0"
            archive.addfile(link)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", bring)
    folder = tmp_path / "in"
    folder.mkdir()
    fetch_tar("https://example.org/set.tar", folder)
    assert (folder / "set" / "0").read_text() == "an image"
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "absolute").exists()
    assert not (folder / "set.tar").exists()
