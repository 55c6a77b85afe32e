"""What every benchmark says of the machine it ran on, and the figures it quotes."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe(*packages: str) -> str:
    """Return processor, cores, Python and versions in one line."""
    versions = []
    for package in ("mate-edge", *packages):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} missing")
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def quantile(samples: Sequence[float], q: float) -> float:
    """Return the order statistic at q in [0, 1]."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def mark_of(run_folder: Path) -> str:
    """Return what tells a run from another one of the same name, for the names of its bundles."""
    return hashlib.sha256((run_folder / "run.json").read_bytes()).hexdigest()[:8]
