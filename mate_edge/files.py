"""Files that are written whole or not at all, and read without trust.

A file goes to a temporary name beside its place, is synced and then renamed; a folder likewise, so
that a killed process leaves nothing or everything. Reading never unpickles, and never follows a
path or believes a size out of a manifest.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from mate_edge.errors import MateEdgeError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20
MAX_FILE_BYTES = 16 * 2**30
HEAD_BYTES = 4096
BUNDLE_SUFFIX = ".mate"
MANIFEST, RUN = "manifest.json", "run.json"
"""What a folder is by: a bundle, a run."""
WRITE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EFBIG, errno.EBUSY, errno.ESTALE, errno.EPIPE, errno.ENXIO, errno.EINVAL),
)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a part.

    Raises:
        UsageError: the disk is full, or the folder cannot be written.
    """
    temporary = temporary_name(path)
    with write_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"cannot write {path}: it is a pipe or a device; choose another name")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well, and vanishes when not.

    Raises:
        UsageError: `path` exists already, or its parent cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already: remove it or choose another --out")
    make_folder(path.parent)
    _remove_leftovers(path)
    with write_errors(path):
        temporary, held = _make_held(path)
    try:
        yield temporary
        with write_errors(path):
            publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(held)


def temporary_name(path: Path, suffix: str = ".tmp") -> Path:
    """Return a name beside `path` that nobody else takes: containers share volumes, and pids."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}{suffix}")


def _make_held(path: Path) -> tuple[Path, int]:
    """Make a folder that is to become `path`; return it and a descriptor that locks it.

    The lock says that somebody is at it, on this host or another container's, until it ends.
    """
    while True:
        temporary = temporary_name(path)
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, held
        os.close(held)  # somebody took it for a leftover, in the moment before it was locked


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being written into a line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise UsageError(f"{path} exists already: choose another --out") from None
        if error.errno in WRITE_ERRORS:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        raise


def publish(temporary: Path, path: Path) -> None:
    """Sync all that is in the folder `temporary`, then rename it to `path`."""
    for entry in (*temporary.rglob("*"), temporary):
        _sync(entry)
    os.rename(temporary, path)
    _sync(path.parent)


def resolved(path: str | Path) -> Path:
    """Return the path without links; itself where they go in a circle, or nowhere."""
    try:
        return Path(path).resolve()
    # the working folder is gone; a circle, until Python 3.13; a character that no path has
    except (OSError, RuntimeError, ValueError):
        return Path(path)


def make_folder(path: Path) -> None:
    """Make `path` and its parents.

    Raises:
        UsageError: the folder cannot be made, for example because a file is in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {error.strerror}") from None


def check_place(path: Path) -> None:
    """Say before the work that its result cannot be written, in a folder that is there.

    Raises:
        UsageError: a folder or a device has the name, or nothing can be written beside it.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is no file; choose another name")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: {os.strerror(errno.EACCES)}")


def check_replaces(path: Path, what: str, is_one: Callable[[bytes], bool]) -> None:
    """Say before the work that its result would replace something else.

    Args:
        path: where it shall be written.
        what: its kind, of which a new one may replace an old one.
        is_one: says of the first `HEAD_BYTES` of a file whether it is one.

    Raises:
        UsageError: another kind of file, a folder or a device has the name.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(f"cannot write {path}: it is no file; choose another name")
    with write_errors(path), open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head and not is_one(head):
        raise UsageError(f"{path} is there and is no {what}: choose another name")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier attempts at `path`: what nobody holds."""
    ours = f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.tmp"
    for leftover in path.parent.glob(ours):
        with suppress(OSError):  # somebody holds it, it is gone, or nothing tells
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unused(path: Path) -> Path:
    """Return `path`, or the first of `path-2`, `path-3`, ... that does not exist, or `-2.mate`."""
    candidate, number = path, 2
    kept = path.suffix if path.suffix == BUNDLE_SUFFIX else ""
    while candidate.exists() or candidate.is_symlink():
        candidate = path.with_name(f"{path.name.removesuffix(kept)}-{number}{kept}")
        number += 1
    return candidate


def write_json(path: Path, value: object) -> bytes:
    """Write `value` as readable JSON, whole or not at all; return the bytes."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    write_whole(path, data)
    return data


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, whole or not at all; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list({column: None for row in rows for column in row}))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def decode_json(
    data: bytes, kind: type[T], what: Path, schema: int, error: type[MateEdgeError]
) -> T:
    """Decode and validate a JSON document that carries a `schema` number.

    Raises:
        error: not JSON, of a newer schema, or not of the expected shape.
    """
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema
        if found > schema:
            raise error(
                f"{what} has schema {found}, this mate-edge reads up to {schema}: upgrade mate-edge"
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise error(f"{what} is damaged: {reason}") from None


class _Versioned(msgspec.Struct):
    schema: int


def read_regular(path: str | Path, limit: int, error: type[MateEdgeError]) -> bytes:
    """Read a regular file of at most `limit` bytes; see `read_bytes`.

    Raises:
        OSError: the file is missing or unreadable.
        error: it is larger, or a pipe or a device, which may have no end or never begin.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is a pipe or a device: copy what it gives into a file")
        if status.st_size > limit:
            raise error(f"{path} is larger than the {limit} bytes that it may have")
        return file.read(status.st_size)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a pipe waits for who writes into it


def read_bytes(path: Path, limit: int, error: type[MateEdgeError]) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        error: the file is missing, unreadable, larger, or a pipe or a device.
    """
    try:
        return read_regular(path, limit, error)
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror}") from None
    except ValueError as reason:  # a zero byte in the name
        raise error(f"cannot read {str(path)!r}: {reason}") from None


def inside(folder: Path, name: str, error: type[MateEdgeError]) -> Path:
    """Return the path of `name` in `folder`.

    Raises:
        error: the path leaves the folder, by itself or through a symbolic link.
    """
    plain = re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) is not None
    path = folder / name
    try:
        leads_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link that leads to itself, a zero byte
        leads_inside = False
    if not plain or path == folder or not leads_inside:
        raise error(f"{folder} names a file outside itself: {name!r}; do not use it")
    return path


def arrays_to_bytes(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """Pack arrays as a compressed npz."""
    import numpy as np

    buffer = io.BytesIO()
    # numpy 1.26 would take allow_pickle for one of the arrays
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def bytes_to_arrays(
    data: bytes, what: Path, error: type[MateEdgeError], limit: int = MAX_FILE_BYTES
) -> dict[str, NDArray[np.generic]]:
    """Unpack an npz, never unpickling.

    Raises:
        error: not an npz, nothing or objects inside, or more than `limit` bytes when unpacked.
    """
    import zipfile

    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > limit:
                raise error(f"{what} would unpack to {unpacked} bytes: it is damaged or hostile")
            arrays = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                    file.read()  # to the end, where the CRC is compared: the array may end before
                arrays[name.removesuffix(".npy")] = array
        if not arrays:
            raise ValueError("it is empty")
        return arrays
    except MateEdgeError:
        raise
    except Exception as reason:  # zipfile, zlib and numpy raise a dozen types on damage
        raise error(f"{what} is damaged: {reason}") from None


def shown(path: str | Path) -> str:
    """Return a path as text that can be written; a byte that is no UTF-8 becomes a mark."""
    return os.fsencode(path).decode("utf-8", "replace")


def check_text(names: Iterable[str]) -> None:
    """Refuse names of files and folders that JSON cannot hold, such as those of an old archive.

    Raises:
        UsageError: with the name.
    """
    for name in names:
        if not name.isascii() and shown(name) != name:
            raise UsageError(f"the name {name!a} is not UTF-8: rename it, or choose another")


def write_latest(folder: Path, path: Path) -> None:
    """Note `path` as the newest in the text file `latest` of `folder`, when it lies in there."""
    if path.resolve().parent == folder.resolve():
        write_whole(folder / "latest", f"{path.name}\n".encode())


def read_latest(folder: Path) -> Path | None:
    """Return the newest entry of `folder`, or None when there is none."""
    try:
        name = read_regular(folder / "latest", HEAD_BYTES, UsageError).decode().strip()
    except (OSError, UsageError, UnicodeDecodeError):
        return None
    path = folder / name
    plain = name == Path(name).name and name not in ("", "..")
    return path if plain and path.is_dir() else None
