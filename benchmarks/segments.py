"""What cutting a network into segments costs: all segments in sequence against one graph.

    python benchmarks/segments.py [--rounds 60] [--out FOLDER]

Three contenders, each in a process of its own, asked in turn (`turns.py`), ONNX Runtime, batch 1:

* segments: the engine of `mate-edge run`, from the first segment to the last
* one graph: the same network with all heads as its outputs, a plain session
* unsplit: the network without early heads, a plain session (what a user has without exits)

A plain session has `intra_op_num_threads` set and all else at its default. Ratios are medians over
the rounds of time(segments) / time(other) of the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe, quantile
from turns import take_turns
from untrained import make_bundle

from mate_edge.bundle import read_bundle

CASES = [("resnet8", 32), ("resnet18", 32), ("resnet18", 224), ("resnet50", 224)]
CALLS = 5  # timed in a round, after one that is not
ONE_GRAPH = "one-graph.onnx"


def write_one_graph(bundle: Path, folder: Path) -> Path:
    """Export the run behind `bundle` with all exits' logits as outputs of one graph."""
    import torch
    from torch import nn

    from mate_edge.export.segments import to_onnx
    from mate_edge.export.targets import TARGETS
    from mate_edge.runs import read_run
    from mate_edge.train.network import load_network

    path = folder / f"{bundle.stem}-{ONE_GRAPH}"
    if path.exists():
        return path
    run_folder = folder / bundle.stem
    run = read_run(run_folder)
    network = load_network(run_folder, run)

    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features, logits = images, []
            for stage, head in zip(self.network.stages, self.network.heads, strict=True):
                features = stage(features)
                logits.append(head(features))
            return tuple(logits)

    size = run.preprocessing.size
    names = [f"logits_{k}" for k in range(1, run.exits + 1)]
    example = torch.zeros(2, 3, size, size)
    path.write_bytes(to_onnx(Exits(), example, "images", names, TARGETS["cpu"].opsets))
    return path


def segments(bundle: Path, threads: int, images: np.ndarray) -> Callable[[], object]:
    from mate_edge.runtime.engines import make_engine

    engine = make_engine("onnxruntime", read_bundle(bundle), threads, shared_pool=True)

    def call() -> None:
        engine.load(images)
        for k in range(1, engine.num_segments + 1):
            engine.run(k)

    return call


def plain(model: Path, threads: int, images: np.ndarray) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def serve(pipe: Connection, make: Callable[..., Any], *arguments: object) -> None:
    """Answer each request with the median ms of some calls."""
    call = make(*arguments)
    for _ in range(3):
        call()
    pipe.send(None)
    while pipe.recv():
        call()
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - began))
        pipe.send(median(times))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    print(f"{arguments.rounds} rounds of {CALLS} calls each, batch 1; ms: median (p90) of rounds\n")
    print("| network | threads | segments | one graph | unsplit | / one graph | / unsplit |")
    print("|---|---|---|---|---|---|---|")
    for arch, size in CASES:
        bundle = make_bundle(arguments.out, arch, size, 10 if size == 32 else 1000)
        graph = write_one_graph(bundle, arguments.out)
        images = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
        for threads in (1, 2):
            _, times = take_turns(
                serve,
                {
                    "segments": (segments, bundle, threads, images),
                    "one graph": (plain, graph, threads, images),
                    "unsplit": (plain, bundle / "unsplit.onnx", threads, images),
                },
                arguments.rounds,
            )
            cells = [f"{median(t):.2f} ({quantile(t, 0.9):.2f})" for t in times.values()]
            for other in ("one graph", "unsplit"):
                pairs = zip(times["segments"], times[other], strict=True)
                cells.append(f"{median(a / b for a, b in pairs):.3f}")
            print(f"| {arch} at {size} | {threads} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
