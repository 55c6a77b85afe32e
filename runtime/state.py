"""What this device keeps of a bundle: engines, measurements, verification. Disposable.

One folder for each bundle and device key under the user's cache folder, or under
`$MATE_EDGE_STATE`. Whatever is damaged, or was written under another schema, counts as absent.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from platformdirs import user_cache_path

from mate_edge import files
from mate_edge.errors import EngineError, UsageError

VARIABLE = "MATE_EDGE_STATE"
VERIFICATION = "verification"
"""What the golden inputs said of the engines in a folder."""
OF_ENGINES = (VERIFICATION, "bench-*", "latencies-*")
"""What was measured with the engines in a folder, and is void when they are built anew."""
T = TypeVar("T")


def state_root() -> Path:
    """Return the folder of all bundles on all devices; it may not exist yet."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        return user_cache_path("mate-edge") / "devices"
    except RuntimeError:  # a user without a home, as in a container
        raise UsageError(
            f"this user has no home folder to keep what is measured in: set {VARIABLE} to a folder"
        ) from None


def state_folder(bundle_id: str, device_key: str) -> Path:
    """Return the folder of a bundle on a device; it may not exist yet.

    Args:
        bundle_id: SHA-256 of the manifest.
        device_key: what must be the same for the contents to hold, such as engine, versions, GPU.
    """
    return state_root() / bundle_id[:32] / re.sub(r"[^\w.+-]+", "-", device_key)


def read_state(folder: Path, name: str, kind: type[T]) -> T | None:
    """Return what `NAME.json` holds, or None when it is absent, damaged or of another schema."""
    try:
        data = files.read_bytes(folder / f"{name}.json", files.MAX_JSON_BYTES, EngineError)
        return msgspec.json.decode(data, type=kind)
    except (EngineError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write_state(folder: Path, name: str, value: msgspec.Struct) -> None:
    """Write `NAME.json`, whole or not at all.

    Raises:
        UsageError: the folder cannot be written; `$MATE_EDGE_STATE` chooses another.
    """
    with state_errors():
        files.make_folder(folder)
        files.write_json(folder / f"{name}.json", value)


def forget_engines(folder: Path) -> None:
    """Remove what was measured with engines that are built anew.

    Raises:
        UsageError: it cannot be removed.
    """
    for name in OF_ENGINES:
        for path in folder.glob(f"{name}.json"):
            with state_errors(), files.write_errors(path):
                path.unlink(missing_ok=True)


@contextmanager
def state_errors() -> Iterator[None]:
    """Say which variable chooses another folder where this one cannot be written."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{error}; {VARIABLE} chooses another folder") from None


@contextmanager
def building_alone(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Wait until no other process builds in a folder; the lock goes with the process.

    Without locks, on Windows or some network file systems, two builds do the work twice.

    Args:
        folder: made when it is not there.
        say: told what is waited for.

    Raises:
        UsageError: the folder cannot be written.
    """
    lock = folder / ".lock"
    with state_errors():
        files.make_folder(folder)
        with files.write_errors(lock):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say("another process builds these engines: waiting for it")
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
