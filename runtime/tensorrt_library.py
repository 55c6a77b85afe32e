"""`tensorrt` or `tensorrt_rtx`: which is importable, its version, and what it logs.

Both come from NVIDIA, never as a dependency: TensorRT with JetPack, TensorRT for RTX with pip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from threading import Lock, get_ident
from typing import Any

from mate_edge.errors import EngineError
from mate_edge.names import look_up


@dataclass(frozen=True)
class Kind:
    """One of NVIDIA's two libraries.

    Attributes:
        title: for people.
        floor: the oldest version that has the calls in use.
        get: how to get it.
        upgrade: how to get a newer one.
        ahead_of_time: it can build for GPUs that this machine lacks, and its engines depend on the
            compute capability alone.
    """

    title: str
    floor: tuple[int, int]
    get: str
    upgrade: str
    ahead_of_time: bool


KINDS: dict[str, Kind] = {
    "tensorrt": Kind(
        title="TensorRT",
        floor=(10, 3),
        get="on a Jetson `sudo apt install python3-libnvinfer` and an environment made with "
        "`python3 -m venv --system-site-packages`, elsewhere `pip install tensorrt-cu13`, or "
        "`tensorrt-cu12` with a driver below 580",
        upgrade="a Jetson needs JetPack 6.1 or later, elsewhere `pip install -U tensorrt-cu13`, or "
        "`tensorrt-cu12` with a driver below 580",
        ahead_of_time=False,
    ),
    "tensorrt_rtx": Kind(
        title="TensorRT for RTX",
        floor=(1, 7),
        get="`pip install tensorrt-rtx-cu13`",
        upgrade="`pip install -U tensorrt-rtx-cu13`",
        ahead_of_time=True,
    ),
}
"""By the name that is imported."""

KEPT_RECORDS = 50


@dataclass(frozen=True)
class Library:
    """An imported library.

    Attributes:
        name: in `KINDS`.
        kind: what it is.
        module: what was imported.
        version: such as `10.3.0` or `1.7.1.116`, as far as it tells.
        logger: an `ILogger` of the module; it must outlive what is made with it.
    """

    name: str
    kind: Kind
    module: Any
    version: str
    logger: Any

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.kind.title} {self.version}"

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.partition(".")[0])

    def errors(self, of_this_thread: bool = False) -> str:
        """Return what was logged as an error since the last call, and forget it.

        Args:
            of_this_thread: leave what the library logged in other threads, such as those of clones.
        """
        return "; ".join(self.logger.take(get_ident() if of_this_thread else None))


def import_library(name: str) -> Library:
    """Import `tensorrt` or `tensorrt_rtx`.

    Raises:
        UsageError: an unknown name.
        EngineError: it is missing, or older than what this program needs.
    """
    kind = look_up("library", name, KINDS)
    try:
        module: Any = import_module(name)
    except ModuleNotFoundError as error:
        raise EngineError(f"{error.name} cannot be imported: {kind.get}") from None
    except ImportError as error:
        raise EngineError(f"{name} cannot be imported ({error}): {kind.get}") from None
    numbers = re.findall(r"\d+", module.__version__)[:4]
    version = ".".join(numbers)
    if tuple(map(int, numbers[:2])) < kind.floor:
        floor = ".".join(map(str, kind.floor))
        raise EngineError(
            f"{kind.title} {version} is too old, {floor} or later is needed: {kind.upgrade}"
        )
    return Library(name, kind, module, version, _make_logger(module))


@lru_cache(maxsize=2)
def _make_logger(module: Any) -> Any:
    """Return a logger that keeps the latest errors; the library calls it from its own threads.

    One for each library in a process: TensorRT goes on with the first one that it was given.
    """

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.records: list[tuple[int, str]] = []  # the thread, and what was said
            self.lock = Lock()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                with self.lock:
                    self.records.append((get_ident(), " ".join(msg.split())))
                    del self.records[:-KEPT_RECORDS]

        def take(self, thread: int | None) -> list[str]:
            """Return the records of a thread, or all, without keeping them."""
            with self.lock:
                taken = [said for by, said in self.records if thread in (None, by)]
                self.records[:] = [each for each in self.records if thread not in (None, each[0])]
            return taken

    return Logger()
