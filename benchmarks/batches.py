"""Batches whose images leave early, against the unsplit network on the whole batch.

    python benchmarks/batches.py [--run FOLDER] [--rounds 40] [--batch 64] [--out FOLDER]

Untrained resnet8 and mobilenet_v2 at 32 and resnet18 at 224 pixels, ONNX Runtime on one thread and
on all. The images that leave early do so in equal parts at the early exits, which is harder than
all at the first; who leaves is fixed by the place in the batch, since an untrained network knows
nothing. With `--run` the network is a trained run's instead, whose test images leave where its
operating points say. All go through `Predictor.predict_batch` and pay the same preprocessing;
`network alone` is without it. Ours runs sixteen images of a batch at once, whose features stay in
the caches; `unsplit` runs all, and `unsplit in parts` as many as ours. They take turns; ratios are
medians over the rounds of time(unsplit) / time(ours) of the same round: above 1 ours is faster. The
rows at 0 % show what the heads cost.

About 15 minutes on 2 cores, one with `--run`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe, quantile
from numpy.typing import NDArray
from peers import trained_case
from untrained import make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.softmax import softmax
from mate_edge.machine import cpu_count
from mate_edge.runs import read_finished_run
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.policy import PolicyChoice
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor
from mate_edge.train.data import load_dataset

CASES = [("resnet8", 32, 10), ("mobilenet_v2", 32, 10), ("resnet18", 224, 1000)]
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


def measure(
    path: Path, name: str, threads: int, rounds: int, batch: int, data: str | None = None
) -> None:
    """Print the rows of one network, in a process of its own: it makes one pool of threads.

    Args:
        path: of the bundle.
        name: the network's, for the rows.
        threads: of one segment.
        rounds: measured ones.
        batch: images in each.
        data: whose test images are taken, other ones each round, with the bundle's operating
            points; None for noise and `Leave`.
    """
    bundle = read_bundle(path)
    shared = threads > 1
    rules: list[PolicyChoice] = list(bundle.manifest.operating_points)
    if data is None:
        rules = [Leave(early, len(bundle.manifest.exits)) for early in EARLY]
    images = pictures(bundle, rounds + 1 if data else 1, batch, data)
    with (
        Predictor(OnnxRuntimeEngine(bundle, threads, shared), "deepest") as ours,
        Predictor(OnnxRuntimeEngine(bundle.unsplit(), threads, shared), "deepest") as parts,
        Predictor(OnnxRuntimeEngine(bundle.unsplit(), threads, shared), "deepest") as whole,
    ):
        whole.engine.batch_size = whole.engine.at_once = batch  # type: ignore[attr-defined]
        for rule in rules:
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "whole": [], "parts": []}
            left: list[int] = []
            for turn in range(rounds + 1):
                frames = images[turn % len(images)]
                order = [("ours", ours, rule), ("whole", whole, None), ("parts", parts, None)]
                for contender, predictor, policy in order[:: 1 if turn % 2 else -1]:
                    found = predictor.predict_batch(frames, policy=policy)
                    if turn:  # the first one warms up
                        times[contender].append(total_ms(found))
                        if contender == "ours":
                            left += [prediction.exit for prediction in found]
            shares = np.bincount(left, minlength=len(bundle.manifest.exits) + 1)[1:] / len(left)
            cells = [name, str(threads), rule if isinstance(rule, str) else "fixed"]
            cells.append(" ".join(f"{100 * share:.0f}" for share in shares))
            for samples in times.values():
                ms = [total for total, _ in samples]
                cells.append(f"{median(ms):.1f} ({quantile(ms, 0.9):.1f})")
            for contender, i in (("whole", 0), ("parts", 0), ("whole", 1)):
                pairs = zip(times["ours"], times[contender], strict=True)
                cells.append(f"{median(one[i] / own[i] for own, one in pairs):.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def pictures(
    bundle: Bundle, batches: int, batch: int, data: str | None
) -> list[list[NDArray[np.uint8]]]:
    """Return batches of images, uint8 [H, W, C]: noise, or from a data set's test split."""
    pre, n = bundle.manifest.preprocessing, batches * batch
    if data is None:
        shape = (n, pre.size, pre.size, pre.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    else:
        test = load_dataset(data).test
        chosen = np.random.default_rng(0).permutation(len(test.labels))[:n]
        pixels = test.plain(chosen.tolist(), pre)
    return [list(pixels[i : i + batch]) for i in range(0, n, batch)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="A trained run, measured instead.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    chosen = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    print(f"batches of {chosen.batch}, {chosen.rounds} rounds; ms: median (p90)\n")
    print(
        "| network | threads | who leaves | exits' shares, % | ours | unsplit | unsplit in parts "
        "| faster | faster than in parts | network alone, faster |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    cases: list[tuple[Path, str, str | None]]
    if chosen.run is None:
        cases = [
            (make_bundle(chosen.out, arch, size, classes), f"{arch} at {size}", None)
            for arch, size, classes in CASES
        ]
    else:
        name, path, _ = trained_case(chosen.run, chosen.out)
        cases = [(path, name, read_finished_run(chosen.run).data)]
    for path, name, data in cases:
        for threads in sorted({1, cpu_count()}):
            row = (path, name, threads, chosen.rounds, chosen.batch, data)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=row)
            process.start()
            process.join()


if __name__ == "__main__":
    main()
