"""What a bundle can be made for. To add a target: a line here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        precisions: those that can be exported, the default first.
        opsets: the ONNX opsets that its engine reads, lowest and highest.
    """

    precisions: tuple[str, ...]
    opsets: tuple[int, int]


TARGETS: dict[str, Target] = {
    "cpu": Target(precisions=("fp32",), opsets=(18, 21)),
}
