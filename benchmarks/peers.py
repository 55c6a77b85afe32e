"""Ours against what a user would pick instead: same network, weights, images and policy, batch 1.

    python benchmarks/peers.py [--run FOLDER [--point balanced]] [--rounds 40] [--threads N]
        [--earlyon FOLDER]

Contenders, each in a process of its own, asked in turns (`turns.py`) to classify all images one by
one, from the uint8 frame of the network's size to the class:

* ours: `Predictor.predict` on ONNX Runtime, and on OpenVINO
* torch eager: the loop of BranchyNet (arXiv:1709.01686) in PyTorch, `inference_mode`
* earlyon 0.3.0: its wrapper (hooks that leave by an exception), and its stages
* nested If: one ONNX graph that holds the later segments in the branches of `If`, ONNX Runtime
* unsplit: the network without early exits, in ONNX Runtime and in OpenVINO

earlyon is installed from PyPI, without its dependencies, into a folder that only its process sees,
so that it runs on the same torch; `--earlyon` names a folder that has it already. An untrained
network gets thresholds at which its answers to noise leave in equal shares; with `--run` the images
are validation images and the thresholds are those of one of the bundle's operating points. Every
contender must leave at the same exits with the same classes, or the row says how many differ.

Ratios are medians over the rounds of time(other) / time(ours) of the same round: above 1 we win.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe, quantile
from nested_if import write_nested_if
from turns import take_turns
from untrained import export_here, make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import Confidence
from mate_edge.decide.softmax import softmax
from mate_edge.images import normalize
from mate_edge.report.text import print_table
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.engines.engine import cpu_threads
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor

CASES = [("resnet8", 32), ("resnet18", 32)]
IMAGES = 20
WARM_UP_ROUNDS = 2
EARLYON = "earlyon==0.3.0"
OURS = "ours, onnxruntime"

Answer = tuple[int, int]
"""Exit from 1, class."""
Classify = Callable[[np.ndarray], Answer]


@dataclass(frozen=True)
class Case:
    """What every contender gets.

    Attributes:
        bundle: its folder.
        run: the folder of the run that it was exported from.
        frames: uint8 [n, H, W, C].
        thresholds: of the exits but the last.
        threads: of one inference.
        earlyon: the folder that earlyon lies in.
    """

    bundle: Path
    run: Path
    frames: np.ndarray
    thresholds: tuple[float, ...]
    threads: int
    earlyon: Path

    def open(self) -> Bundle:
        """Return the bundle, opened."""
        return read_bundle(self.bundle)

    @property
    def policy(self) -> Confidence:
        """Return the policy that all contenders follow."""
        return Confidence(self.thresholds, self.open().manifest.temperatures)


def ours(case: Case, engine: str) -> Classify:
    predictor = Predictor(make_engine(engine, case.open(), case.threads, True), case.policy)
    predictor.warm_up()

    def classify(frame: np.ndarray) -> Answer:
        found = predictor.predict(frame)
        return found.exit, found.index

    return classify


def unsplit(case: Case, engine: str) -> Classify:
    whole = make_engine(engine, case.open().unsplit(), case.threads, True)
    pre, last = case.open().manifest.preprocessing, len(case.open().manifest.exits)

    def classify(frame: np.ndarray) -> Answer:
        whole.load(normalize(frame[None], pre))
        return last, int(whole.run(1)[0].argmax())

    return classify


def torch_parts(case: Case) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """Return the network in evaluation mode, and what makes its input of a frame."""
    import torch

    from mate_edge.runs import read_run
    from mate_edge.train.network import load_network

    torch.set_num_threads(case.threads)
    run = read_run(case.run)
    network = load_network(case.run, run)
    mean, std = (
        torch.tensor(values).reshape(-1, 1, 1)
        for values in (run.preprocessing.mean, run.preprocessing.std)
    )

    def prepare(frame: np.ndarray) -> Any:
        pixels = torch.from_numpy(frame).permute(2, 0, 1).float().div_(255)
        return pixels.sub_(mean).div_(std).unsqueeze(0).contiguous()

    return network, prepare


def torch_eager(case: Case) -> Classify:
    import torch

    network, prepare = torch_parts(case)
    pairs = list(zip(network.stages, network.heads, strict=True))
    temperatures = case.policy.temperatures

    @torch.inference_mode()
    def classify(frame: np.ndarray) -> Answer:
        features = prepare(frame)
        for k, (stage, head) in enumerate(pairs):
            features = stage(features)
            probabilities = torch.softmax(head(features) / temperatures[k], dim=1)
            confidence, index = probabilities.max(dim=1)
            if k == len(pairs) - 1 or confidence.item() >= case.thresholds[k]:
                return k + 1, int(index.item())
        raise AssertionError("the last exit answers")

    return classify


def earlyon(case: Case, staged: bool) -> Classify:
    sys.path.insert(0, str(case.earlyon))
    import torch
    from earlyon.core.types import EarlyExitConfig, ExitPoint
    from earlyon.core.wrappers import EarlyExitWrapper
    from earlyon.staged import staged_model
    from torch import nn

    network, prepare = torch_parts(case)
    last, temperatures = len(network.stages), case.policy.temperatures
    backbone = nn.Sequential(*network.stages, network.heads[-1])
    names = [f"e{k}" for k in range(last - 1)]
    config = EarlyExitConfig(
        backbone="custom",
        num_classes=len(case.open().manifest.classes),
        exit_points=[ExitPoint(name, str(k), 1) for k, name in enumerate(names)],
        confidence_thresholds=list(case.thresholds),
        temperatures=dict(zip([*names, "final"], temperatures, strict=True)),
    )
    height, width, channels = case.frames.shape[1:]
    model = EarlyExitWrapper(
        backbone,
        dict(zip(names, network.heads, strict=False)),
        nn.Identity(),
        config,
        input_shape=(1, channels, height, width),
    ).eval()
    run = staged_model(model).eval().infer if staged else model

    @torch.inference_mode()
    def classify(frame: np.ndarray) -> Answer:
        found = run(prepare(frame))
        taken = last if found.exit_taken < 0 else found.exit_taken + 1
        return taken, int(found.prediction.argmax())

    return classify


def nested_if(case: Case) -> Classify:
    import onnxruntime

    bundle = case.open()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = case.threads, 3
    session = onnxruntime.InferenceSession(
        write_nested_if(bundle, case.policy), options, providers=["CPUExecutionProvider"]
    )
    pre = bundle.manifest.preprocessing

    def classify(frame: np.ndarray) -> Answer:
        taken, index = session.run(None, {"images": normalize(frame[None], pre)})
        return int(taken[0]), int(index[0])

    return classify


CONTENDERS: dict[str, tuple[Callable[..., Classify], tuple[Any, ...]]] = {
    OURS: (ours, ("onnxruntime",)),
    "ours, openvino": (ours, ("openvino",)),
    "torch eager": (torch_eager, ()),
    "earlyon": (earlyon, (False,)),
    "earlyon, staged": (earlyon, (True,)),
    "nested If, onnxruntime": (nested_if, ()),
    "unsplit, onnxruntime": (unsplit, ("onnxruntime",)),
    "unsplit, openvino": (unsplit, ("openvino",)),
}


def serve(pipe: Connection, make: Callable[..., Classify], case: Case, *arguments: object) -> None:
    """Send the answers to all images, then on each request the ms of each of them."""
    classify = make(case, *arguments)
    frames = list(case.frames)
    pipe.send([classify(frame) for frame in frames])
    while pipe.recv():
        classify(frames[-1])
        times = []
        for frame in frames:
            began = time.perf_counter_ns()
            classify(frame)
            times.append((time.perf_counter_ns() - began) / 1e6)
        pipe.send(times)


def measure(case: Case, rounds: int) -> tuple[dict[str, list[Answer]], dict[str, np.ndarray]]:
    """Return each contender's answers, and its ms [rounds, images]."""
    contenders = {name: (make, case, *more) for name, (make, more) in CONTENDERS.items()}
    answers, times = take_turns(serve, contenders, rounds, WARM_UP_ROUNDS)
    return answers, {name: np.array(found) for name, found in times.items()}


def exit_logits(bundle: Bundle, frames: np.ndarray) -> np.ndarray:
    """Return every exit's logits, float32 [n, K, classes]."""
    found = []
    with make_engine("onnxruntime", bundle, None, True) as engine:
        for frame in frames:
            engine.load(normalize(frame[None], bundle.manifest.preprocessing))
            found.append(np.stack([engine.run(k)[0] for k in range(1, engine.num_segments + 1)]))
    return np.stack(found)


def equal_shares(bundle: Bundle, frames: np.ndarray) -> tuple[float, ...]:
    """Return thresholds, in the middle of gaps, at which as many leave at each exit."""
    logits = exit_logits(bundle, frames)
    thresholds, left = [], np.arange(len(frames))
    for k, exit_ in enumerate(bundle.manifest.exits[:-1]):
        confidences = softmax(logits[left, k], exit_.temperature).max(axis=-1)
        leave = round(len(frames) / len(bundle.manifest.exits))
        ranked = np.sort(confidences)[::-1]
        thresholds.append(float(ranked[leave - 1 : leave + 1].mean()))
        left = left[confidences < thresholds[-1]]
    return tuple(thresholds)


def install_earlyon(folder: Path) -> Path:
    if not (folder / "earlyon").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(folder), EARLYON], check=True)
    return folder


def trained_case(folder: Path, out: Path) -> tuple[str, Path, np.ndarray]:
    from mate_edge.runs import read_finished_run, read_outputs

    run, path = read_finished_run(folder), out / f"{folder.name}.mate"
    shutil.rmtree(path, ignore_errors=True)  # it may be of another run of that name
    export_here(folder, run, path)
    outputs: dict[str, Any] = read_outputs(folder, run)
    return f"{run.arch} on {Path(run.data).name}", path, outputs["val_images"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="A trained run, measured besides.")
    parser.add_argument("--point", default="balanced", help="Whose thresholds the run gets.")
    parser.add_argument("--only", help="Part of a case's name, such as resnet8.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--earlyon", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("torch", "onnxruntime", "openvino", "numpy") + f", {EARLYON}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    library = arguments.earlyon or install_earlyon(arguments.out / "earlyon")
    cases = {}
    if arguments.run is not None:
        name, path, frames = trained_case(arguments.run, arguments.out)
        cases[name] = (path, arguments.run, frames)
    for arch, size in CASES:
        if arguments.only is None or arguments.only in f"{arch} at {size}":
            path = make_bundle(arguments.out, arch, size, 10)
            pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
            cases[f"{arch} at {size}, untrained"] = (path, path.with_suffix(""), pixels)
    for name, (path, run, frames) in cases.items():
        bundle = read_bundle(path)
        if "untrained" in name:
            thresholds = equal_shares(bundle, frames)
        else:
            policy = resolve_policy(bundle, arguments.point)
            thresholds = policy.thresholds  # type: ignore[attr-defined]
        threads = arguments.threads or cpu_threads(bundle)
        case = Case(path, run, frames, tuple(thresholds), threads, library)
        show(name, case, *measure(case, arguments.rounds))


def show(
    name: str,
    case: Case,
    answers: dict[str, list[Answer]],
    times: dict[str, np.ndarray],
) -> None:
    shares = np.bincount([taken for taken, _ in answers[OURS]])[1:]
    rows = []
    for contender, found in times.items():
        each = found.ravel().tolist()
        ratios = found.sum(axis=1) / times[OURS].sum(axis=1)
        differ = sum(a != b for a, b in zip(answers[OURS], answers[contender], strict=True))
        same_exits = "" if "unsplit" in contender else str(differ)
        rows.append(
            [contender, f"{np.mean(each):.3f}", f"{median(each):.3f}", f"{quantile(each, 0.9):.3f}",
             f"{quantile(each, 0.99):.3f}", f"{median(ratios.tolist()):.2f}", same_exits]
        )  # fmt: skip
    n = len(case.frames)
    title = (
        f"{name}: {n} images, {', '.join(map(str, shares))} leave at exits 1 to {len(shares)}, "
        f"{len(times[OURS])} rounds, {case.threads} threads, ms an image"
    )
    headers = ["", "mean", "p50", "p90", "p99", "/ ours", "differ"]
    print_table(title, headers, rows)
    print(flush=True)


if __name__ == "__main__":
    main()
