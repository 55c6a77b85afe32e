"""Files that a user may name: those of folders and globs, and those whose paths come on stdin."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mate_edge.errors import ImageError, UsageError
from mate_edge.runtime.sources import open_sources
from mate_edge.runtime.sources.files import Glob, StandardInput
from mate_edge.runtime.sources.images import find_images, find_labelled, walk
from mate_edge.runtime.sources.source import Item


def names(items: Iterator[Item]) -> list[str]:
    return [str(item) if isinstance(item, ImageError) else item.name for item in items]


def look_at(*sources: str | Path) -> list[str]:
    return names(iter(open_sources([str(source) for source in sources])))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images and a video in folders of folders."""
    for name in (
        "b.png",
        "a/2.jpg",
        "a/1.jpg",
        "a.png",
        "a/deep/x.PNG",
        "a/note.txt",
        "c/film.mp4",
    ):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "tree"


def test_a_folders_images_come_sorted_with_those_of_its_folders(tree: Path) -> None:
    found = look_at(tree)
    images = [path for path in tree.rglob("*") if path.suffix in (".png", ".jpg", ".PNG")]
    assert found == [str(path) for path in sorted(images)]


def test_files_that_vanish_after_they_were_listed_are_still_named(tree: Path) -> None:
    items = iter(open_sources([str(tree)]))
    assert names(iter([next(items)])) == [f"{tree}/a/1.jpg"]
    tree.rename(tree.with_name("unplugged"))
    rest = names(items)
    assert [f"{tree}/{name}" for name in ("a/2.jpg", "a.png", "b.png")] == [
        name for name in rest if not name.startswith("cannot read the folder")
    ]
    assert f"cannot read the folder {tree}/a/deep: No such file or directory" in rest


def test_a_link_that_leads_nowhere_is_named_and_a_pipe_is_not(tree: Path) -> None:
    (tree / "c" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tree / "c" / "pipe.png")
    assert look_at(tree / "c") == [f"{tree}/c/gone.png"]


def test_a_linked_folder_is_looked_into_and_one_that_leads_back_is_not(tree: Path) -> None:
    (tree / "c" / "linked").symlink_to(tree / "a" / "deep")
    (tree / "c" / "back").symlink_to(tree)
    assert look_at(tree / "c") == [
        *(f"{tree}/c/back/{name}" for name in ("a/1.jpg", "a/2.jpg", "a/deep/x.PNG", "a.png")),
        f"{tree}/c/back/b.png",
        f"{tree}/c/linked/x.PNG",
    ]


def test_a_labelled_folder_that_cannot_be_read_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == "deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=f"cannot read the folder {tree}/a/deep: Permission"):
        find_labelled(tree, ["a", "c"], print)


def test_a_glob_looks_into_a_folder_once_where_a_link_leads_back(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    assert look_at(tree / "**" / "*.png") == [f"{tree}/a.png", f"{tree}/b.png"]
    assert look_at(tree / "a" / "**" / "*.png") == [f"{tree}/a/up/a.png", f"{tree}/a/up/b.png"]


def test_a_glob_leaves_hidden_folders_out_and_may_have_two_stars_twice(tree: Path) -> None:
    for folder in (tree / ".cache", tree / "c" / "[1]" / "a"):
        folder.mkdir(parents=True)
        (folder / "3.jpg").touch()
    assert look_at(tree / "**" / "a" / "**" / "*.jpg") == [
        *(f"{tree}/a/{name}.jpg" for name in "12"),
        f"{tree}/c/[1]/a/3.jpg",
    ]
    assert f"{tree}/.cache/3.jpg" not in look_at(tree / "**" / "3.jpg")


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    image = tmp_path / "/".join("d" * 100) / "x.png"
    image.parent.mkdir(parents=True)
    image.touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        found = [*walk(tmp_path, {".png"}), *look_at(tmp_path / "**" / "x.png")]
    finally:
        sys.setrecursionlimit(limit)
    assert found == [image, str(image)]


def test_a_quoted_glob_finds_files_at_any_depth(tree: Path) -> None:
    assert look_at(tree / "**" / "*.jpg") == [str(tree / "a" / "1.jpg"), str(tree / "a" / "2.jpg")]


@pytest.mark.parametrize("pattern", ["**", "**/*", "*", "[a-c]*"])
def test_a_glob_that_matches_files_and_their_folders_gives_each_image_once(
    pattern: str, tree: Path
) -> None:
    images = ["a.png", "a/1.jpg", "a/2.jpg", "a/deep/x.PNG", "b.png"]
    for file in ("a/note.txt", "c/film.mp4"):
        (tree / file).unlink()
    (tree / "c" / "film.png").touch()
    found = look_at(tree / pattern)
    assert sorted(found) == [f"{tree}/{name}" for name in [*images, "c/film.png"]]
    assert sorted(map(str, find_images([str(tree / pattern)]))) == sorted(found)


def test_videos_left_out_of_a_folder_are_mentioned(tree: Path) -> None:
    sources = open_sources([str(tree)])
    list(sources)
    (remark,) = sources.remarks()
    assert "1 video was left out" in remark
    assert f"{tree}/**/*.mp4" in remark
    for several in (Glob(f"{tree}*"), StandardInput("-", BytesIO(f"{tree}\n".encode()))):
        list(several)
        assert several.remarks() == [remark]
    with pytest.raises(UsageError, match=r"holds no images .* but videos: name them"):
        open_sources([str(tree / "c")])


def test_paths_on_stdin_are_looked_at_as_they_come(tree: Path) -> None:
    read = []

    class Lines(BytesIO):
        def __next__(self) -> bytes:
            line = super().__next__()
            read.append(line)
            return line

    lines = Lines(f"{tree}/b.png\n\n{tree}/none\r\n{tree}/a\n{tree}/c\n".encode())
    items = iter(StandardInput("-", lines))
    assert names(iter([next(items)])) == [f"{tree}/b.png"]
    assert len(read) == 1
    rest = names(items)
    assert rest[:2] == [f"{tree}/none", f"{tree}/a/1.jpg"]
    assert "holds no images" in rest[-1]  # and nothing was stopped by it


def test_paths_that_end_with_zero_bytes_are_refused_and_the_next_lines_read() -> None:
    first, second = names(iter(StandardInput("-", BytesIO(b"a.png\0b.png\0\nc.png\n"))))
    assert "zero byte" in first
    assert second == "c.png"
