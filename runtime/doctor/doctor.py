"""All probes in order, and how their findings are shown. To add a probe: a function, a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from mate_edge.runtime.doctor import hardware, software
from mate_edge.runtime.doctor.machine import Finding, Machine

Probe = Callable[[Machine], Finding | None]

PROBES: dict[str, Probe] = {
    "machine": hardware.probe_model,
    "CPU": hardware.probe_cpu,
    "memory": hardware.probe_memory,
    "disk": hardware.probe_disk,
    "GPU": hardware.probe_gpu,
    "compute capability": hardware.probe_capability,
    "driver": hardware.probe_driver,
    "CUDA": hardware.probe_cuda,
    "JetPack": hardware.probe_jetpack,
    "power mode": hardware.probe_power_mode,
    "clock lock": hardware.probe_clock_lock,
    "Python": software.probe_python,
    "virtual environment": software.probe_environment,
    "TensorRT": software.probe_tensorrt,
    "TensorRT for RTX": software.probe_tensorrt_rtx,
    "cuda-bindings": software.probe_cuda_bindings,
    "PyCUDA": software.probe_pycuda,
    "polygraphy": software.probe_polygraphy,
    "onnx": software.probe_onnx,
    "onnxruntime": software.probe_onnxruntime,
    "numpy": software.probe_numpy,
    "torch": software.probe_torch,
}
"""In the order in which they are shown; one that returns None has nothing to say here."""


def examine(machine: Machine) -> Iterator[Finding]:
    """Run all probes; one that breaks says so and the others go on."""
    for name, probe in PROBES.items():
        try:
            finding = probe(machine)
        except Exception as reason:
            broken = f"this probe failed: {type(reason).__name__}: {reason}"
            finding = Finding(name, broken, needed=False)
        if finding is not None:
            yield finding


def doctor(json: bool, machine: Machine | None = None) -> int:
    """Print what this machine has and lacks.

    Returns:
        The exit code: 0 when all that `mate-edge run` needs here is there, otherwise 1.
    """
    findings = []
    for finding in examine(machine or Machine()):
        findings.append(finding)
        print(_json_line(finding) if json else _lines(finding), flush=True)
    missing = [finding.name for finding in findings if finding.needed and finding.fix]
    if not json:
        print(_verdict(missing))
    return 1 if missing else 0


def _lines(finding: Finding) -> str:
    """Return one line, and a second one with what to do: `x` lacks, `!` is advised."""
    mark = " " if finding.fix is None else "x" if finding.needed else "!"
    line = f"{mark} {finding.name:<20} {finding.found or 'not found'}"
    return line if finding.fix is None else f"{line}\n{'':<23}-> {finding.fix}"


def _verdict(missing: Sequence[str]) -> str:
    if not missing:
        return "all that this machine needs to run bundles is there"
    return f"lacking: {', '.join(missing)}; what to do stands after each ->"


def _json_line(finding: Finding) -> str:
    return msgspec.json.encode(finding).decode()
