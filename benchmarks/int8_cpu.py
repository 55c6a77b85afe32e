"""int8 against fp32 on this CPU: the time of each segment and of the unsplit network.

    python benchmarks/int8_cpu.py [--run FOLDER] [--rounds 60] [--threads 1] [--out FOLDER]

Speed: untrained networks, converted as `mate-edge export` does, with noise for images. The fp32
segments are run by the engine, as they are built for this CPU; all else by plain sessions.
Accuracy: with `--run`, a finished run whose images are at hand is exported in both precisions.
Ratios are medians over the rounds of time(fp32) / time(int8) of the same round, batch 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from machine import describe, mark_of, quantile
from untrained import make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.export.export import export_run
from mate_edge.export.models import Model, Models
from mate_edge.export.precision import CALIBRATION_IMAGES, FOR_ONNX_RUNTIME, lower
from mate_edge.report.text import print_table
from mate_edge.runs import read_finished_run
from mate_edge.runtime.engines.onnxruntime import (
    OnnxRuntimeEngine,
    make_session,
    session_options,
)

CASES = [("resnet8", 32), ("resnet18", 32), ("mobilenet_v2", 32), ("resnet18", 224)]
CALLS = 5
Call = Callable[[np.ndarray], None]
MAX_NOISE_BYTES = 50 * 10**6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("onnxruntime", "onnx", "numpy"))
    if arguments.run is not None:
        accuracy(arguments.run, arguments.out)
    rows = []
    for arch, size in CASES:
        bundle = read_bundle(make_bundle(arguments.out, arch, size, 10 if size == 32 else 1000))
        models = models_of(bundle)
        lowered = lower(models, FOR_ONNX_RUNTIME["int8"], noise(models.unsplit, CALIBRATION_IMAGES))
        for name, fp32, int8 in (
            ("segments", segments(bundle, arguments.threads), lowered.segments),
            ("unsplit", chain((models.unsplit,), arguments.threads), (lowered.unsplit,)),
        ):
            pair = [fp32, chain(int8, arguments.threads)]
            times = measure(pair, noise(models.unsplit, 1), arguments.rounds)
            ratios = [a / b for a, b in zip(*times, strict=True)]
            rows.append(
                [f"{arch} at {size}, {name}"]
                + [f"{median(t):.3f} ({quantile(t, 0.9):.3f})" for t in times]
                + [f"{median(ratios):.2f}"]
            )
    title = (
        f"ms, median (p90) of {arguments.rounds} rounds of {CALLS} calls, batch 1, "
        f"{arguments.threads} threads, onnxruntime"
    )
    print_table(title, ["network", "fp32", "int8", "fp32 / int8"], rows)


def accuracy(folder: Path, out: Path) -> None:
    run = read_finished_run(folder)
    path = out / f"{folder.name}-{mark_of(folder)}-int8.mate"
    if not path.exists():
        export_run(folder, run, "cpu", "int8", None, path, print, max_drop=100)
    bundle = read_bundle(path)
    n = len(bundle.arrays(bundle.manifest.calibration)["labels"])
    rows = [
        [f"exit {k}", f"{100 * before:.2f}", f"{100 * exit_.val_accuracy:.2f}",
         f"{100 * (exit_.val_accuracy - before):+.2f}"]
        for k, exit_ in enumerate(bundle.manifest.exits, start=1)
        if (before := exit_.fp32_val_accuracy) is not None
    ]  # fmt: skip
    title = f"{run.arch} on {Path(run.data).name}, {n} validation images, top-1 %"
    print_table(title, ["", "fp32", "int8", "points"], rows)


def models_of(bundle: Bundle) -> Models:
    manifest = bundle.manifest
    segments = tuple(
        Model(f"segment {k}", bundle.read(segment.file), segment.input, segment.outputs)
        for k, segment in enumerate(manifest.segments, start=1)
    )
    (whole,) = bundle.unsplit().manifest.segments
    unsplit = Model("unsplit", bundle.read(manifest.unsplit), whole.input, whole.outputs)
    return Models(segments, unsplit)


def noise(model: Model, most: int) -> np.ndarray:
    sample = 4 * int(np.prod(model.input.shape))
    shape = (max(1, min(most, MAX_NOISE_BYTES // sample)), *model.input.shape)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def segments(bundle: Bundle, threads: int) -> Call:
    engine = OnnxRuntimeEngine(bundle, threads, shared_pool=True)

    def call(inputs: np.ndarray) -> None:
        engine.load(inputs)
        for k in range(1, engine.num_segments + 1):
            engine.run(k)

    return call


def chain(models: tuple[Model, ...], threads: int) -> Call:
    options = session_options(threads, shared_pool=True)
    sessions: list[tuple[Model, onnxruntime.InferenceSession]] = [
        (model, make_session(model.data, options, model.name)) for model in models
    ]

    def call(inputs: np.ndarray) -> None:
        for model, session in sessions:
            names = [output.name for output in model.outputs]
            inputs = session.run(names, {model.input.name: inputs})[0]

    return call


def measure(calls: list[Call], images: np.ndarray, rounds: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        order = range(len(calls)) if number % 2 else reversed(range(len(calls)))
        for which in order:
            calls[which](images)
            started = time.perf_counter()
            for _ in range(CALLS):
                calls[which](images)
            if number:  # the first round allocates
                times[which].append(1000 * (time.perf_counter() - started) / CALLS)
    return times


if __name__ == "__main__":
    main()
