"""Where data sets are looked for, and how they are downloaded."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

from platformdirs import user_cache_path

from mate_edge.errors import DataError, first_line


def data_folder() -> Path:
    """Return the folder of downloaded data sets: `$MATE_EDGE_DATA`, or one in the user's cache."""
    chosen = os.environ.get("MATE_EDGE_DATA")
    return Path(chosen) if chosen else user_cache_path("mate-edge") / "data"


def download(name: str, fetch: Callable[[], object], otherwise: str) -> None:
    """Call `fetch`, which downloads the data set `name`.

    Raises:
        DataError: it failed; the message gives the reason and says what to do: `otherwise`.
    """
    try:
        with redirect_stdout(stderr):
            fetch()
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
        shutil.unpack_archive(archive, folder, filter="data")
    except (tarfile.TarError, shutil.ReadError, EOFError, zlib.error) as error:
        raise OSError(f"{archive.name} is damaged: {error}") from None
    finally:
        archive.unlink()
