"""Measure contenders in turns: whatever slows the machine down meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mate_edge.decide.policy import Policy
from mate_edge.runtime.predictor import Predictor


@dataclass(frozen=True)
class Contender:
    """A policy on one predictor, under a name."""

    name: str
    predictor: Predictor
    policy: Policy


@dataclass(frozen=True)
class Sample:
    """One prediction's times, in ms; see `Prediction`.

    `unmeasured_ms` is what a prediction before it took, which warmed the caches up.
    """

    exit: int
    elapsed_ms: float
    decode_ms: float
    preprocess_ms: float
    segment_ms: tuple[float, ...]
    unmeasured_ms: float = 0.0

    @property
    def rest_ms(self) -> float:
        """What passed outside of decoding, preprocessing and the segments."""
        return self.elapsed_ms - self.decode_ms - self.preprocess_ms - sum(self.segment_ms)


Samples = dict[str, list[Sample]]
"""By the contenders' names."""


@dataclass(frozen=True)
class Pace:
    """How many rounds, and how fast.

    Attributes:
        rounds: at most.
        least: these are run however long they take.
        limit_s: no further round after this.
        fps: predictions begun in a second; None: each follows the one before at once.
    """

    rounds: int
    least: int
    limit_s: float
    fps: float | None = None


def run_rounds(
    contenders: Sequence[Contender],
    frames: Sequence[bytes],
    pace: Pace,
    *,
    sleep: Callable[[float], object] = time.sleep,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, list[Sample]]:
    """Let each contender predict one and the same image in each round.

    The first contender of a round is another one each time, and every other round goes backwards:
    nobody always follows the same neighbour. Who follows another predictor predicts once before,
    unmeasured: a small network is a tenth slower where another one has just filled the caches, and
    policies of one predictor would be better off than the unsplit network. Paced, each prediction
    begins on a tick of `fps`, as a camera's frames do; ticks that pass while one is still running
    are left out.

    Args:
        contenders: warmed up, with names of their own; the first one's clock counts.
        frames: encoded images, shown in turn.
        pace: how long to go on.
        sleep: waits for so many seconds.
        progress: told the share of `rounds` that is done, or of `limit_s` if that is larger.

    Returns:
        A sample a round, by the contenders' names.
    """
    clock = contenders[0].predictor.clock
    found: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    began, tick, before = clock(), 0, contenders[0].predictor
    for turn in range(pace.rounds):
        passed_s = (clock() - began) / 1e9
        if turn >= pace.least and passed_s > pace.limit_s:
            break
        progress(max(turn / pace.rounds, min(passed_s / pace.limit_s, turn / pace.least, 1.0)))
        start = turn // 2 % len(contenders)
        order = [*contenders[start:], *contenders[:start]][:: 1 if turn % 2 else -1]
        frame = frames[turn % len(frames)]
        for contender in order:
            unmeasured_ms = 0.0
            if contender.predictor is not before:
                before = contender.predictor
                unmeasured_ms = before.predict(frame, policy=contender.policy).elapsed_ms
            if pace.fps is not None:
                passed_s = (clock() - began) / 1e9
                tick = max(tick + 1, int(passed_s * pace.fps) + 1)
                sleep(tick / pace.fps - passed_s)
            prediction = contender.predictor.predict(frame, policy=contender.policy)
            found[contender.name].append(
                Sample(
                    prediction.exit,
                    prediction.elapsed_ms,
                    prediction.decode_ms,
                    prediction.preprocess_ms,
                    prediction.segment_ms,
                    unmeasured_ms,
                )
            )
    progress(1.0)
    return found
