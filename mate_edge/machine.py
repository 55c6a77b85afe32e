"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

GPU_FILES = ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu", "proc/driver/nvidia/version")
"""One of them is there when the driver of an NVIDIA GPU is: a desktop's first, then Jetsons'."""


def cpu_count() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Say whether an NVIDIA GPU and its driver are here, without asking the driver.

    Args:
        root: of the file system; another one in tests.
    """
    return any((root / file).exists() for file in GPU_FILES)
