"""The outputs that a model can answer with; to add one: a line in `OUTPUTS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.serve.protocol import (
    BYTES,
    Inference,
    Output,
    OutputTensor,
    best_classes,
    encode_infer,
)
from mate_edge.runtime.serve.reply import Refusal, Reply

Found = Sequence[Prediction]

PROBABILITIES = "probabilities"


def _column(field: str, dtype: type) -> Callable[[Found], NDArray[Any]]:
    """Return what makes an array [n] of a field of n predictions."""
    return lambda found: np.array([getattr(one, field) for one in found], dtype)


OUTPUTS: dict[str, tuple[str, Callable[[Found], NDArray[Any]]]] = {
    PROBABILITIES: ("FP32", lambda found: np.stack([one.probabilities for one in found])),
    "label": (BYTES, _column("label", object)),
    "index": ("INT32", _column("index", np.int32)),
    "confidence": ("FP32", _column("confidence", np.float32)),
    "exit": ("INT32", _column("exit", np.int32)),
    "halted_by": (BYTES, _column("halted_by", object)),
    "ms": ("FP32", _column("elapsed_ms", np.float32)),
    "deadline_missed": ("BOOL", _column("deadline_missed", np.bool_)),
}
"""Datatype, and what makes the array, of n predictions: [n, classes] for the first, else [n]."""
OUTPUT_PARAMETERS = ("binary_data", "classification")


def choose_outputs(request: Inference) -> list[OutputTensor]:
    """Return the outputs to send, each with `binary_data` settled; all when none is named.

    Raises:
        Refusal: 400, an output that is unknown or named twice, an unknown parameter, or a value of
            another type.
    """
    binary = request.parameters.get("binary_data_output", False)
    asked = request.outputs or [OutputTensor(name) for name in OUTPUTS]
    named: set[str] = set()
    for output in asked:
        if output.name not in OUTPUTS:
            raise Refusal(
                400, f"unknown output {output.name[:60]!r}: choose from {', '.join(OUTPUTS)}"
            )
        if output.name in named:
            raise Refusal(400, f"the output {output.name} is named twice: once is enough")
        named.add(output.name)
        for parameter in output.parameters:
            if parameter not in OUTPUT_PARAMETERS:
                raise Refusal(
                    400,
                    f"unknown parameter {parameter[:60]!r} of an output: choose from "
                    f"{', '.join(OUTPUT_PARAMETERS)}",
                )
        if "classification" in output.parameters and output.name != PROBABILITIES:
            raise Refusal(400, f"classification goes with the output {PROBABILITIES}")
        k = output.parameters.get("classification", 1)
        if type(k) is not int or k < 1:
            raise Refusal(
                400, f"classification must be a positive number of classes, not {k!r:.40}"
            )
        for flag in (binary, output.parameters.get("binary_data", False)):
            if not isinstance(flag, bool):
                raise Refusal(400, f"whether data are binary is true or false, not {flag!r:.40}")
    return [
        OutputTensor(output.name, {"binary_data": binary, **output.parameters}) for output in asked
    ]


def respond(
    name: str,
    version: str,
    classes: Sequence[str],
    request: Inference,
    asked: Sequence[OutputTensor],
    found: Found,
) -> Reply:
    """Write the response; for a single image its exit, reason and ms are parameters, too."""
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id:
        head["id"] = request.id
    if len(found) == 1:
        only = found[0]
        head["parameters"] = {
            "exit": only.exit,
            "halted_by": only.halted_by,
            "ms": only.elapsed_ms,
            "deadline_missed": only.deadline_missed,
        }
    outputs = []
    for one in asked:
        datatype, make = OUTPUTS[one.name]
        output = Output(one.name, datatype, make(found))
        k = one.parameters.get("classification")
        if k is not None:
            output = best_classes(output, classes, int(k))
        outputs.append((output, one.parameters))
    return encode_infer(head, outputs)
