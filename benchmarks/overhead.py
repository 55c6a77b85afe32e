"""What our own Python costs: `predict` against a loop written by hand over the same sessions.

    python benchmarks/overhead.py [--rounds 300] [--out FOLDER]

Both start from a uint8 frame of the network's size, run the very same sessions up to the same exit
and end with class and confidence. The loop by hand normalises with plain numpy, takes the softmax
and compares with a threshold: it checks nothing, keeps no times and knows no deadline. They run in
turns, in one process, batch 1; ratios are medians over the rounds of time(predict) / time(loop).

Our own time per segment is what `predict` spends outside of the engine from the loaded image to the
answer, over the number of segments: policy, clock and bookkeeping, building the answer included.
Right after a segment little of it is in the processor's caches; the last column is of an engine
that computes nothing and returns what it did before, so that all of it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe, quantile
from numpy.typing import NDArray
from untrained import make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import NEVER, Confidence
from mate_edge.images import Preprocessing
from mate_edge.report.text import print_table
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor

CASES = [("resnet8", 32), ("resnet18", 32)]
WARM_UP_ROUNDS = 10


class Stored(OnnxRuntimeEngine):
    """Returns the logits that it computed the first time."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self._stored: dict[int, NDArray[np.float32]] = {}

    def run(self, k: int) -> NDArray[np.float32]:
        """See `Engine.run`."""
        if k not in self._stored:
            self._stored[k] = super().run(k)
        return self._stored[k]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    rows = []
    for arch, size in CASES:
        bundle = read_bundle(make_bundle(arguments.out, arch, size, 10))
        engine = OnnxRuntimeEngine(bundle, 1, blocked=lambda bundle: None)
        predictor = Predictor(engine)
        predictor.warm_up()
        stored = Predictor.warmed_up(Stored(bundle, 1))
        rows += [
            [f"{arch} at {size}, exit {leave}", *measure(predictor, stored, leave, arguments)]
            for leave in range(1, engine.num_segments + 1)
        ]
    print_table(
        f"{arguments.rounds} rounds, batch 1, 1 thread; us: median (p90)",
        ["", "by hand", "predict", "ratio", "outside the engine, a segment", "from warm caches"],
        rows,
    )


def measure(
    predictor: Predictor, stored: Predictor, leave: int, arguments: argparse.Namespace
) -> list[str]:
    """Return the cells of a row: leaving at that exit."""
    manifest = predictor.manifest
    num_exits = len(manifest.exits)
    thresholds = tuple(0.0 if k == leave else NEVER for k in range(1, num_exits))
    temperatures = manifest.temperatures
    policy = Confidence(thresholds, temperatures)
    by_hand = write_loop(predictor, thresholds, temperatures)
    pre = manifest.preprocessing
    frame = np.random.default_rng(0).integers(
        0, 256, (pre.size, pre.size, pre.channels), dtype=np.uint8
    )
    predictor.set_policy(policy)
    stored.set_policy(policy)
    own: list[float] = []
    theirs: list[float] = []
    outside: list[float] = []
    for number in range(WARM_UP_ROUNDS + arguments.rounds):
        contenders: list[tuple[list[float], Callable[[], Any]]] = [
            (own, lambda: predictor.predict(frame)),
            (theirs, lambda: by_hand(frame)),
        ]
        for times, call in contenders[:: 1 if number % 2 else -1]:
            started = time.perf_counter_ns()
            answer = call()
            times.append((time.perf_counter_ns() - started) / 1e3)
            if times is own:
                assert answer.exit == leave
                outside.append(1000 * outside_ms(answer) / leave)
    ratios = [a / b for a, b in zip(own, theirs, strict=True)]
    answers = [stored.predict(frame) for _ in range(WARM_UP_ROUNDS + arguments.rounds)]
    assert all(answer.exit == leave for answer in answers)
    warm = [1000 * outside_ms(answer) / leave for answer in answers]
    columns = [times[WARM_UP_ROUNDS:] for times in (theirs, own, ratios, outside, warm)]
    cells = [f"{median(c):.0f} ({quantile(c, 0.9):.0f})" for c in columns]
    cells[2] = f"{median(columns[2]):.3f}"
    cells[3:] = [f"{median(c):.1f} ({quantile(c, 0.9):.1f})" for c in columns[3:]]
    return cells


def outside_ms(answer: Prediction) -> float:
    """Return the ms from the loaded image to the answer that the engine did not take."""
    times = answer.decode_ms + answer.preprocess_ms + sum(answer.segment_ms)
    return answer.elapsed_ms - times


def write_loop(
    predictor: Predictor, thresholds: tuple[float, ...], temperatures: tuple[float, ...]
) -> Callable[[np.ndarray], tuple[int, float]]:
    """Return the loop that a user would write over the same sessions."""
    engine, manifest = predictor.engine, predictor.manifest
    assert isinstance(engine, OnnxRuntimeEngine)
    steps = [
        (engine._sessions[k], segment.input.name, [output.name for output in segment.outputs])
        for k, segment in enumerate(manifest.segments, start=1)
    ]
    pre: Preprocessing = manifest.preprocessing
    mean, std = (np.array(values, np.float32) for values in (pre.mean, pre.std))

    def loop(frame: np.ndarray) -> tuple[int, float]:
        pixels = (frame.astype(np.float32) / 255 - mean) / std
        features = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        for k, (session, name, outputs) in enumerate(steps):
            found = session.run(outputs, {name: features})
            features, logits = found[0], found[-1][0] / temperatures[k]
            weights = np.exp(logits - logits.max())
            probabilities = weights / weights.sum()
            index = int(probabilities.argmax())
            if k == len(steps) - 1 or probabilities[index] >= thresholds[k]:
                return index, float(probabilities[index])
        raise AssertionError("the last segment answers")

    return loop


if __name__ == "__main__":
    main()
