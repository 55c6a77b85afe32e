"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mate_edge.errors import UsageError

MOST_THREADS = 64
"""Beyond this and beyond the CPUs, threads are started for minutes and only wait for each other."""
NO_GPU = {"", "-1", "NoDevFiles"}
GPU_NODES = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu/igpu0/ctrl")
"""What the driver makes: for a card (and Thor), for a Jetson up to JetPack 5, from JetPack 6 on."""


def cpu_count(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: by its affinity, and by its container's quota.

    Args:
        root: where to look for the quota.
    """
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, min((allowed, *map(math.ceil, _cpu_quotas(root)))))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield how many CPUs' time each control group of this process may take, as far as limited.

    The groups are those of /proc/self/cgroup and all above them; a container sees its own at the
    top. Version 2 has `cpu.max`, version 1 a file each for quota and period.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota_of(folder)
            if folder == top:
                break


def _quota_of(group: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # not there; `max`
            quota, period = map(int, " ".join((group / n).read_text() for n in names).split())
            if quota > 0 and period > 0:
                yield quota / period


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no engine can use; None leaves the choice to it.

    Raises:
        UsageError: fewer than 1, or more than `MOST_THREADS` and than there are CPUs.
    """
    most = max(MOST_THREADS, cpu_count())
    if threads is not None and not (type(threads) is int and 1 <= threads <= most):
        raise UsageError(f"--threads must lie between 1 and {most}, not {threads!r}")


def has_nvidia_gpu(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> bool:
    """Say whether CUDA could use an NVIDIA GPU here, by the driver's device files; in under 1 ms.

    A GPU that `CUDA_VISIBLE_DEVICES` hides counts as none, and so does one that was not handed to
    this container, or has no driver.

    Args:
        root: where to look.
        environment: the process's own when None.
    """
    variables = os.environ if environment is None else environment
    if variables.get("CUDA_VISIBLE_DEVICES", "all").split(",")[0].strip() in NO_GPU:
        return False
    if any(any(root.glob(node)) for node in GPU_NODES):
        return True
    windows = (root / "dev/dxg").exists()  # WSL 2 has no device file of NVIDIA's own
    return windows and any((root / "usr/lib/wsl/lib").glob("libcuda.so*"))
