"""What a predictor knows of its device: how long segments take here, and how long deciding does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import Deepest, Policy, decide
from mate_edge.decide.softmax import Logits
from mate_edge.errors import UsageError
from mate_edge.images import normalize
from mate_edge.runtime.deadline import LatencyTable, MissBudget, SlowDown, rounds_needed
from mate_edge.runtime.engines import Say
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.latencies import (
    Latencies,
    keep_latencies,
    read_latencies,
    record_latencies,
)
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.segments import BY_CONFIDENCE, Loop

MEASURE_MS, LONGEST_MS = 1000.0, 10_000.0
"""How long the latencies are measured, and at most where fewer rounds than a quantile needs fit."""
ENOUGH_MS = 5_000.0
"""How long rounds that `mate-edge bench` keeps for deadlines took, if they are fewer."""
FEWEST_ROUNDS, MOST_ROUNDS = 10, 1000
"""As few as a quantile needs would make it their maximum: any hiccup that was among them."""
WIDE = 5.0
"""A quantile so many times its median is more than a machine's usual noise."""
WARM_UP_ROUNDS = 3
DECIDING_ROUNDS = 20


def is_enough(measured: Latencies) -> bool:
    """Say whether there are enough rounds for a quantile, or as many as `ENOUGH_MS` allowed."""
    if measured.rounds >= rounds_needed(len(measured.segments_ms)):
        return True
    total_ms = sum(map(sum, measured.segments_ms)) + sum(measured.rest_ms)
    return measured.rounds >= FEWEST_ROUNDS and total_ms >= ENOUGH_MS


class _Known:
    """What a predictor and its clones know of the device; of several that ask, one measures."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.measured: Latencies | None = None
        self.deciding_ms: dict[type, float] = {}


class _Onward:
    """Decides as a policy does and goes on all the same: to time it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""
        leave, probabilities = decide(self._policy, logits)
        return np.zeros_like(leave), probabilities


class Timing:
    """The latencies of one engine on this device, and what its deadlines follow.

    It serves one thread: what runs the engine is called through its `Predictor`, which keeps other
    threads out.

    Args:
        engine: whose segments.
        clock: of nanoseconds.

    Attributes:
        measured: the rounds that deadlines rest on; None before they are known.
        latencies: the table of them; see `table` for a policy that is slow to decide.
        slow_down: how much slower the device is now.
        budget: of missed deadlines.
        is_warm: whether all segments have run.
    """

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self._engine, self._clock = engine, clock
        self.measured: Latencies | None = None
        self.latencies: LatencyTable | None = None
        self.slow_down, self.budget = SlowDown(), MissBudget()
        self.is_warm = False
        self._known = _Known()
        self._tables: dict[type, LatencyTable] = {}

    def clone(self, engine: Engine) -> Timing:
        """Return the same knowledge for an engine of another thread: one measurement is shared."""
        twin = Timing(engine, self._clock)
        twin.measured, twin.latencies = self.measured, self.latencies
        twin._known, twin._tables = self._known, self._tables.copy()
        return twin

    def know(self, policy: Policy, say: Say, keep: bool = True) -> LatencyTable:
        """See `Predictor.know_latencies`; for any policy."""
        newer = self._known.measured
        if self.latencies is None or (newer is not None and newer is not self.measured):
            with self._known.lock:
                bundle = self._engine.bundle
                measured = self._known.measured or read_latencies(bundle, self._engine)
                self.warm_up()  # before they are known: Ctrl-C in it must not be the last attempt
                if measured is None:
                    say(f"{bundle.folder} was never measured on this device as it is now: "
                        f"that is done first, for {LONGEST_MS / 1000:g} s at most")  # fmt: skip
                    measured = self._measure(say, keep)
                self.use(measured)
            table = self.latencies
            if table is not None and not table.exact:
                needed = rounds_needed(self._engine.num_segments)
                say(
                    f"{bundle.folder} was measured in {table.samples} rounds: deadlines rest on "
                    f"their maximum, a quantile needs {needed}, which mate-edge bench --rounds "
                    f"{needed} measures"
                )
            if table is not None and table.spread > WIDE:
                say(
                    f"a segment took up to {table.spread:.0f} times its median when "
                    f"{bundle.folder} was measured, and deadlines allow for that: if other work "
                    "ran beside it then, mate-edge bench measures again"
                )
        return self.table(policy)

    @property
    def frame_ms(self) -> float:
        """What an image took before the network; 0 where none was measured."""
        return 0.0 if self.measured is None else self.measured.frame_ms

    def use(self, measured: Latencies) -> None:
        """Let deadlines rest on these; clones do so from their next one on."""
        self.measured = self._known.measured = measured
        self._tables = {}
        self.start_over()
        self.latencies = LatencyTable.from_samples(measured.segments_ms, measured.rest_ms)

    def start_over(self) -> None:
        """Forget how slow the device has been, as in a new process."""
        self.slow_down, self.budget = SlowDown(), MissBudget()

    def of(self, policy: Policy) -> Latencies:
        """See `Predictor.latencies_of`."""
        assert self.measured is not None, "know comes first"
        kind = type(policy)
        if kind in BY_CONFIDENCE:
            return self.measured
        with self._known.lock:
            if kind not in self._known.deciding_ms:
                usual, longer = (
                    median(
                        found.elapsed_ms - sum(found.segment_ms)
                        for found in (self._run_noise(loop) for _ in range(DECIDING_ROUNDS))
                    )
                    for loop in map(self._loop, (self._deepest(), _Onward(policy)))
                )
                self._known.deciding_ms[kind] = max(longer - usual, 0.0)
            more = self._known.deciding_ms[kind]
        rest = tuple(ms + more for ms in self.measured.rest_ms)
        return msgspec.structs.replace(self.measured, rest_ms=rest)

    def table(self, policy: Policy) -> LatencyTable:
        """Return the table for a policy of this kind; without `measured`, the one for all."""
        kind = type(policy)
        if kind in BY_CONFIDENCE or self.measured is None:
            assert self.latencies is not None, "know comes first"
            return self.latencies
        if kind not in self._tables:
            own = self.of(policy)
            self._tables[kind] = LatencyTable.from_samples(own.segments_ms, own.rest_ms)
        return self._tables[kind]

    def warm_up(self) -> None:
        """See `Predictor.warm_up`."""
        shape = self._engine.frame_shape
        frame = None if shape is None else np.zeros((*shape, 3), np.uint8)
        if frame is not None:
            self._engine.open(0)
        for k in range(1, self._engine.num_segments + 1):
            self._engine.open(k)
        loop = self._loop(self._deepest())
        for _ in range(WARM_UP_ROUNDS):
            if frame is not None:
                self._engine.load_frame(frame)
            self._run_noise(loop)
        self.is_warm = True

    def measure(self, say: Say) -> None:
        """See `Predictor.measure`."""
        with self._known.lock:
            self.warm_up()
            self.use(self._measure(say))

    def _measure(self, say: Say, keep: bool = True) -> Latencies:
        loop = self._loop(self._deepest())
        segments: list[list[float]] = [[] for _ in range(self._engine.num_segments)]
        rest: list[float] = []
        needed, began = rounds_needed(self._engine.num_segments), self._clock()
        while len(rest) < MOST_ROUNDS:
            most_ms = MEASURE_MS if len(rest) >= needed else LONGEST_MS
            if len(rest) >= FEWEST_ROUNDS and (self._clock() - began) / 1e6 > most_ms:
                break
            prediction = self._run_noise(loop)
            for samples, ms in zip(segments, prediction.segment_ms, strict=True):
                samples.append(ms)
            rest.append(prediction.elapsed_ms - sum(prediction.segment_ms))
        measured = record_latencies(self._engine, segments, rest)
        if keep:
            try:
                keep_latencies(measured)
            except UsageError as error:
                say(f"the latencies are not kept, each process measures anew: {error}")
        return measured

    def _deepest(self) -> Policy:
        return Deepest(self._engine.bundle.manifest.temperatures)

    def _loop(self, policy: Policy) -> Loop:
        return Loop(self._engine, policy, self._clock)

    def _run_noise(self, loop: Loop) -> Prediction:
        """Run all segments on an image of noise: their times do not depend on what is shown.

        Nor do deadlines hear of it: the first runs are cold, and slow for that alone.

        Args:
            loop: of a policy that never leaves early.
        """
        pre = self._engine.bundle.manifest.preprocessing
        shape = (1, pre.size, pre.size, pre.channels)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._engine.load(normalize(noise, pre))
        return loop(self._clock(), SlowDown(), MissBudget(), self.latencies)[0]
