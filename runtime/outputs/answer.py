"""An answer on its way out, and the label that does not flicker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import UsageError
from mate_edge.runtime.sources.source import Shot

if TYPE_CHECKING:
    from mate_edge.runtime.prediction import Prediction


class Answer(msgspec.Struct, frozen=True):
    """What was found in an image or a frame.

    Attributes:
        shot: where it comes from.
        frame: the file's path, or the frame, uint8 RGB [H, W, 3].
        prediction: of this frame alone.
        label: what is shown: the prediction's, or with patience the steady one.
        confidence: the probability of `label` in this frame.
        top: the likeliest classes of this frame with their probabilities, as many as asked for.
    """

    shot: Shot
    frame: Path | NDArray[np.uint8]
    prediction: Prediction
    label: str
    confidence: float
    top: tuple[tuple[str, float], ...] = ()


class Output(ABC):
    """Takes answers as they come."""

    @abstractmethod
    def add(self, answer: Answer) -> None:
        """Take an answer.

        Raises:
            UsageError: it cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish; what was taken is kept.

        Raises:
            UsageError: it cannot be written.
        """


def likeliest(
    probabilities: NDArray[np.float32], classes: Sequence[str], number: int
) -> tuple[tuple[str, float], ...]:
    """Return so many classes, the likeliest first, with their probabilities [C]."""
    order = np.argsort(-probabilities, kind="stable")[:number]
    return tuple((classes[index], float(probabilities[index])) for index in order.tolist())


class Steady:
    """Changes its mind only when `frames` frames in a row agree; each source begins anew.

    Args:
        frames: how many; 1 follows every frame.

    Raises:
        UsageError: fewer than 1.
    """

    def __init__(self, frames: int = 1) -> None:
        if frames < 1:
            raise UsageError(f"--patience-frames must be 1 or more, not {frames}")
        self.frames = frames
        self._source: str | None = None
        self._steady = self._candidate = -1
        self._agreed = 0

    def index(self, shot: Shot, index: int) -> int:
        """Return the class to show, given the class of this frame."""
        source = shot.source if shot.number is not None else ""
        if source != self._source:
            self._source, self._steady = source, index
        self._agreed = self._agreed + 1 if index == self._candidate else 1
        self._candidate = index
        if self._agreed >= self.frames:
            self._steady = index
        return self._steady
