"""What the probes look at: files under a root, commands, installed packages; all can be faked."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from mate_edge.machine import has_nvidia_gpu
from mate_edge.runtime.tensorrt_library import KINDS

TIMEOUT_S = 20.0
TENSORRT_FLOOR = KINDS["tensorrt"].floor
L4T_FLOOR = (36, 4, 0)
CAPABILITY_FLOOR = (7, 5)
"""Turing: TensorRT 10.5 and later read nothing older."""

JETPACKS = {
    (35, 1, 0): "5.0.2",
    (35, 2, 1): "5.1",
    (35, 3, 1): "5.1.1",
    (35, 4, 1): "5.1.2",
    (35, 5, 0): "5.1.3",
    (35, 6, 0): "5.1.4",
    (35, 6, 1): "5.1.5",
    (36, 2, 0): "6.0 DP",
    (36, 3, 0): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (38, 2, 0): "7.0",
    (38, 2, 1): "7.0",
    (38, 4, 0): "7.1",
    (39, 2, 0): "7.2",
}
"""By version of Jetson Linux (L4T): NVIDIA's JetPack archive."""

SOCS = {
    "tegra194": ("Xavier", (7, 2)),
    "tegra234": ("Orin", (8, 7)),
    "tegra264": ("Thor", (11, 0)),
}
"""The GPU's name and compute capability by the device tree's `compatible`."""
CLOCKED = {"gv11b": "tegra194", "ga10b": "tegra234", "gb10b": "tegra264"}
"""The same by the name of the GPU's clock, which a container sees without the device tree."""


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    Attributes:
        name: what it looked for.
        found: what is there; None when nothing is.
        fix: what to type or to do; None when all is well, or nothing can be done.
        needed: whether `mate-edge run` lacks it here; a fix that is not needed is advice.
    """

    name: str
    found: str | None
    fix: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class Ran:
    """What a command did.

    Attributes:
        code: its exit code; 127 when there is no such command, 124 when it took too long.
        text: what it printed.
        error: what it printed on stderr.
    """

    code: int
    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class Jetson:
    """A Jetson: its model, its GPU and the version of its Jetson Linux, such as (36, 4, 3)."""

    model: str
    gpu: str
    capability: tuple[int, int] | None
    l4t: tuple[int, int, int] | None


def run_command(command: Sequence[str]) -> Ran:
    """Run a command that only looks, for `TIMEOUT_S` at most."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C"},  # what is read is English
        )
    except subprocess.TimeoutExpired:
        return Ran(124, error=f"{command[0]} took longer than {TIMEOUT_S:g} s")
    except OSError as reason:
        return Ran(127, error=f"{command[0]}: {reason.strerror}")
    return Ran(done.returncode, done.stdout, done.stderr)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(eq=False)
class Machine:
    """The machine that is examined; the defaults are this one.

    Attributes:
        root: where its files are.
        run: runs a command.
        version: tells the version of an installed package.
        free_bytes: tells the free space of a folder's disk.
        architecture: such as `aarch64`.
        python: the interpreter that mate-edge runs in.
        python_version: of it.
        prefix: its virtual environment, or the same as `base_prefix`.
        base_prefix: the Python that the environment was made from.
        environment: the variables.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], Ran] = run_command
    version: Callable[[str], str | None] = installed_version
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    architecture: str = platform.machine()
    python: str = sys.executable
    python_version: tuple[int, int] = sys.version_info[:2]
    prefix: str = sys.prefix
    base_prefix: str = sys.base_prefix
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _ran: dict[tuple[str, ...], Ran] = field(default_factory=dict)

    def text(self, path: str) -> str | None:
        """Return what a file under the root holds, on one line, or None when it cannot be read."""
        try:
            data = (self.root / path).read_bytes()
        except OSError:
            return None
        return data.decode("utf-8", "replace").replace("\0", " ").strip()

    def ran(self, *command: str) -> Ran:
        """Run a command, once however often it is asked for."""
        if command not in self._ran:
            self._ran[command] = self.run(command)
        return self._ran[command]

    def output(self, *command: str) -> str | None:
        """Return what a command prints, or None when it failed."""
        ran = self.ran(*command)
        return ran.text.strip() if ran.code == 0 else None

    def imports(self, module: str, show: str) -> Ran:
        """Import a module in a process of its own, which it may break, and print `show`."""
        program = (
            f"import sys; sys.path = [p for p in sys.path if p]; import {module}; print({show})"
        )
        return self.ran(self.python, "-c", program)

    def pip(self, *requirements: str) -> str:
        """Return the command that installs packages for the interpreter in use."""
        return " ".join((self.python, "-m pip install", *requirements))

    @cached_property
    def jetson(self) -> Jetson | None:
        """Which Jetson it is, if any."""
        compatible = self.text("proc/device-tree/compatible") or ""
        found = re.search(r"tegra\d+", compatible)
        soc = found[0] if found else self._soc_by_clock()
        kernel = self.text("proc/sys/kernel/osrelease") or ""
        told = soc is not None or kernel.endswith("-tegra")
        if not told and self.text("etc/nv_tegra_release") is None:
            return None
        gpu, capability = SOCS.get(soc or "", ("an unknown Tegra", None))
        model = self.text("proc/device-tree/model") or "a Jetson of an unknown model"
        return Jetson(model, gpu, capability, self._l4t())

    def _soc_by_clock(self) -> str | None:
        clocks = [path.name for path in (self.root / "sys/class/devfreq").glob("*")]
        return next((soc for name, soc in CLOCKED.items() for c in clocks if name in c), None)

    def _l4t(self) -> tuple[int, int, int] | None:
        release = self.text("etc/nv_tegra_release") or ""
        match = re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", release)
        if match is None:
            package = self.output("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core")
            match = re.match(r"(\d+)\.(\d+)\.(\d+)", package or "")
        return None if match is None else (int(match[1]), int(match[2]), int(match[3]))

    @cached_property
    def gpus(self) -> list[list[str]]:
        """Name, compute capability and driver of each GPU that `nvidia-smi` knows."""
        query = "--query-gpu=name,compute_cap,driver_version"
        listed = self.output("nvidia-smi", query, "--format=csv,noheader") or ""
        rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
        return [row for row in rows if len(row) == 3]

    @cached_property
    def capability(self) -> tuple[int, int] | None:
        """The lowest compute capability of the GPUs, or None when it is unknown."""
        if self.jetson is not None:
            return self.jetson.capability
        known = [numbers(row[1])[:2] for row in self.gpus if re.fullmatch(r"\d+\.\d+", row[1])]
        return min(((major, minor) for major, minor in known), default=None)

    @cached_property
    def has_gpu(self) -> bool:
        """Whether CUDA could use an NVIDIA GPU."""
        return has_nvidia_gpu(self.root, self.environment)

    @cached_property
    def wants_tensorrt(self) -> bool:
        """Whether there is a GPU that TensorRT can use, or a Jetson whose GPU is hidden."""
        recent = self.capability is None or self.capability >= CAPABILITY_FLOOR
        return recent and (self.has_gpu or self.jetson is not None)

    @cached_property
    def driver(self) -> str | None:
        """The version of NVIDIA's driver."""
        if self.gpus and self.jetson is None:
            return self.gpus[0][2]
        text = self.text("proc/driver/nvidia/version") or ""
        match = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", text)
        return match[1] if match else None

    @cached_property
    def cuda(self) -> tuple[int, ...] | None:
        """The newest CUDA that the driver serves."""
        shown = self.output("nvidia-smi") or ""
        match = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", shown)
        if match is not None:
            return numbers(match[1])
        if self.jetson is not None and self.jetson.l4t is not None:
            return (
                (13, 0)
                if self.jetson.l4t[0] >= 38
                else ((12, 6) if self.jetson.l4t >= L4T_FLOOR else None)
            )
        major = numbers(self.driver or "0")[0]
        return (13, 0) if major >= 580 else (12, 0) if major >= 525 else None


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (10, 3, 0) of `10.3.0.30-1`, (0,) of none."""
    match = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(int(part) for part in match[0].split("."))[:3] if match else (0,)


def dotted(version: Sequence[int]) -> str:
    """Write a version."""
    return ".".join(map(str, version))
