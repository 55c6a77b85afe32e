"""Files written whole or not at all, and read without trust."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge import files
from mate_edge.errors import BundleError, UsageError


class Document(msgspec.Struct):
    schema: int
    name: str = ""


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"old")
    with pytest.raises(TypeError):
        files.write_whole(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with files.whole_folder(path) as made:
        (made / "file").write_text("x")
        assert not path.exists()
    assert (path / "file").read_text() == "x"
    broken = tmp_path / "broken"
    with pytest.raises(IsADirectoryError), files.whole_folder(broken) as made:
        made.write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["deep"]


def test_a_folder_that_exists_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(UsageError, match="exists already"), files.whole_folder(tmp_path / "old"):
        pytest.fail("the block must not run")


def test_a_killed_writer_leaves_nothing_that_the_next_one_does_not_clean_up(
    tmp_path: Path,
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from mate_edge import files\n"
        f"with files.whole_folder(Path({str(tmp_path / 'out')!r})) as made:\n"
        "    (made / 'half').write_text('x'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not (tmp_path / "out").exists()
    with files.whole_folder(tmp_path / "out") as made:
        (made / "whole").write_text("x")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["whole"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", ".", "..", "a//b", "a\\b", "a/\0", "~/x"]
)
def test_a_path_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="outside"):
        files.inside(tmp_path / "folder", name, BundleError)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("/etc")
    with pytest.raises(BundleError, match="outside"):
        files.inside(tmp_path / "folder", "link/passwd", BundleError)
    assert files.inside(tmp_path / "folder", "a/b.onnx", BundleError).name == "b.onnx"


def test_an_npz_with_objects_is_refused_and_one_with_arrays_is_not(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, bad=np.array([{}], dtype=object))
    with pytest.raises(BundleError, match="damaged"):
        files.bytes_to_arrays(path.read_bytes(), path, BundleError)
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.ones(2, np.float16)}
    found = files.bytes_to_arrays(files.arrays_to_bytes(arrays), path, BundleError)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    data = files.arrays_to_bytes({"zeros": np.zeros(10_000)})
    with pytest.raises(BundleError, match="unpack"):
        files.bytes_to_arrays(data, tmp_path, BundleError, limit=1000)
    assert len(files.bytes_to_arrays(data, tmp_path, BundleError, limit=100_000)["zeros"]) == 10_000


def test_a_zero_byte_in_a_name_is_a_clear_error() -> None:
    with pytest.raises(BundleError, match="cannot read .*null byte"):
        files.read_bytes(Path("x\0.json"), 100, BundleError)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_damaged_files_and_no_bugs(data: bytes) -> None:
    with pytest.raises(BundleError):
        files.bytes_to_arrays(data, Path("x"), BundleError)
    if not data.strip().startswith(b"{"):
        with pytest.raises(BundleError, match="damaged"):
            files.decode_json(data, Document, Path("x"), 1, BundleError)


@given(where=st.integers(0, 10_000), value=st.integers(1, 255))
def test_a_flipped_byte_in_an_npz_is_noticed_or_harmless(where: int, value: int) -> None:
    array = np.arange(500)
    data = bytearray(files.arrays_to_bytes({"a": array}))
    data[where % len(data)] ^= value
    with suppress(BundleError):
        found = files.bytes_to_arrays(bytes(data), Path("x"), BundleError)
        assert found.keys() == {"a"}
        np.testing.assert_array_equal(found["a"], array, strict=True)


def test_an_npz_whose_array_ends_too_early_is_damaged() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(500))
    data = buffer.getvalue().replace(b"(500,)", b"(400,)")
    with pytest.raises(BundleError, match="damaged: Bad CRC-32"):
        files.bytes_to_arrays(data, Path("x"), BundleError)
    with pytest.raises(BundleError, match="damaged: it is empty"):
        files.bytes_to_arrays(files.arrays_to_bytes({}), Path("x"), BundleError)


def test_json_without_end_is_damaged() -> None:
    deep = b'{"schema": 1, "x": ' + b"[" * 100_000
    with pytest.raises(BundleError, match="damaged"):
        files.decode_json(deep, Document, Path("x"), 1, BundleError)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        files.write_whole(tmp_path / "none" / "file", b"x")
    with pytest.raises(UsageError, match="cannot"), files.whole_folder(Path("/proc/1/x")):
        pytest.fail("the block must not run")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot"), files.whole_folder(tmp_path / "file" / "x"):
        pytest.fail("the block must not run")


def test_a_folder_or_a_link_in_the_place_of_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"cannot write .*folder\.json: Is a directory"):
        files.write_json(tmp_path / "folder.json", {})
    with pytest.raises(UsageError, match="cannot write .*: Too many levels"):
        files.write_json(tmp_path / "loop" / "file.json", {})
    assert sorted(os.listdir(tmp_path)) == ["folder.json", "loop"]


def test_a_limit_on_the_size_of_files_is_a_clear_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UsageError, match="cannot write .*: File too large"):
            files.write_whole(tmp_path / "file", b"x" * 101)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_an_error_that_is_not_about_writing_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.whole_folder(tmp_path / "x"):
        (tmp_path / "a file that the work needs").read_bytes()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "x" / "theirs"
    with pytest.raises(UsageError, match="exists already"), files.whole_folder(tmp_path / "x"):
        files.make_folder(theirs)
    assert os.listdir(tmp_path / "x") == ["theirs"]


def test_a_newer_schema_says_to_upgrade() -> None:
    with pytest.raises(BundleError, match="upgrade mate-edge"):
        files.decode_json(b'{"schema": 2, "new": 1}', Document, Path("x"), 1, BundleError)
    assert files.decode_json(b'{"schema": 1}', Document, Path("x"), 1, BundleError).schema == 1


def test_a_file_larger_than_it_should_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "file", 5, BundleError) == b"12345"
    with pytest.raises(BundleError, match="larger"):
        files.read_bytes(tmp_path / "file", 4, BundleError)


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(BundleError, match=f"{name} is a pipe or a device"):
            files.read_bytes(tmp_path / name, 5, BundleError)
    with pytest.raises(BundleError, match="Is a directory"):
        files.read_bytes(tmp_path, 5, BundleError)


def test_names_are_numbered_and_the_latest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "name.mate"
    assert files.unused(path) == path
    path.mkdir()
    second = files.unused(path)
    assert second.name == "name-2.mate"
    assert files.read_latest(tmp_path) is None
    files.write_latest(tmp_path / "elsewhere", path)
    assert files.read_latest(tmp_path) is None
    files.write_latest(tmp_path, path)
    assert files.read_latest(tmp_path) == path
    for evil in ("..", ".", "../..", "/etc", "", "none", "name.mate" + " " * 9999):
        (tmp_path / "latest").write_text(evil)
        assert files.read_latest(tmp_path) is None
    (tmp_path / "latest").unlink()
    os.mkfifo(tmp_path / "latest")  # nobody will ever write into it
    assert files.read_latest(tmp_path) is None
    dotted = tmp_path / "net-v1.5"
    dotted.mkdir()
    assert files.unused(dotted).name == "net-v1.5-2"


def test_a_pipe_or_a_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UsageError, match=f"{name}: it is a pipe or a device"):
            files.write_whole(tmp_path / name, b"data")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_result_replaces_only_what_is_one(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    files.check_replaces(path, "report", lambda head: False)
    path.touch()
    files.check_replaces(path, "report", lambda head: False)
    path.write_text("mine")
    files.check_replaces(path, "report", lambda head: head == b"mine")
    with pytest.raises(UsageError, match="is there and is no report: choose another name"):
        files.check_replaces(path, "report", lambda head: False)
    with pytest.raises(UsageError, match="it is no file"):
        files.check_replaces(tmp_path, "report", lambda head: True)


def test_leftovers_of_a_running_writer_are_left_alone_also_in_another_container(
    tmp_path: Path,
) -> None:
    with files.whole_folder(tmp_path / "out") as theirs:  # a lock knows no process numbers
        with files.whole_folder(tmp_path / "out") as made:
            assert made != theirs
        assert theirs.exists()
        shutil.rmtree(tmp_path / "out")


def test_only_what_is_a_leftover_of_that_very_name_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a[1].mate"
    leftover, others = (
        files.temporary_name(path),
        (".a[1].mate.mine.tmp", ".a1.mate.0123456789ab.tmp"),
    )
    for name in (leftover.name, *others):
        (tmp_path / name).mkdir()
    with files.whole_folder(path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted((path.name, *others))


def test_two_writers_of_one_name_and_one_process_number_do_not_mix_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "file", os.fsync

    def another_writes_meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        files.write_whole(path, b"the other's")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", another_writes_meanwhile)
    files.write_whole(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]
