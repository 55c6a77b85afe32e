"""What must be the same for times measured on a device to hold still."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mate_edge import __version__
from mate_edge.files import sha256
from mate_edge.machine import cpu_count

if TYPE_CHECKING:
    from mate_edge.runtime.doctor.machine import Machine
    from mate_edge.runtime.engines.engine import Engine


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it was when it was measured.

    Attributes:
        engine: its `device_key`: library and version, threads or GPU, compute capability, CUDA.
        gpu: its name and driver, and what CUDA is called through; None on a CPU.
        cpu: the model.
        cpus: how many of them this process may use.
        power_mode: of a Jetson, or the CPU's frequency governor; None where nothing tells.
        gpu_clocks_mhz: a Jetson's span, equal ends when locked; None elsewhere: `nvidia-smi` cannot
            tell whether a clock is locked.
        versions: of Python, numpy and mate-edge.
    """

    engine: str
    cpu: str
    cpus: int
    power_mode: str | None
    gpu_clocks_mhz: tuple[int, int] | None
    versions: dict[str, str]
    gpu: str | None = None

    def named(self, what: str) -> str:
        """Return the name of a record of the device in this state, such as `bench-01234567`."""
        return f"{what}-{sha256(msgspec.json.encode(self, order='deterministic'))[:8]}"

    def changes(self, other: Fingerprint) -> list[str]:
        """Name what differs in `other`, such as `power_mode: MAXN, then 15W`."""
        return [
            f"{name}: {getattr(self, name)}, then {getattr(other, name)}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]


def fingerprint(engine: Engine, machine: Machine | None = None) -> Fingerprint:
    """Return the fingerprint of the device that `engine` runs on, as it is now.

    Args:
        engine: opened or not.
        machine: this one when None.
    """
    # only who knows a deadline comes here, and these take 14 ms to import
    from mate_edge.runtime.doctor.hardware import cpu_name, gpu_clocks_mhz, power_mode
    from mate_edge.runtime.doctor.machine import Machine

    machine = machine or Machine()
    return Fingerprint(
        engine=engine.device_key,
        gpu=engine.gpu,
        cpu=cpu_name(machine),
        cpus=cpu_count(),
        power_mode=power_mode(machine),
        gpu_clocks_mhz=gpu_clocks_mhz(machine) if machine.jetson is not None else None,
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "mate-edge": __version__,
        },
    )
