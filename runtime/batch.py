"""Several images through segments one after another; those that leave make the batch smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import Policy, decide
from mate_edge.decide.softmax import Logits, largest
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.prediction import HaltedBy, Prediction
from mate_edge.runtime.segments import check_logits


class _Leaving(NamedTuple):
    """Samples of a batch that left at the same exit.

    Attributes:
        rows: their places in the batch, [m].
        exit: that they left at.
        halted_by: as of a prediction.
        elapsed_ms: from the start to the decision.
        segment_ms: of each segment run, on the whole batch.
        probabilities: float32 [m, C].
    """

    rows: NDArray[np.intp]
    exit: int
    halted_by: HaltedBy
    elapsed_ms: float
    segment_ms: tuple[float, ...]
    probabilities: Logits

    def predictions(
        self, classes: Sequence[str], decode_ms: float = 0.0, preprocess_ms: float = 0.0
    ) -> list[Prediction]:
        """Return a prediction of each sample, in the order of `rows`."""
        indices = self.probabilities.argmax(axis=-1)
        confidences = self.probabilities[np.arange(len(indices)), indices]
        return [
            Prediction(
                label=classes[index],
                index=index,
                confidence=confidence,
                exit=self.exit,
                halted_by=self.halted_by,
                elapsed_ms=self.elapsed_ms,
                decode_ms=decode_ms,
                preprocess_ms=preprocess_ms,
                segment_ms=self.segment_ms,
                deadline_missed=False,
                relative=relative,
            )
            for index, confidence, relative in zip(
                indices.tolist(), confidences.tolist(), self.probabilities, strict=True
            )
        ]


def _run_batch(
    engine: Engine, n: int, policy: Policy, clock: Callable[[], int], started: int
) -> tuple[list[_Leaving], Logits]:
    """Run segments over the n samples that the engine has loaded until all have left.

    Those that leave make the next segment's batch smaller. See `Loop` for what is not said here.

    Returns:
        Who left, exit by exit, and exit 1's confidence in each sample, float32 [n].

    Raises:
        EngineError: the engine failed, or returned something that is no number.
    """
    num_segments, classes = engine.num_segments, len(engine.bundle.manifest.classes)
    passed = np.empty((n, num_segments, classes), np.float32)
    rows = np.arange(n)
    left: list[_Leaving] = []
    segment_ms: tuple[float, ...] = ()
    for k in range(1, num_segments + 1):
        engine.open(k)
        began = clock()
        logits = engine.run(k)
        segment_ms += ((clock() - began) / 1e6,)
        check_logits(logits, k, engine)
        passed[:, k - 1] = logits
        leave, probabilities = decide(policy, passed[:, :k])
        if k == 1:
            first = largest(probabilities)
        elapsed_ms = (clock() - started) / 1e6
        if k == num_segments:
            left.append(_Leaving(rows, k, "last-exit", elapsed_ms, segment_ms, probabilities))
            break
        gone = np.flatnonzero(leave)
        if not len(gone):
            continue
        left.append(_Leaving(rows[gone], k, "policy", elapsed_ms, segment_ms, probabilities[gone]))
        if len(gone) == len(rows):
            break
        stay = np.flatnonzero(~leave)
        rows, passed = rows[stay], passed[stay]
        engine.keep(stay)
    return left, first


def answer_batches(
    engine: Engine,
    load: Callable[[NDArray[Any]], None],
    images: NDArray[Any],
    policy: Policy,
    clock: Callable[[], int],
    started: int,
    decode_ms: float = 0.0,
    preprocess_ms: float = 0.0,
) -> tuple[list[Prediction], list[float]]:
    """Load and run all samples, in equal parts that the engine runs at once.

    No prediction is made until the last part has run: between two segments little should be
    touched.

    Args:
        engine: whose segments.
        load: the engine's `load` or `load_pixels`.
        images: [n, ...], as `load` takes them.
        policy: says which samples leave.
        clock: in ns.
        started: when the first one began, by the clock.
        decode_ms: for the predictions.
        preprocess_ms: likewise.

    Returns:
        A prediction of each sample, and exit 1's confidence in it.

    Raises:
        EngineError: the engine failed, or returned something that is no number.
    """
    number = math.ceil(len(images) / engine.batch_size)
    parts = [images] if number == 1 else np.array_split(images, number)
    answers = []
    for part in parts:
        load(part)
        answers.append(_run_batch(engine, len(part), policy, clock, started))
    predictions: list[Prediction] = []
    confidences: list[float] = []
    classes = engine.bundle.manifest.classes
    for left, first in answers:
        found = [
            one for group in left for one in group.predictions(classes, decode_ms, preprocess_ms)
        ]
        order = np.concatenate([group.rows for group in left]).argsort()
        predictions += [found[place] for place in order.tolist()]
        confidences += first.tolist()
    return predictions, confidences
