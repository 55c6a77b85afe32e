"""Are deadlines kept, and what do they cost in accuracy?

    python benchmarks/deadlines.py [--frames 1000] [--only resnet8] [--bundle TRAINED.mate]
        [--out FOLDER]

Untrained resnet8 at 32 and resnet18 at 224 pixels (times do not depend on the weights), the policy
`deepest`, deadlines from 1.1 times exit 1's 99th percentile up to the whole network's. They rest on
what the first deadline measures by itself, as a user's do.

* real: each frame is answered once under the deadline and once by exit 1 alone, each of the two
  first in turns, by predictors of their own. Extra misses are those above the share in which exit 1
  alone is late, which no rule can undercut; the rule can have caused no more than those of the
  answers that went on past exit 1. Beside nothing, and beside one process that computes all the
  time.
* simulated: `--rounds` recorded rounds, other ones, drawn at random and played back on a clock of
  their own through the same predictor; from the middle on, all take 1.25 or 2 times as long.
* accuracy: played back likewise, with the logits and labels of a trained bundle's validation
  images, beside an oracle that knows each frame's times in advance and takes the deepest exit that
  is in time. Without `--bundle` this part is left out.

About 15 minutes on 2 cores, most of it for resnet18.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe, quantile
from PIL import Image
from untrained import make_bundle

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import NEVER, Confidence, Deepest
from mate_edge.runtime.bench.load import busy_processes
from mate_edge.runtime.bench.rounds import Contender, Pace, Sample, run_rounds
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.predictor import Predictor

CASES = [("resnet8", 32, (32, 32), 3), ("resnet18", 224, (320, 240), 1)]
"""Network, size, sides of the JPEG, and how many times `--frames`."""

DEADLINES = 5
SLOW_DOWNS = (1.0, 1.25, 2.0)
SIMULATED = 10_000  # frames


@dataclass(frozen=True)
class Rounds:
    """What was measured: rounds for the table, others to play back, and the sweep of deadlines."""

    table: Latencies
    others: list[Sample]
    deadlines: list[float]


class Clock:
    """Moves only when it is told to."""

    ns = 10**9

    def __call__(self) -> int:
        """Return ns."""
        return self.ns

    def pass_ms(self, ms: float) -> None:
        """Move on."""
        self.ns += round(1e6 * ms)


class Playback(Engine):
    """Takes the time of a recorded round, and answers with recorded logits."""

    device = device_key = "a recording"

    def __init__(self, bundle: Bundle, clock: Clock) -> None:
        super().__init__(bundle)
        self.clock, self.slower = clock, 1.0
        self.round: Sample
        self.logits = np.zeros((self.num_segments, len(bundle.manifest.classes)), np.float32)

    def open(self, k: int) -> None:
        """See `Engine.open`: the segment's part of what the round spent outside passes here."""
        self.clock.pass_ms(self.slower * self.round.rest_ms / self.num_segments)

    def load(self, inputs: np.ndarray, k: int = 1) -> None:
        """See `Engine.load`: decoding and preprocessing pass here."""
        self.clock.pass_ms(self.slower * (self.round.decode_ms + self.round.preprocess_ms))

    def run(self, k: int) -> np.ndarray:
        """See `Engine.run`."""
        self.clock.pass_ms(self.slower * self.round.segment_ms[k - 1])
        return self.logits[None, k - 1]

    def keep(self, rows: np.ndarray) -> None:
        """See `Engine.keep`: nothing to do."""

    def clone(self) -> Engine:
        """See `Engine.clone`."""
        return self

    def close(self) -> None:
        """See `Engine.close`: nothing to do."""

    def in_time(self, max_ms: float) -> int:
        """Return the deepest exit that would answer in time, or 0."""
        ms = self.round.decode_ms + self.round.preprocess_ms
        for k, segment_ms in enumerate(self.round.segment_ms):
            ms += self.round.rest_ms / self.num_segments + segment_ms
            if self.slower * ms > max_ms:
                return k
        return len(self.round.segment_ms)


def at_exit(predictor: Predictor, k: int) -> Confidence | Deepest:
    temperatures = predictor.manifest.temperatures
    if k == len(temperatures):
        return Deepest(temperatures)
    early = len(temperatures) - 1
    return Confidence((NEVER,) * (k - 1) + (0.0,) * (early - k + 1), temperatures)


def measure(predictor: Predictor, frame: bytes, rounds: int) -> Rounds:
    last = predictor.engine.num_segments
    contenders = [
        Contender("exit 1", predictor, at_exit(predictor, 1)),
        Contender("deepest", predictor, at_exit(predictor, last)),
    ]
    predictor.warm_up()
    run_rounds(contenders, [frame], Pace(5, 5, 1e9))
    found = run_rounds(contenders, [frame], Pace(rounds, rounds, 1e9))
    predictor.measure()
    table = predictor.timing.measured
    assert table is not None, "it was just measured"
    shallow = 1.1 * quantile([sample.elapsed_ms for sample in found["exit 1"]], 0.99)
    full = quantile([sample.elapsed_ms for sample in found["deepest"]], 0.99)
    deadlines = np.linspace(shallow, max(full, 1.1 * shallow), DEADLINES)
    return Rounds(table, found["deepest"], [float(ms) for ms in deadlines])


def real(predictor: Predictor, frame: bytes, max_ms: float, frames: int) -> str:
    """Return the cells of `MISSES` but the deadline."""
    alone = predictor.clone()
    alone.set_policy(at_exit(predictor, 1))
    missed = late = late_past = 0
    exits: Counter[int] = Counter()
    for number in range(frames):
        if number % 2:
            late += alone.predict(frame).elapsed_ms > max_ms
        found = predictor.predict(frame, max_ms=max_ms)
        if not number % 2:
            late += alone.predict(frame).elapsed_ms > max_ms
        missed += found.deadline_missed
        late_past += found.deadline_missed and found.exit > 1
        exits[found.exit] += 1
    return cells(missed, late, late_past, exits, frames, predictor.engine.num_segments)


def cells(
    missed: int, late: int, late_past: int, exits: Counter[int], n: int, num_exits: int
) -> str:
    shares = " ".join(f"{100 * exits[k] / n:.0f}" for k in range(1, num_exits + 1))
    return (
        f"{100 * missed / n:.2f} | {100 * late / n:.2f} | {100 * (missed - late) / n:+.2f} | "
        f"{100 * late_past / n:.2f} | {shares} | {n}"
    )


def simulate(
    bundle: Bundle,
    rounds: Rounds,
    max_ms: float,
    slower: float,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> tuple[str, float, float]:
    """Return the same cells of a playback, and the accuracy of ours and of the oracle's answers."""
    clock, rng = Clock(), np.random.default_rng(0)
    engine = Playback(bundle, clock)
    predictor = Predictor(engine, "deepest", clock)
    predictor.timing.use(rounds.table)
    pre = bundle.manifest.preprocessing
    frame = np.zeros((pre.size, pre.size, 3), np.uint8)
    missed = late = late_past = right = oracle_right = 0
    exits: Counter[int] = Counter()
    for number in range(SIMULATED):
        engine.slower = slower if number >= SIMULATED // 2 else 1.0
        engine.round = rounds.others[rng.integers(len(rounds.others))]
        if logits is not None and labels is not None:
            image = rng.integers(len(labels))
            engine.logits = logits[image].astype(np.float32)
        possible = engine.in_time(max_ms)
        late += possible == 0
        found = predictor.predict(frame, max_ms=max_ms)
        missed += found.deadline_missed
        late_past += found.deadline_missed and found.exit > 1
        exits[found.exit] += 1
        if labels is not None:
            answers = engine.logits.argmax(axis=-1)
            right += answers[found.exit - 1] == labels[image]
            oracle_right += answers[max(possible, 1) - 1] == labels[image]
    counted = cells(missed, late, late_past, exits, SIMULATED, engine.num_segments)
    return counted, 100 * right / SIMULATED, 100 * oracle_right / SIMULATED


def frame_of(sides: tuple[int, int]) -> bytes:
    """Return a JPEG of smooth noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(sides).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def open_predictor(bundle: Path) -> Predictor:
    return Predictor(make_engine("onnxruntime", read_bundle(bundle), None, True), "deepest")


def head(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


MISSES = (
    "deadline ms",
    "missed %",
    "exit 1 alone late %",
    "extra %",
    "past exit 1 and late %",
    "exits' shares %",
    "n",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--only", default="", help="Part of a network's name, such as resnet8.")
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--bundle", type=Path, help="trained, for the accuracy part")
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    chosen = parser.parse_args()
    print(describe("onnxruntime", "numpy", "pillow"))
    print("the miss share asked for is 1 %")
    measured: dict[str, tuple[Bundle, Rounds]] = {}
    head("network", "beside", *MISSES)
    for arch, size, sides, times in CASES:
        if chosen.only not in arch:
            continue
        bundle = make_bundle(chosen.out, arch, size, 10 if size == 32 else 1000)
        frame, name = frame_of(sides), f"{arch} at {size}"
        with open_predictor(bundle) as predictor:
            rounds = measure(predictor, frame, chosen.rounds)
            measured[name] = predictor.bundle, rounds
            print(f"{name}: a table of {rounds.table.rounds} rounds", file=sys.stderr)
            for load in (0, 1):
                beside = "1 busy process" if load else "nothing"
                with busy_processes(load):
                    for max_ms in rounds.deadlines:
                        found = real(predictor, frame, max_ms, times * chosen.frames)
                        print(f"| {name} | {beside} | {max_ms:.2f} | {found} |", flush=True)
    head("network", "simulated slow-down", *MISSES)
    for name, (opened, rounds) in measured.items():
        for slower in SLOW_DOWNS:
            for max_ms in np.linspace(
                rounds.deadlines[0], slower * rounds.deadlines[-1], DEADLINES
            ):
                found, _, _ = simulate(opened, rounds, float(max_ms), slower)
                print(f"| {name} | {slower:g} | {max_ms:.2f} | {found} |", flush=True)
    if chosen.bundle is not None:
        compare_with_oracle(chosen.bundle, chosen.rounds)


def compare_with_oracle(bundle: Path, rounds: int) -> None:
    with open_predictor(bundle) as predictor:
        found = measure(predictor, frame_of((32, 32)), rounds)
        opened = predictor.bundle
    cached = opened.arrays(opened.manifest.calibration)
    logits, labels = cached["logits"], cached["labels"]
    head(bundle.name, *MISSES, "accuracy %", "oracle %", "points")
    for slower in SLOW_DOWNS:
        for max_ms in np.linspace(found.deadlines[0], slower * found.deadlines[-1], DEADLINES):
            counted, ours, oracle = simulate(opened, found, float(max_ms), slower, logits, labels)
            figures = f"{ours:.2f} | {oracle:.2f} | {ours - oracle:+.2f}"
            print(f"| slow-down {slower:g} | {max_ms:.3f} | {counted} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
