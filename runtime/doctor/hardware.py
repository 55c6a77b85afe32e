"""The probes of the machine itself: board, GPU, driver, JetPack, power and clocks."""

from __future__ import annotations

import os
import re

from mate_edge.machine import cpu_count
from mate_edge.runtime.doctor.machine import (
    CAPABILITY_FLOOR,
    JETPACKS,
    L4T_FLOOR,
    Finding,
    Machine,
    dotted,
    numbers,
)
from mate_edge.runtime.state import VARIABLE, state_root

LITTLE_MEMORY = 2 * 2**30
LITTLE_DISK = 2**30


def probe_model(machine: Machine) -> Finding:
    """Name the board, or the architecture."""
    jetson = machine.jetson
    return Finding("machine", jetson.model if jetson else f"{machine.architecture}, no Jetson")


def probe_cpu(machine: Machine) -> Finding:
    """Name the CPU."""
    return Finding("CPU", f"{cpu_name(machine)}, {cpu_count()} usable here")


def cpu_name(machine: Machine) -> str:
    """Return the CPU's model, or the architecture when nothing tells."""
    info = machine.text("proc/cpuinfo") or ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    if match is None or machine.architecture == "aarch64":  # "ARMv8 Processor" there, all alike
        listed = machine.output("lscpu") or ""
        match = re.search(r"^Model name:\s*(.+)$", listed, re.MULTILINE) or match
    return match[1].strip() if match else machine.architecture


def probe_memory(machine: Machine) -> Finding:
    """Say how much memory there is; a Jetson's GPU shares it."""
    info = machine.text("proc/meminfo") or ""
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s*(\d+) kB", info)}
    if "MemTotal" not in sizes:
        return Finding("memory", None)
    free = sizes.get("MemAvailable", sizes["MemTotal"])
    found = f"{_gib(sizes['MemTotal'])}, {_gib(free)} available"
    if free >= LITTLE_MEMORY:
        return Finding("memory", found)
    fix = "building engines may fail: close other programs, or stop the desktop with " \
        "`sudo systemctl isolate multi-user.target`"  # fmt: skip
    return Finding("memory", found, fix, needed=False)


def probe_disk(machine: Machine) -> Finding:
    """Say how much room there is where engines are kept."""
    folder = state_root().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = machine.free_bytes(there)
    found = f"{_gib(free)} free for engines in {folder}"
    fix = f"make room, or choose another folder with {VARIABLE}" if free < LITTLE_DISK else None
    return Finding("disk", found, fix, needed=False)


def probe_gpu(machine: Machine) -> Finding:
    """Name the GPU; say why CUDA cannot use one that is there."""
    if machine.jetson is not None:
        found = f"{machine.jetson.gpu}, integrated"
        if machine.has_gpu and (closed := _closed_nodes(machine)):
            fix = (
                "`sudo usermod -aG video,render $USER`, log in again; in a container `--group-add`"
            )
            return Finding("GPU", f"{found}, but this user may not open {closed}", fix)
        if machine.has_gpu:
            return Finding("GPU", found)
        fix = "start the container with `--runtime nvidia`, or unset CUDA_VISIBLE_DEVICES"
        return Finding("GPU", f"{found}, but not usable in here", fix)
    names = ", ".join(row[0] for row in machine.gpus)
    if machine.has_gpu:
        return Finding("GPU", names or "an NVIDIA GPU (nvidia-smi does not answer)")
    if names:
        fix = "unset CUDA_VISIBLE_DEVICES" if machine.environment.get("CUDA_VISIBLE_DEVICES") \
            is not None else "look at `nvidia-smi` and `sudo dmesg`"  # fmt: skip
        return Finding("GPU", f"{names}, but not usable in here", fix)
    if machine.text("proc/driver/nvidia/version") is not None:
        fix = "if this is a container of a machine with a GPU: `docker run --gpus all`"
        return Finding("GPU", "none, though NVIDIA's driver is loaded", fix, needed=False)
    if _on_pci_bus(machine):
        fix = "install NVIDIA's driver, on Ubuntu with `sudo ubuntu-drivers install`, and restart"
        return Finding("GPU", "an NVIDIA GPU without NVIDIA's driver", fix)
    return Finding("GPU", "none of NVIDIA's: the CPU runs everything")


def _closed_nodes(machine: Machine) -> str:
    """Return which of a Jetson's device files this user may not read and write."""
    nodes = (
        machine.root / name for name in ("dev/nvmap", "dev/nvgpu/igpu0/ctrl", "dev/nvhost-gpu")
    )
    closed = [n for n in nodes if n.exists() and not os.access(n, os.R_OK | os.W_OK)]
    return ", ".join(f"/{node.relative_to(machine.root)}" for node in closed)


def _on_pci_bus(machine: Machine) -> bool:
    """Say whether a display controller of NVIDIA's is on the bus."""
    for device in (machine.root / "sys/bus/pci/devices").glob("*"):
        place = device.relative_to(machine.root)
        vendor, kind = machine.text(f"{place}/vendor"), machine.text(f"{place}/class") or ""
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def probe_capability(machine: Machine) -> Finding | None:
    """Tell the compute capability, and whether TensorRT reads it still."""
    if not (machine.has_gpu or machine.jetson):
        return None
    if machine.capability is None:
        return Finding("compute capability", None)
    found = dotted(machine.capability)
    if machine.capability >= CAPABILITY_FLOOR:
        return Finding("compute capability", found)
    fix = f"TensorRT needs {dotted(CAPABILITY_FLOOR)}: type mate-edge run --engine onnxruntime"
    return Finding("compute capability", found, fix, needed=False)


def probe_driver(machine: Machine) -> Finding | None:
    """Tell the version of NVIDIA's driver."""
    if not (machine.has_gpu or machine.jetson):
        return None
    if machine.jetson is not None:
        return Finding("driver", machine.driver or "of Jetson Linux")
    version = machine.driver
    if version is None or numbers(version)[0] >= 525 or not machine.wants_tensorrt:
        return Finding("driver", version)
    fix = "CUDA 12 needs 525 or later: on Ubuntu `sudo ubuntu-drivers install`, and restart"
    return Finding("driver", version, fix)


def probe_cuda(machine: Machine) -> Finding | None:
    """Tell the newest CUDA that the driver serves, and the toolkit, which nothing here needs."""
    if not (machine.has_gpu or machine.jetson):
        return None
    toolkit = machine.text("usr/local/cuda/version.json") or ""
    match = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', toolkit)
    found = [f"{dotted(machine.cuda)} by the driver"] if machine.cuda else []
    found += [f"toolkit {match[1]}"] if match else []
    return Finding("CUDA", ", ".join(found) or None)


def probe_jetpack(machine: Machine) -> Finding | None:
    """Tell JetPack's version and what to do about one below the floor."""
    jetson = machine.jetson
    if jetson is None:
        return None
    if jetson.l4t is None:
        return Finding("JetPack", None, "in a container, mount /etc/nv_tegra_release", needed=False)
    package = machine.output("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack")
    version = package.split("+")[0] if package else JETPACKS.get(jetson.l4t)
    families = {35: "5", 36: "6"}
    version = version or families.get(jetson.l4t[0], "7" if jetson.l4t[0] > 36 else "an old one")
    found = f"{version} (Jetson Linux {dotted(jetson.l4t)})"
    if jetson.l4t >= L4T_FLOOR:
        return Finding("JetPack", found)
    if not machine.wants_tensorrt:
        advice = f"{jetson.gpu} ends here: type mate-edge run --engine onnxruntime"
        return Finding("JetPack", found, advice, needed=False)
    if jetson.l4t[0] == 36:
        fix = (
            "6.1 is the oldest that works: write r36.4 for the release in "
            "/etc/apt/sources.list.d/nvidia-l4t-apt-source.list, then `sudo apt update && "
            "sudo apt dist-upgrade && sudo apt install nvidia-jetpack`, and restart"
        )
    else:
        fix = "6.1 is the oldest that works, and apt does not lead there: flash it with SDK Manager"
    return Finding("JetPack", found, fix)


def probe_power_mode(machine: Machine) -> Finding | None:
    """Tell a Jetson's power mode; advise the one without limits."""
    if machine.jetson is None:
        return None
    mode = power_mode(machine)
    if mode is None:
        return Finding("power mode", None, "look yourself: `sudo nvpmodel -q`", needed=False)
    modes = machine.text("etc/nvpmodel.conf") or ""
    fastest = re.findall(r"^<\s*POWER_MODEL ID=(\d+) NAME=(MAXN\w*)\s*>", modes, re.MULTILINE)
    if mode.startswith("MAXN") or not fastest:
        return Finding("power mode", mode)
    number, name = max(fastest, key=lambda mode: len(mode[1]))  # MAXN_SUPER over MAXN
    fix = f"for the shortest times `sudo nvpmodel -m {number}` ({name}), if power and cooling allow"
    return Finding("power mode", mode, fix, needed=False)


def power_mode(machine: Machine) -> str | None:
    """Return a Jetson's power mode, or elsewhere the CPU's frequency governor; None: unknown."""
    if machine.jetson is None:
        return machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    match = re.search(r"NV Power Mode:\s*(\S+)", machine.ran("nvpmodel", "-q").text)
    return match[1] if match else None


def probe_clock_lock(machine: Machine) -> Finding | None:
    """Tell whether the GPU's clock is locked: one that follows the load makes times vary."""
    if machine.jetson is not None:
        return _jetson_clocks(machine)
    if not machine.has_gpu:
        return None
    query = "--query-gpu=clocks.sm,clocks.max.sm"
    listed = machine.output("nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    match = re.match(r"(\d+), (\d+)", listed)
    if match is None:
        return Finding("clock lock", None)
    found = f"now {match[1]} of {match[2]} MHz (nvidia-smi cannot tell whether it is locked)"
    fix = f"while you measure `sudo nvidia-smi -lgc {match[2]}`; afterwards `sudo nvidia-smi -rgc`"
    return Finding("clock lock", found, fix, needed=False)


def _jetson_clocks(machine: Machine) -> Finding:
    fix = "while you measure `sudo jetson_clocks`; it lasts until the next start"
    span = gpu_clocks_mhz(machine)
    if span is not None:
        if span[0] == span[1]:
            return Finding("clock lock", f"on, {span[1]} MHz")
        return Finding("clock lock", f"off, {span[0]} to {span[1]} MHz", fix, needed=False)
    shown = machine.output("jetson_clocks", "--show") or ""
    match = re.search(r"GPU MinFreq=(\d+) MaxFreq=(\d+)", shown)
    if match is None:
        return Finding("clock lock", None, "look yourself: `sudo jetson_clocks --show`", False)
    locked = match[1] == match[2]
    return Finding("clock lock", "on" if locked else "off", None if locked else fix, needed=False)


def gpu_clocks_mhz(machine: Machine) -> tuple[int, int] | None:
    """Return the span of a Jetson's GPU clock, equal ends when it is locked; None: unknown."""
    for device in sorted((machine.root / "sys/class/devfreq").glob("*")):
        if not re.search(r"gpu|ga10b|gv11b|gb10b", device.name):
            continue
        place = device.relative_to(machine.root)
        lowest, highest = (machine.text(f"{place}/{name}_freq") for name in ("min", "max"))
        if lowest is not None and highest is not None:
            return int(lowest) // 1_000_000, int(highest) // 1_000_000
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
