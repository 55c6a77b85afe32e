"""Where data sets are looked for, and how they are downloaded."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from sys import stderr
from tempfile import TemporaryDirectory

from filelock import FileLock
from platformdirs import user_cache_path

from mate_edge.errors import DataError, first_line
from mate_edge.files import unused

_may_download = ContextVar("may_download", default=True)


def data_folder() -> Path:
    """Return the folder of downloaded data sets: `$MATE_EDGE_DATA`, or one in the user's cache."""
    chosen = os.environ.get("MATE_EDGE_DATA")
    return Path(chosen) if chosen else user_cache_path("mate-edge") / "data"


@contextmanager
def no_downloads() -> Iterator[None]:
    """Let a data set that is not here be an error: nobody asked for gigabytes."""
    before = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(before)


def download(
    name: str,
    place: Path,
    is_there: Callable[[], bool],
    fetch: Callable[[Path], object],
    otherwise: str,
) -> None:
    """Put a data set into the data folder: whole or not at all, and once, whoever else wants it.

    A folder that is there without being the data set, as an unpacking that was stopped leaves it,
    is moved aside.

    Args:
        name: of the data set.
        place: where it is to be, a folder in the data folder.
        is_there: says whether it is.
        fetch: given a folder, downloads the data set into one of `place`'s name in it.
        otherwise: what to do when it cannot be downloaded.

    Raises:
        DataError: it failed, or is not to be done, see `no_downloads`; the message gives the
            reason and says what to do.
    """
    if not _may_download.get():
        raise DataError(f"{name} was not found: {otherwise}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / ".download.lock"):
            if is_there():
                return
            with TemporaryDirectory(dir=place.parent, prefix=".download-") as made:
                with redirect_stdout(stderr):
                    fetch(Path(made))
                if place.exists():
                    place.rename(unused(place.with_name(f"{place.name}-incomplete")))
                os.replace(Path(made) / place.name, place)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise DataError(
            f"{name} was not found and could not be downloaded ({reason}): {otherwise}"
        ) from None


def fetch_tar(url: str, folder: Path, md5: str | None = None) -> None:
    """Download a tar archive and unpack it in `folder`; nothing is written outside.

    Raises:
        OSError: not to be had, or no space.
        RuntimeError: another MD5.
    """
    from torchvision.datasets.utils import download_url

    download_url(url, str(folder), md5=md5)
    archive = folder / url.rsplit("/", 1)[-1]
    try:
        with tarfile.open(archive) as packed:
            if hasattr(tarfile, "data_filter"):
                packed.extractall(folder, filter="data")
            else:  # Python 3.11.2 of Debian 12, say
                packed.extractall(folder, filter(_is_plain, packed))  # noqa: S202 - these are safe
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{archive.name} is damaged: {error}") from None
    archive.unlink()


def _is_plain(entry: tarfile.TarInfo) -> bool:
    """Say whether it is a file or a folder that stays where it is unpacked."""
    path = PurePosixPath(entry.name)
    return (entry.isreg() or entry.isdir()) and not path.is_absolute() and ".." not in path.parts
