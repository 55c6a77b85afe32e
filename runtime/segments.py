"""One image through segments one after another, until the policy or the deadline says stop."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

import numpy as np

from mate_edge.bundle import Guarantee
from mate_edge.decide.glance import FEW_CLASSES, glance, is_clear
from mate_edge.decide.policy import Confidence, Deepest, FixedExit, Policy, decide
from mate_edge.decide.softmax import Logits, largest
from mate_edge.errors import EngineError
from mate_edge.runtime.deadline import LatencyTable, MissBudget, SlowDown, time_left
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.prediction import HaltedBy, Prediction
from mate_edge.runtime.standing import certified_ms

BY_CONFIDENCE = (Confidence, Deepest, FixedExit)
"""Policies that ask for a least confidence only; a subclass of somebody else's may ask for more."""


class Loop:
    """Takes one sample through the segments, as one policy says.

    A small segment takes 100 us and leaves little of Python's code and data in the processor's
    caches, so that every object touched costs. What does not change from sample to sample is looked
    up once, and the usual case, a confidence that is clearly above or below its threshold, touches
    no numpy.

    Args:
        engine: whose segments; its `run` is taken as it is now.
        policy: says whether a sample leaves.
        clock: in ns.
        guarantee: of the policy; None: it has none.

    Attributes:
        policy: as given.
        passed: the logits of each exit that the last sample passed, float32 [1, C] each.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        clock: Callable[[], int],
        guarantee: Guarantee | None = None,
    ) -> None:
        self.policy = policy
        self._guarantee, self._certified_ms = guarantee, inf
        self._measured: Latencies | None = None
        self.passed: list[Logits] = []
        self._engine, self._run, self._clock = engine, engine.run, clock
        self._classes, self._last = engine.bundle.manifest.classes, engine.num_segments
        self._exits: tuple[tuple[float, float], ...] = ()
        few = len(self._classes) <= FEW_CLASSES
        if few and isinstance(policy, BY_CONFIDENCE) and type(policy) in BY_CONFIDENCE:
            self._exits = tuple(zip(policy.temperatures, policy.least_confidences, strict=True))
        self._opened = 0

    def rest_on(self, measured: Latencies | None) -> None:
        """Take in the rounds that deadlines rest on: by others no guarantee holds under one."""
        if measured is not self._measured:
            self._certified_ms = certified_ms(self._guarantee, measured)
            self._measured = measured

    def __call__(
        self,
        started: int,
        slow_down: SlowDown,
        budget: MissBudget,
        latencies: LatencyTable | None = None,
        max_ms: float | None = None,
        decode_ms: float = 0.0,
        preprocess_ms: float = 0.0,
    ) -> tuple[Prediction, float]:
        """Run segments over the one sample that the engine has loaded until it leaves.

        Args:
            started: when the deadline began, by the clock.
            slow_down: follows each segment when the latencies are known.
            budget: of misses; settled when there is a deadline.
            latencies: what a deadline rests on.
            max_ms: the deadline; None for none.
            decode_ms: for the prediction.
            preprocess_ms: likewise.

        Returns:
            The prediction, and exit 1's confidence.

        Raises:
            EngineError: the engine failed, or returned something that is no number.
        """
        run, clock, exits, last = self._run, self._clock, self._exits, self._last
        certified = max_ms is not None and max_ms >= self._certified_ms
        self.passed = passed = []
        segment_ms: list[float] = []
        first = 0.0
        k = 0
        while True:
            k += 1
            if k > self._opened:
                self._engine.open(k)
                self._opened = k
            began = clock()
            logits = run(k)
            now = clock()
            ms = (now - began) / 1e6
            segment_ms.append(ms)
            passed.append(logits)
            seen = None
            if exits:
                temperature, least = exits[k - 1]
                seen = glance(logits, temperature, least)
            if seen is not None:
                leaves, confidence, _, relative = seen
            else:
                leaves, confidence, probabilities = self._decide()
            if k == 1:
                first = confidence
            if latencies is not None:
                if max_ms is not None:
                    now = clock()  # deciding may have taken long
                since_ms = (now - started) / 1e6
                free = certified or leaves
                if not time_left(latencies, slow_down, budget, k, ms, since_ms, max_ms, free):
                    break
            if leaves or k == last:
                break
        if seen is None:
            index = int(probabilities.argmax())
        elif is_clear(seen):
            index = relative.index(1.0)
        else:
            probabilities = self._decide()[2]
            index = int(probabilities.argmax())
            confidence = probabilities.item(index)
            seen = None
        elapsed_ms = (clock() - started) / 1e6  # the answer is known
        halted_by: HaltedBy = "policy"
        if k == last:
            halted_by = "last-exit"
        elif not leaves:
            halted_by = "deadline"
        missed = False
        if max_ms is not None:
            missed = elapsed_ms > max_ms
            budget.settle(missed and k > 1, certified)
        prediction = Prediction(
            label=self._classes[index],
            index=index,
            confidence=confidence,
            exit=k,
            halted_by=halted_by,
            elapsed_ms=elapsed_ms,
            decode_ms=decode_ms,
            preprocess_ms=preprocess_ms,
            segment_ms=tuple(segment_ms),
            deadline_missed=missed,
            relative=probabilities if seen is None else relative,
        )
        return prediction, first

    def _decide(self) -> tuple[bool, float, Logits]:
        """Ask the policy itself; return whether the sample leaves, how sure, and [C]."""
        check_logits(self.passed[-1], len(self.passed), self._engine)
        leave, probabilities = decide(self.policy, np.stack(self.passed, axis=1))
        return bool(leave[0]), float(largest(probabilities)[0]), probabilities[0]


def check_logits(logits: Logits, k: int, engine: Engine) -> None:
    """Refuse the logits of exit k that are no numbers.

    Raises:
        EngineError: they are none.
    """
    if not (isfinite(logits.item(logits.argmax())) and isfinite(logits.item(logits.argmin()))):
        raise EngineError(
            f"segment {k} of {engine.bundle.folder} returned a logit that is no number: "
            "the bundle or the device is damaged"
        )
