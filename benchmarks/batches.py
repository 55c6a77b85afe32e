"""Batches whose images leave early, against the unsplit network on the whole batch.

    python benchmarks/batches.py [--run FOLDER] [--only resnet8] [--rounds 40] [--batch 64]
        [--out FOLDER]

Untrained resnet8 and mobilenet_v2 at 32 and resnet18 at 224 pixels, ONNX Runtime on one thread and
on all cores. Those that leave early all do so at exit 1, or in equal parts at the early exits. An
untrained network knows nothing: the policy is `Confidence`, with thresholds laid between the
confidences in the batch. With `--run` the network is a trained run's instead, whose test images
leave where its operating points say.

* ours: `Predictor.predict_batch`, on all cores with `shared_pool=True`
* unsplit: what a user would write, one session with its default options (on one thread with
  `intra_op_num_threads` 1) that takes the whole batch, from uint8 frames to classes
* unsplit in parts: the unsplit network through `predict_batch`

Each runs in a process of its own, and they take turns (`turns.py`). Ratios are medians over the
rounds of time(unsplit) / time(ours) of the same round: above 1 ours is faster. The rows at 0 % show
what heads and borders cost.

About an hour on 2 cores, most of it for resnet18 (`--only resnet18 --rounds 3` takes ten minutes);
five minutes with `--run`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from machine import describe, quantile
from numpy.typing import NDArray
from peers import trained_case
from turns import take_turns
from untrained import make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import COLDEST, HOTTEST, NEVER, Confidence
from mate_edge.decide.softmax import largest, softmax
from mate_edge.images import crop, from_array, normalize
from mate_edge.machine import cpu_count
from mate_edge.runs import read_finished_run
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine, make_session
from mate_edge.runtime.policy import PolicyChoice
from mate_edge.runtime.predictor import Predictor
from mate_edge.train.data import load_dataset

CASES = [("resnet8", 32, 10), ("mobilenet_v2", 32, 10), ("resnet18", 224, 1000)]
EARLY = (0.6, 0.8)
WARM_UP_ROUNDS = 1

Rule = tuple[float, ...] | str
"""The share that leaves at each early exit, or an operating point."""
Classify = Callable[[list[NDArray[np.uint8]], Rule], list[int]]
"""From frames to the exits that they left at, or, of the plain network, to classes."""


def rules_of(bundle: Bundle) -> list[Rule]:
    """Nobody leaves early; of each share in `EARLY` all at exit 1, or evenly."""
    early = len(bundle.manifest.exits) - 1
    rules: list[Rule] = [(0.0,) * early]
    for share in EARLY:
        rules += [(share, *(0.0,) * (early - 1)), (share / early,) * early]
    return rules


def thresholds(
    predictor: Predictor, frames: list[NDArray[np.uint8]], shares: tuple[float, ...]
) -> Confidence:
    """Return the policy under which these shares of the images leave at the early exits."""
    passed = []
    for frame in frames:
        predictor.predict(frame, policy="deepest")
        passed.append(np.concatenate(predictor.passed))
    logits = np.stack(passed)
    spread = logits.std(axis=-1).mean(axis=0)  # neither saturated nor all the same
    temperatures = tuple(spread.clip(COLDEST, HOTTEST).tolist())
    found, staying = [], np.arange(len(frames))
    for k, share in enumerate(shares):
        confidences = largest(softmax(logits[:, k], temperatures[k]))
        staying = staying[confidences[staying].argsort()]
        stay = len(staying) - round(share * len(frames))
        lowest = confidences[staying[stay - 1 : stay + 1]]
        found.append(float(lowest.mean()) if stay < len(staying) else NEVER)
        staying = staying[:stay]
    return Confidence(tuple(found), temperatures)


def ours(bundle: Bundle, threads: int | None) -> Classify:
    engine = OnnxRuntimeEngine(bundle, threads or cpu_count(), shared_pool=threads is None)
    predictor = Predictor.warmed_up(engine, "deepest")
    policies: dict[Rule, PolicyChoice] = {}

    def classify(frames: list[NDArray[np.uint8]], rule: Rule) -> list[int]:
        if rule not in policies:  # in the round that is not measured
            named = isinstance(rule, str)
            policies[rule] = rule if named else thresholds(predictor, frames, rule)
        return [found.exit for found in predictor.predict_batch(frames, policy=policies[rule])]

    return classify


def in_parts(bundle: Bundle, threads: int | None) -> Classify:
    classify = ours(bundle.unsplit(), threads)
    return lambda frames, rule: classify(frames, "deepest")


def unsplit(bundle: Bundle, threads: int | None) -> Classify:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = make_session(bundle.read(bundle.manifest.unsplit), options, "unsplit")
    name, pre = session.get_inputs()[0].name, bundle.manifest.preprocessing

    def classify(frames: list[NDArray[np.uint8]], rule: Rule) -> list[int]:
        pixels = frames
        if pre.size != pre.resize:
            pixels = [crop(from_array(frame), pre) for frame in frames]
        (logits,) = session.run(None, {name: normalize(np.stack(pixels), pre)})
        return [int(index) for index in logits.argmax(axis=-1)]

    return classify


CONTENDERS: dict[str, Callable[[Bundle, int | None], Classify]] = {
    "ours": ours,
    "unsplit": unsplit,
    "unsplit in parts": in_parts,
}


def serve(
    pipe: Connection,
    name: str,
    path: Path,
    threads: int | None,
    rules: list[Rule],
    images: list[list[NDArray[np.uint8]]],
) -> None:
    """Classify a batch on each request, by each rule; send the ms, and what was returned."""
    classify = CONTENDERS[name](read_bundle(path), threads)
    turn = 0
    pipe.send(None)
    while pipe.recv():
        found = []
        for rule in rules:
            began = time.perf_counter_ns()
            answers = classify(images[turn % len(images)], rule)
            found.append(((time.perf_counter_ns() - began) / 1e6, answers))
        pipe.send(found)
        turn += 1


def measure(
    path: Path, network: str, threads: int | None, rounds: int, batch: int, data: str | None = None
) -> None:
    """Print the rows of one network.

    Args:
        path: of the bundle.
        network: its name, for the rows.
        threads: of one segment; None for all cores.
        rounds: measured ones.
        batch: images in each.
        data: whose test images are taken, other ones each round, with the bundle's operating
            points; None for noise.
    """
    bundle = read_bundle(path)
    rules = rules_of(bundle) if data is None else list(bundle.manifest.operating_points)
    images = pictures(bundle, rounds if data else 1, batch, data)
    contenders = {name: (name, path, threads, rules, images) for name in CONTENDERS}
    _, answers = take_turns(serve, contenders, rounds, WARM_UP_ROUNDS)
    for i, rule in enumerate(rules):
        ms = {name: [found[i][0] for found in answers[name]] for name in CONTENDERS}
        own = ms["ours"]
        left = [exit_ for found in answers["ours"] for exit_ in found[i][1]]
        shares = np.bincount(left, minlength=len(bundle.manifest.exits) + 1)[1:] / len(left)
        cells = [network, str(threads or "all"), rule if isinstance(rule, str) else "by confidence"]
        cells.append(" ".join(f"{100 * share:.0f}" for share in shares))
        cells += [f"{median(all_):.1f} ({quantile(all_, 0.9):.1f})" for all_ in ms.values()]
        cells += [
            f"{median(a / b for a, b in zip(ms[name], own, strict=True)):.2f}"
            for name in ("unsplit", "unsplit in parts")
        ]
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
    parser.add_argument("--only", default="", help="Part of a case's name, such as resnet8.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    chosen = parser.parse_args()
    print(describe("onnxruntime", "numpy"))
    print(f"batches of {chosen.batch}, {chosen.rounds} rounds; ms: median (p90)\n")
    print(
        "| network | threads | who leaves | exits' shares, % | ours | unsplit | unsplit in parts "
        "| faster | faster than in parts |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    cases: list[tuple[Path, str, str | None]]
    if chosen.run is None:
        cases = [
            (make_bundle(chosen.out, arch, size, classes), f"{arch} at {size}", None)
            for arch, size, classes in CASES
            if chosen.only in f"{arch} at {size}"
        ]
    else:
        name, path, _ = trained_case(chosen.run, chosen.out)
        cases = [(path, name, read_finished_run(chosen.run).data)]
    for path, name, data in cases:
        for threads in (1, None):
            measure(path, name, threads, chosen.rounds, chosen.batch, data)


if __name__ == "__main__":
    main()
