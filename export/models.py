"""The ONNX files of a bundle in the making, and how to run them one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Tensor
from mate_edge.machine import cpu_count
from mate_edge.runtime.engines.onnxruntime import make_session, session_options

BATCH = 16


@dataclass(frozen=True)
class Model:
    """An ONNX file, with any number of images as batch.

    Attributes:
        name: what errors call it: `segment 2`.
        data: the file, with its weights inside.
        input: images, or what the segment before hands over.
        outputs: the features for the next segment (none after the last one), then the logits.
    """

    name: str
    data: bytes
    input: Tensor
    outputs: tuple[Tensor, ...]

    @property
    def border_bytes(self) -> int:
        """What it hands to the next segment, at batch 1; 0 after the last one."""
        return sum(tensor.nbytes for tensor in self.outputs[:-1])


@dataclass(frozen=True)
class Models:
    """The segments of a network, in order, and the network without early heads."""

    segments: tuple[Model, ...]
    unsplit: Model

    @property
    def all(self) -> tuple[Model, ...]:
        """Every file."""
        return (*self.segments, self.unsplit)


class Chain:
    """Models that feed one another, on the CPU.

    Args:
        models: each one takes the features of the one before.
        as_written: see `session_options`.

    Raises:
        EngineError: ONNX Runtime refuses one of them.
    """

    def __init__(self, models: Sequence[Model], as_written: bool = True) -> None:
        options = session_options(cpu_count(), shared_pool=False, as_written=as_written)
        self._models = models
        self._sessions = [make_session(model.data, options, model.name) for model in models]

    def run(self, inputs: NDArray[np.generic]) -> list[list[NDArray[Any]]]:
        """Return all outputs of each model for a batch, features first, as `Model.outputs`."""
        found = []
        for model, session in zip(self._models, self._sessions, strict=True):
            names = [output.name for output in model.outputs]
            outputs = session.run(names, {model.input.name: inputs})
            found.append(outputs)
            inputs = outputs[0]
        return found

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of every exit, float32 [n, K, C], for images [n, C, H, W]."""
        return np.stack([outputs[-1] for outputs in self.run(images)], axis=1)


def run_model(model: Model, inputs: NDArray[np.generic], as_written: bool = True) -> NDArray[Any]:
    """Return the first output of a model, its features if it has any, for any number of inputs."""
    chain = Chain([model], as_written)
    return np.concatenate(
        [chain.run(inputs[start : start + BATCH])[0][0] for start in range(0, len(inputs), BATCH)]
    )
