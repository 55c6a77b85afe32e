"""What a bundle can be made for. To add a target: a line in `TARGETS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mate_edge.bundle import MAX_BATCH, Precision
from mate_edge.errors import UsageError
from mate_edge.export.operators import TENSORRT
from mate_edge.export.precision import FOR_ONNX_RUNTIME, FOR_TENSORRT, Conversion
from mate_edge.names import look_up


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        precisions: those that can be exported, the default first.
        conversions: how each of them is made out of fp32.
        opsets: the ONNX opsets that its engine reads, lowest and highest.
        engine: the name of the engine that runs its bundles, as in the runtime's `ENGINES`.
        operators: those that its engine reads; None leaves the check to ONNX Runtime, which has
            run every segment anyway.
        needs: what the device must have at least, for people.
        machine: of its devices, as `platform.machine()` says; None: any.
        build: how to make engines there, in two lines with the bundle's `{path}` and `{name}`;
            none when nothing is built.
    """

    precisions: tuple[Precision, ...]
    conversions: Mapping[str, Conversion]
    opsets: tuple[int, int]
    engine: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    operators: frozenset[str] | None = None
    needs: str = ""
    machine: str | None = None
    build: tuple[str, ...] = ()

    def next_steps(self, bundle: Path) -> list[str]:
        """Return the lines that say how to build the engines of a bundle on the device."""
        return [line.format(path=bundle, name=bundle.name, needs=self.needs) for line in self.build]


NVIDIA: tuple[Precision, ...] = ("fp16", "fp32", "int8")
NVIDIA_OPSETS = (18, 20)  # TensorRT 10.3 reads up to 20
TENSORRT_NEEDS = "TensorRT 10.3 or newer"
JETPACK_NEEDS = f"JetPack 6.1 or newer, which brings {TENSORRT_NEEDS}"

TARGETS: dict[str, Target] = {
    "cpu": Target(
        precisions=("fp32", "int8"),
        conversions=FOR_ONNX_RUNTIME,
        opsets=(18, 21),
        engine="onnxruntime",
    ),
    "cuda": Target(
        precisions=NVIDIA,
        conversions=FOR_TENSORRT,
        opsets=NVIDIA_OPSETS,
        engine="tensorrt",
        operators=TENSORRT,
        needs=f"an NVIDIA GPU and {TENSORRT_NEEDS}",
        build=(
            "engines are built where they run: copy {path} to the machine with {needs},",
            "and type there: mate-edge build {name}",
        ),
    ),
    "jetson": Target(
        precisions=NVIDIA,
        conversions=FOR_TENSORRT,
        opsets=NVIDIA_OPSETS,
        engine="tensorrt",
        operators=TENSORRT,
        needs=JETPACK_NEEDS,
        machine="aarch64",
        build=(
            "engines are built where they run: copy {path} to the Jetson with {needs},",
            "and type there: mate-edge build {name}",
        ),
    ),
    "rtx": Target(
        precisions=NVIDIA,
        conversions=FOR_TENSORRT,
        opsets=NVIDIA_OPSETS,
        engine="tensorrt_rtx",
        operators=TENSORRT,
        needs="an RTX GPU and TensorRT for RTX 1.7 or newer",
        build=(
            "engines run on a machine with {needs}, and are built there or anywhere",
            "(pip install tensorrt-rtx-cu13): mate-edge build {path} --compute-capability 8.6,8.9",
        ),
    ),
}


def choose(target: str, precision: str | None) -> tuple[Target, Precision]:
    """Return the target of that name and the precision to export, its default when None.

    Raises:
        UsageError: an unknown target, or a precision that it does not take.
    """
    kind = look_up("--target", target, TARGETS)
    known: dict[str, Precision] = {name: name for name in kind.precisions}
    chosen = precision or kind.precisions[0]
    return kind, look_up(f"--precision of {target}", chosen, known)


def check_max_batch(target: str, max_batch: int) -> None:
    """Refuse a largest batch that no engine is built for.

    Raises:
        UsageError: outside 1..`MAX_BATCH`, or given for a target whose engine takes any.
    """
    if not 1 <= max_batch <= MAX_BATCH:
        raise UsageError(f"--max-batch must lie between 1 and {MAX_BATCH}, not {max_batch}")
    if max_batch > 1 and not TARGETS[target].build:
        raise UsageError(f"--max-batch is for engines that are built: {target} takes any batch")
