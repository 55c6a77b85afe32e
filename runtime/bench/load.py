"""Busy processes beside a measurement, and what other processes of the machine are doing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"
"""Computes until it is ended, or its parent is gone: a killed parent cannot end anybody."""
STAT = Path("/proc/stat")


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Keep `count` processes computing; yield their ids; they are ended however the block ends."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        while len(started) < count:
            command = [sys.executable, "-S", "-c", BUSY, str(os.getpid())]
            started.append(  # of a session of their own, which ctrl-C does not reach
                subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


class CpuUse:
    """How many CPUs this process and all others used since this was made.

    Args:
        stat: the kernel's counters; where there are none, others are unknown.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._began = time.monotonic()
        self._own, self._all = time.process_time(), self._busy_s()

    def own(self) -> float:
        """Return how many CPUs this process kept busy."""
        return (time.process_time() - self._own) / self._passed()

    def others(self, load: int = 0) -> float | None:
        """Return how many CPUs all other processes kept busy; None: unknown.

        Args:
            load: busy processes that are not counted; each of them keeps one CPU busy at most.
        """
        now = self._busy_s()
        if now is None or self._all is None:
            return None
        own = time.process_time() - self._own
        return max(0.0, (now - self._all - own) / self._passed() - load)

    def _passed(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    def _busy_s(self) -> float | None:
        """Return the seconds that all CPUs have computed, for anybody."""
        try:
            line = self._stat.read_text().split("\n", 1)[0].split()
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq = (int(field) for field in line[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
