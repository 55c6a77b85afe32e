"""Batches whose images leave early, against the unsplit network on the whole batch.

    python benchmarks/batches.py [--rounds 40] [--batch 64] [--out FOLDER]

Untrained resnet8 and mobilenet_v2 at 32 and resnet18 at 224 pixels, ONNX Runtime on one thread and
on all. The images that leave early do so in equal parts at the early exits, which is harder than
all at the first; who leaves is fixed by the place in the batch, since an untrained network knows
nothing. All go through `Predictor.predict_batch` and pay the same preprocessing; `network alone` is
without it. Ours runs sixteen images of a batch at once, whose features stay in the caches;
`unsplit` runs all, and `unsplit in parts` as many as ours. They take turns; ratios are medians over
the rounds of time(unsplit) / time(ours) of the same round: above 1 ours is faster. The rows at 0 %
show what the heads cost.

About 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe, quantile
from numpy.typing import NDArray
from untrained import make_bundle

from mate_edge.bundle import read_bundle
from mate_edge.decide.policy import softmax
from mate_edge.machine import cpu_count
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor

CASES = [("resnet8", 32), ("mobilenet_v2", 32), ("resnet18", 224)]
EARLY = (0.0, 0.6, 0.8)


class Leave:
    """Let a fixed share of the images leave at each early exit, whatever the logits say."""

    def __init__(self, early: float, num_exits: int) -> None:
        self.share = early / max(num_exits - 1, 1)
        self.seen = 0
        self.left = [0] * num_exits

    def decide(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """See `Policy.decide`: the first rows of what is left leave."""
        depth = logits.shape[1] - 1
        if depth == 0:
            self.seen += len(logits)
        number = round(self.share * self.seen) - self.left[depth]
        self.left[depth] += number
        return np.arange(len(logits)) < number, softmax(logits[:, -1])


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
        Predictor(OnnxRuntimeEngine(bundle, threads, shared), "deepest") as ours,
        Predictor(OnnxRuntimeEngine(bundle.unsplit(), threads, shared), "deepest") as parts,
        Predictor(OnnxRuntimeEngine(bundle.unsplit(), threads, shared), "deepest") as whole,
    ):
        whole.engine.batch_size = whole.engine.at_once = batch  # type: ignore[attr-defined]
        for early in EARLY:
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "whole": [], "parts": []}
            for turn in range(rounds + 1):
                policy = Leave(early, ours.engine.num_segments)
                order = [("ours", ours, policy), ("whole", whole, None), ("parts", parts, None)]
                for contender, predictor, rule in order[:: 1 if turn % 2 else -1]:
                    found = predictor.predict_batch(frames, policy=rule)
                    if turn:  # the first one warms up
                        times[contender].append(total_ms(found))
            cells = [name, str(threads), f"{100 * early:.0f} %"]
            for samples in times.values():
                ms = [total for total, _ in samples]
                cells.append(f"{median(ms):.1f} ({quantile(ms, 0.9):.1f})")
            for contender, i in (("whole", 0), ("parts", 0), ("whole", 1)):
                pairs = zip(times["ours"], times[contender], strict=True)
                cells.append(f"{median(one[i] / own[i] for own, one in pairs):.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    chosen = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    print(f"batches of {chosen.batch}, {chosen.rounds} rounds; ms: median (p90)\n")
    print(
        "| network | threads | leave early | ours | unsplit | unsplit in parts | faster "
        "| faster than in parts | network alone, faster |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for arch, size in CASES:
        path = make_bundle(chosen.out, arch, size, 10 if size == 32 else 1000)
        for threads in sorted({1, cpu_count()}):
            row = (path, f"{arch} at {size}", threads, chosen.rounds, chosen.batch)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=row)
            process.start()
            process.join()


if __name__ == "__main__":
    main()
