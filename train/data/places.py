"""Where data sets are looked for, and how they are downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

from platformdirs import user_cache_path

from mate_edge.errors import DataError


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} was not found and could not be downloaded ({reason}): {otherwise}"
        ) from None
