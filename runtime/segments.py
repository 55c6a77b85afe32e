"""Segments one after another, until the policy or the deadline says stop."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import numpy as np

from mate_edge.decide.policy import Confidence, Logits, Policy, largest
from mate_edge.errors import EngineError
from mate_edge.runtime.deadline import LatencyTable, SlowDown, time_left
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.prediction import HaltedBy, Prediction


def run_segments(
    engine: Engine,
    n: int,
    policy: Policy,
    clock: Callable[[], int],
    started: int,
    slow_down: SlowDown,
    latencies: LatencyTable | None = None,
    max_ms: float | None = None,
    decode_ms: float = 0.0,
    preprocess_ms: float = 0.0,
) -> tuple[list[Prediction], list[float]]:
    """Run segments over the n samples that the engine has loaded until all have left.

    One sample is the case that counts, and a small segment takes 100 us: so what says who stays
    are lists, cheaper than arrays of one, and nothing is looked up twice.

    Args:
        engine: with the samples loaded.
        n: how many.
        policy: says who leaves.
        clock: in ns.
        started: when the deadline began, by the clock.
        slow_down: follows each segment of a single sample whose latencies are known.
        latencies: what a deadline rests on.
        max_ms: the deadline of a single sample.
        decode_ms: for the predictions.
        preprocess_ms: likewise.

    Returns:
        The predictions, and exit 1's confidence in each sample.

    Raises:
        EngineError: the engine failed, or returned something that is no number.
    """
    num_segments, classes = engine.num_segments, engine.bundle.manifest.classes
    predictions: list[Prediction] = [None] * n  # type: ignore[list-item]
    passed = np.empty((n, num_segments, len(classes)), np.float32)
    rows = list(range(n))
    first: list[float] = []
    segment_ms: list[float] = []
    simple = policy if n == 1 and type(policy) is Confidence else None
    for k in range(1, num_segments + 1):
        engine.open(k)
        began = clock()
        logits = engine.run(k)
        ms = (clock() - began) / 1e6
        segment_ms.append(ms)
        passed[:, k - 1] = logits
        goes_on = True
        if latencies is not None and n == 1:
            elapsed_ms = (clock() - started) / 1e6
            goes_on = time_left(latencies, slow_down, k, ms, elapsed_ms, max_ms)
        glance = simple.glance(passed[:, :k]) if simple else None
        if glance is None:
            _check(logits, k, engine)
            leave, probabilities = policy.decide(passed[:, :k])
            leaves: list[bool] = leave.tolist()
            if k == 1:
                first = largest(probabilities).tolist()
        else:
            confidence, answers = glance
            if k == 1:
                first = [confidence]
            if answers is None and goes_on:
                continue
            leaves = [answers is not None]
            probabilities = policy.decide(passed[:, :k])[1] if answers is None else answers
        halted_by: HaltedBy = "policy"
        if k == num_segments:
            leaves, halted_by = [True] * len(rows), "last-exit"
        elif not goes_on and not leaves[0]:
            leaves, halted_by = [True], "deadline"
        for row, left in enumerate(leaves):
            if left:
                answer = probabilities[row]
                index = int(answer.argmax())
                confidence = float(answer[index])
                elapsed_ms = (clock() - started) / 1e6
                predictions[rows[row]] = Prediction(
                    label=classes[index],
                    index=index,
                    confidence=confidence,
                    probabilities=answer,
                    exit=k,
                    halted_by=halted_by,
                    elapsed_ms=elapsed_ms,
                    decode_ms=decode_ms,
                    preprocess_ms=preprocess_ms,
                    segment_ms=tuple(segment_ms),
                    deadline_missed=max_ms is not None and elapsed_ms > max_ms,
                )
        stay = [row for row, left in enumerate(leaves) if not left]
        if not stay:
            break
        if len(stay) < len(rows):
            rows = [rows[row] for row in stay]
            passed = passed[stay]
            engine.keep(np.array(stay))
    return predictions, first


def _check(logits: Logits, k: int, engine: Engine) -> None:
    """Refuse logits that are no numbers."""
    if not (isfinite(logits.item(logits.argmax())) and isfinite(logits.item(logits.argmin()))):
        raise EngineError(
            f"segment {k} of {engine.bundle.folder} returned a logit that is no number: "
            "the bundle or the device is damaged"
        )
