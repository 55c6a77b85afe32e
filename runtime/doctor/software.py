"""The probes of what is installed: Python, TensorRT, the bindings to CUDA, and the rest."""

from __future__ import annotations

from pathlib import Path

from mate_edge.runtime.doctor.machine import (
    L4T_FLOOR,
    TENSORRT_FLOOR,
    Finding,
    Machine,
    Ran,
    dotted,
    numbers,
)

PYTHON_FLOOR = (3, 10)
VENV = "python3 -m venv --system-site-packages ~/me"
_NUMPY_1 = "'numpy<2'"
ABSENT = "not needed without an NVIDIA GPU"


def probe_python(machine: Machine) -> Finding:
    """Tell the interpreter."""
    found = f"{dotted(machine.python_version)}, {machine.python}"
    if machine.python_version >= PYTHON_FLOOR:
        return Finding("Python", found)
    return Finding("Python", found, f"install Python {dotted(PYTHON_FLOOR)} or later")


def probe_environment(machine: Machine) -> Finding:
    """Tell whether a virtual environment sees the system's packages, as JetPack's TensorRT needs.

    A fix that matters is given by `probe_tensorrt`, when TensorRT is what cannot be seen.
    """
    if machine.prefix == machine.base_prefix:
        return Finding("virtual environment", "none: the system's own Python")
    seen = "sees" if _sees_system(machine) else "does not see"
    return Finding("virtual environment", f"{machine.prefix}, {seen} the system's packages")


def _sees_system(machine: Machine) -> bool:
    if machine.prefix == machine.base_prefix:
        return True
    settings = machine.text(f"{machine.prefix.lstrip('/')}/pyvenv.cfg") or ""
    values = dict(line.lower().split(" = ", 1) for line in settings.splitlines() if " = " in line)
    return values.get("include-system-site-packages", "").strip() == "true"


def probe_numpy(machine: Machine) -> Finding:
    """Tell numpy's version; ROS 2 Humble's cv_bridge was built against numpy 1."""
    version = machine.version("numpy")
    if version is None:
        return Finding("numpy", None, machine.pip("'numpy>=1.26'"))
    humble = (machine.root / "opt/ros/humble").exists()
    if not humble or numbers(version)[0] < 2:
        return Finding("numpy", version)
    fix = f"only for ROS 2 Humble's cv_bridge: {machine.pip(_NUMPY_1)}"
    return Finding("numpy", version, fix, needed=False)


def probe_onnxruntime(machine: Machine) -> Finding:
    """Tell onnxruntime's version and providers."""
    shown = "m.__version__, ' '.join(m.get_available_providers())"
    ran = machine.imports("onnxruntime as m", shown)
    if ran.code != 0:
        fix = machine.pip("'onnxruntime>=1.23'")
        return Finding("onnxruntime", _why(ran), fix)
    version, _, providers = ran.text.strip().partition(" ")
    names = [name.removesuffix("ExecutionProvider") for name in providers.split()]
    return Finding("onnxruntime", f"{version}, {', '.join(names)}")


def probe_torch(machine: Machine) -> Finding:
    """Tell torch's version, without importing it."""
    version = machine.version("torch")
    return Finding("torch", version or "not there; only training and export need it")


def probe_tensorrt(machine: Machine) -> Finding:
    """Tell TensorRT's version, and how to get one that works."""
    ran = machine.imports("tensorrt as m", "m.__version__")
    if not machine.wants_tensorrt:
        return Finding("TensorRT", ran.text.strip() if ran.code == 0 else ABSENT)
    if ran.code == 0:
        version = ran.text.strip()
        old = numbers(version) < TENSORRT_FLOOR
        return Finding("TensorRT", version, _upgrade_tensorrt(machine) if old else None)
    fix = _jetpack_tensorrt(machine) if machine.jetson else _pip_tensorrt(machine)
    rtx = machine.jetson is None and _rtx(machine).code == 0
    return Finding("TensorRT", _why(ran), fix, needed=not rtx)


def _upgrade_tensorrt(machine: Machine) -> str:
    if machine.jetson is not None:
        return f"{dotted(TENSORRT_FLOOR)} is the oldest that works: it comes with JetPack 6.1"
    return f"{dotted(TENSORRT_FLOOR)} is the oldest that works: {_pip_tensorrt(machine)}"


def _pip_tensorrt(machine: Machine) -> str:
    major = machine.cuda[0] if machine.cuda else 12
    package = "tensorrt-cu13" if major >= 13 else "tensorrt-cu12"
    return machine.pip("--upgrade", f"'{package}>={dotted(TENSORRT_FLOOR)}'")


def _jetpack_tensorrt(machine: Machine) -> str:
    """Return how a Jetson's Python gets to see the TensorRT that JetPack brings."""
    assert machine.jetson is not None
    if machine.jetson.l4t is not None and machine.jetson.l4t < L4T_FLOOR:
        return "upgrade JetPack first, see above"
    found = [
        path for path in machine.root.glob("usr/lib/python3*/dist-packages/tensorrt")
        if path.is_dir()
    ]  # fmt: skip
    if not found:
        return "sudo apt install python3-libnvinfer"
    if not _sees_system(machine):
        return (
            f"this environment does not see JetPack's TensorRT: make one with `{VENV}`, or write "
            f"include-system-site-packages = true in {machine.prefix}/pyvenv.cfg"
        )
    library = Path("/") / found[0].relative_to(machine.root)
    return f"{library} is for the system's python3: use it, `/usr/bin/{VENV}`"


def probe_tensorrt_rtx(machine: Machine) -> Finding:
    """Tell the version of TensorRT for RTX."""
    ran = _rtx(machine)
    absent = "not there; only bundles for the target rtx need it"
    return Finding("TensorRT for RTX", ran.text.strip() if ran.code == 0 else absent)


def _rtx(machine: Machine) -> Ran:
    return machine.imports("tensorrt_rtx as m", "m.__version__")


def probe_cuda_bindings(machine: Machine) -> Finding:
    """Tell the version of cuda-bindings; it must not be of a later CUDA than the driver's."""
    ran = machine.imports("cuda.bindings.driver", "0")
    version = machine.version("cuda-bindings")
    if not machine.wants_tensorrt:
        return Finding("cuda-bindings", version or ABSENT)
    known = machine.cuda[0] if machine.cuda else 12
    wanted = "'cuda-bindings>=13,<14'" if known >= 13 else "'cuda-bindings>=12.6,<13'"
    needed = _pycuda(machine).code != 0
    if ran.code != 0 or version is None:
        return Finding("cuda-bindings", _why(ran), machine.pip(wanted), needed)
    if numbers(version)[0] <= known:
        return Finding("cuda-bindings", version)
    found = f"{version}, but the driver serves CUDA {dotted(machine.cuda or (known,))}"
    return Finding("cuda-bindings", found, machine.pip(wanted), needed)


def probe_pycuda(machine: Machine) -> Finding:
    """Tell PyCUDA's version: instead of cuda-bindings."""
    ran = _pycuda(machine)
    return Finding("PyCUDA", ran.text.strip() if ran.code == 0 else "not there; not needed")


def _pycuda(machine: Machine) -> Ran:
    return machine.imports("pycuda, pycuda.driver", "pycuda.VERSION_TEXT")


def probe_polygraphy(machine: Machine) -> Finding:
    """Tell Polygraphy's version: it builds engines."""
    version = machine.version("polygraphy")
    if version is not None or not machine.wants_tensorrt:
        return Finding("polygraphy", version or ABSENT)
    return Finding("polygraphy", None, machine.pip("polygraphy"))


def probe_onnx(machine: Machine) -> Finding:
    """Tell the version of the package onnx: it writes the preprocessing that runs on the GPU."""
    version = machine.version("onnx")
    if version is not None or not machine.wants_tensorrt:
        return Finding("onnx", version or ABSENT)
    fix = f"only for mate-edge build --frame: {machine.pip('onnx')}"
    return Finding("onnx", None, fix, needed=False)


def _why(ran: Ran) -> str | None:
    """Return why an import failed; None when the package is just not there."""
    lines = ran.error.strip().splitlines()
    if lines and lines[-1].startswith("ModuleNotFoundError"):
        return None
    return f"does not load: {lines[-1] if lines else f'exit code {ran.code}'}"
