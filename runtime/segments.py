"""Segments one after another, until the policy or the deadline says stop."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.glance import Glance, is_clear
from mate_edge.decide.policy import Confidence, Deepest, FixedExit, Policy, decide
from mate_edge.decide.softmax import Logits, largest
from mate_edge.errors import EngineError
from mate_edge.runtime.deadline import LatencyTable, MissBudget, SlowDown, time_left
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.prediction import HaltedBy, Prediction


class Recording:
    """The deepest policy, which keeps what every exit says of one sample.

    Attributes:
        passed: the logits of each exit so far, [1, C].
    """

    def __init__(self, temperatures: tuple[float, ...]) -> None:
        self._deepest = Deepest(temperatures)
        self.passed: list[Logits] = []

    def glance(self, logits: Logits, k: int) -> Glance | None:
        """Keep the logits of exit k, and see what `Deepest` sees."""
        if k == 1:
            self.passed = []
        self.passed.append(logits)
        return self._deepest.glance(logits, k)

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""
        return self._deepest.decide(logits)

    @property
    def logits(self) -> Logits:
        """Of all exits, float32 [1, K, C]."""
        return np.stack(self.passed, axis=1)


GLANCE = (Confidence, Deepest, FixedExit, Recording)
"""The policies with a `glance`; a subclass of somebody else's may decide otherwise."""


def run_one(
    engine: Engine,
    policy: Policy,
    clock: Callable[[], int],
    started: int,
    slow_down: SlowDown,
    budget: MissBudget,
    latencies: LatencyTable | None = None,
    max_ms: float | None = None,
    decode_ms: float = 0.0,
    preprocess_ms: float = 0.0,
) -> tuple[Prediction, float]:
    """Run segments over the one sample that the engine has loaded until it leaves.

    A small segment takes 100 us and leaves little of this code in the processor's caches: so the
    usual case, a confidence that is clearly above or below its threshold, touches no numpy.

    Args:
        engine: with the sample loaded.
        policy: says whether it leaves.
        clock: in ns.
        started: when the deadline began, by the clock.
        slow_down: follows each segment when the latencies are known.
        budget: of misses; settled when there is a deadline.
        latencies: what a deadline rests on.
        max_ms: the deadline; None for none.
        decode_ms: for the prediction.
        preprocess_ms: likewise.

    Returns:
        The prediction, and exit 1's confidence.

    Raises:
        EngineError: the engine failed, or returned something that is no number.
    """
    num_segments = engine.num_segments
    passed: list[Logits] = []
    segment_ms: list[float] = []
    glance = None
    if isinstance(policy, GLANCE) and type(policy) in GLANCE:
        glance = policy.glance
    first = 0.0
    for k in range(1, num_segments + 1):
        engine.open(k)
        began = clock()
        logits = engine.run(k)
        now = clock()
        ms = (now - began) / 1e6
        segment_ms.append(ms)
        passed.append(logits)
        seen = glance(logits, k) if glance else None
        if seen is not None:
            leaves, confidence = seen[:2]
        else:
            _check(logits, k, engine)
            leave, probabilities = decide(policy, np.stack(passed, axis=1))
            leaves, confidence = bool(leave[0]), float(largest(probabilities)[0])
        if k == 1:
            first = confidence
        goes_on = k < num_segments
        if latencies is not None:
            if max_ms is not None:
                now = clock()  # deciding may have taken long
            since_ms = (now - started) / 1e6
            goes_on &= time_left(latencies, slow_down, budget, k, ms, since_ms, max_ms)
        if leaves or not goes_on:
            break
    halted_by: HaltedBy = "policy"
    if k == num_segments:
        halted_by = "last-exit"
    elif not leaves:
        halted_by = "deadline"
    relative: list[float] | Logits
    if seen is not None and is_clear(seen):
        relative = seen[3]
        index = relative.index(1.0)
    else:
        answer = decide(policy, np.stack(passed, axis=1))[1][0] if seen else probabilities[0]
        index, relative = int(answer.argmax()), answer
        confidence = answer.item(index)
    elapsed_ms = (clock() - started) / 1e6  # the answer is known
    missed = max_ms is not None and elapsed_ms > max_ms
    if max_ms is not None:
        budget.settle(missed and k > 1)
    prediction = Prediction(
        label=engine.bundle.manifest.classes[index],
        index=index,
        confidence=confidence,
        exit=k,
        halted_by=halted_by,
        elapsed_ms=elapsed_ms,
        decode_ms=decode_ms,
        preprocess_ms=preprocess_ms,
        segment_ms=tuple(segment_ms),
        deadline_missed=missed,
        relative=relative,
    )
    return prediction, first


def run_batch(
    engine: Engine,
    n: int,
    policy: Policy,
    clock: Callable[[], int],
    started: int,
    decode_ms: float = 0.0,
    preprocess_ms: float = 0.0,
) -> tuple[list[Prediction], list[float]]:
    """Run segments over the n samples that the engine has loaded until all have left.

    Those that leave make the next segment's batch smaller. See `run_one` for what is not said here.

    Returns:
        The predictions, and exit 1's confidence in each sample.

    Raises:
        EngineError: the engine failed, or returned something that is no number.
    """
    num_segments, classes = engine.num_segments, engine.bundle.manifest.classes
    predictions: list[Prediction] = [None] * n  # type: ignore[list-item]
    passed = np.empty((n, num_segments, len(classes)), np.float32)
    rows = np.arange(n)
    first: list[float] = []
    segment_ms: list[float] = []
    for k in range(1, num_segments + 1):
        engine.open(k)
        began = clock()
        logits = engine.run(k)
        segment_ms.append((clock() - began) / 1e6)
        _check(logits, k, engine)
        passed[:, k - 1] = logits
        leave, probabilities = decide(policy, passed[:, :k])
        if k == 1:
            first = largest(probabilities).tolist()
        halted_by: HaltedBy = "policy"
        if k == num_segments:
            leave, halted_by = np.ones(len(rows), np.bool_), "last-exit"
        elapsed_ms = (clock() - started) / 1e6
        leaving = np.flatnonzero(leave)
        answers = probabilities[leaving]
        indices = answers.argmax(axis=-1)
        confidences = answers[np.arange(len(answers)), indices]
        so_far = tuple(segment_ms)
        for row, index, confidence, answer in zip(
            rows[leaving].tolist(), indices.tolist(), confidences.tolist(), answers, strict=True
        ):
            predictions[row] = Prediction(
                label=classes[index],
                index=index,
                confidence=confidence,
                exit=k,
                halted_by=halted_by,
                elapsed_ms=elapsed_ms,
                decode_ms=decode_ms,
                preprocess_ms=preprocess_ms,
                segment_ms=so_far,
                deadline_missed=False,
                relative=answer,
            )
        if len(leaving) == len(rows):
            break
        if len(leaving):
            stay = np.flatnonzero(~leave)
            rows, passed = rows[stay], passed[stay]
            engine.keep(stay)
    return predictions, first


def _check(logits: Logits, k: int, engine: Engine) -> None:
    """Refuse logits that are no numbers."""
    if not (isfinite(logits.item(logits.argmax())) and isfinite(logits.item(logits.argmin()))):
        raise EngineError(
            f"segment {k} of {engine.bundle.folder} returned a logit that is no number: "
            "the bundle or the device is damaged"
        )
