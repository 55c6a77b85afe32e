"""What a bundle can be made for. To add a target: a line here."""

from __future__ import annotations

from dataclasses import dataclass

from mate_edge.names import look_up


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        precisions: those that can be exported, the default first.
        opsets: the ONNX opsets that its engine reads, lowest and highest.
    """

    precisions: tuple[str, ...]
    opsets: tuple[int, int]


def choose(target: str, precision: str | None) -> tuple[Target, str]:
    """Return the target of that name and the precision to export, its default when None.

    Raises:
        UsageError: an unknown target, or a precision that it does not take.
    """
    kind = look_up("--target", target, TARGETS)
    precision = precision or kind.precisions[0]
    look_up(f"--precision of {target}", precision, dict.fromkeys(kind.precisions))
    return kind, precision


TARGETS: dict[str, Target] = {
    "cpu": Target(precisions=("fp32",), opsets=(18, 21)),
}
