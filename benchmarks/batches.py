"""Batches whose images leave early, against the unsplit network on the whole batch.

    python benchmarks/batches.py [--rounds 40] [--batch 64] [--out FOLDER]

Untrained resnet8 at 32 and resnet18 at 224 pixels, with `sepconv` and `pooled` heads, ONNX Runtime
on one thread and on all. The images that leave early do so in equal parts at the early exits, which
is harder than all at the first; who leaves is fixed by the place in the batch, since an untrained
network knows nothing. Both sides go through `Predictor.predict_batch` and pay the same
preprocessing; `network alone` is without it. They take turns; ratios are medians over the rounds of
time(unsplit) / time(ours) of the same round: above 1 ours is faster. The rows at 0 % show what the
heads cost.

About 25 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe, quantile
from numpy.typing import NDArray
from untrained import make_bundle

from mate_edge.bundle import read_bundle
from mate_edge.decide.policy import softmax
from mate_edge.machine import cpu_count
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor

CASES = [("resnet8", 32), ("resnet18", 224)]
HEADS = ("sepconv", "pooled")
EARLY = (0.0, 0.6, 0.8)


@dataclass
class Leave:
    """Let a fixed share of a batch leave at each early exit, whatever the logits say."""

    early: float
    num_exits: int
    batch: int = 0

    def decide(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """See `Policy.decide`: the first rows of what is left leave."""
        if logits.shape[1] == 1:
            self.batch = len(logits)
        each = round(self.early * self.batch / max(self.num_exits - 1, 1))
        leave = np.arange(len(logits)) < each
        return leave, softmax(logits[:, -1])


def total_ms(found: list[Prediction]) -> tuple[float, float]:
    """Return what the batch took, and what it took once its images were preprocessed."""
    return (
        max(p.elapsed_ms for p in found),
        max(p.elapsed_ms - p.decode_ms - p.preprocess_ms for p in found),
    )


def measure(path: Path, name: str, threads: int, rounds: int, batch: int) -> None:
    """Print the rows of one network, in a process of its own: it makes one pool of threads."""
    bundle = read_bundle(path)
    size = bundle.manifest.preprocessing.size
    frames = list(np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8))
    shared = threads > 1
    with (
        Predictor(make_engine("onnxruntime", bundle, threads, shared), "deepest") as ours,
        Predictor(
            make_engine("onnxruntime", bundle.unsplit(), threads, shared), "deepest"
        ) as whole,
    ):
        for early in EARLY:
            policy = Leave(early, ours.engine.num_segments)
            times: list[tuple[float, float]] = []
            theirs: list[tuple[float, float]] = []
            for turn in range(rounds + 1):
                order = [(ours, policy, times), (whole, None, theirs)]
                for predictor, rule, into in order[:: 1 if turn % 2 else -1]:
                    into.append(total_ms(predictor.predict_batch(frames, policy=rule)))
            pairs = list(zip(times, theirs, strict=True))[1:]  # the first one warms up
            shown = [
                f"{median(ms):.1f} ({quantile(ms, 0.9):.1f})"
                for ms in ([own[0] for own, _ in pairs], [one[0] for _, one in pairs])
            ]
            ratios = [median(one[i] / own[i] for own, one in pairs) for i in (0, 1)]
            faster = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            cells = f"{name} | {threads} | {100 * early:.0f} % | {' | '.join(shown)} | {faster}"
            print(f"| {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    chosen = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    print(f"batches of {chosen.batch}, {chosen.rounds} rounds; ms: median (p90)\n")
    print("| network | threads | leave early | ours | unsplit | faster | network alone, faster |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for (arch, size), head in product(CASES, HEADS):
        path = make_bundle(chosen.out, arch, size, 10 if size == 32 else 1000, head)
        for threads in sorted({1, cpu_count()}):
            row = (path, f"{arch} at {size}, {head}", threads, chosen.rounds, chosen.batch)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=row)
            process.start()
            process.join()


if __name__ == "__main__":
    main()
