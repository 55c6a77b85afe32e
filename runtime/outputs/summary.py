"""What to say at the end of a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO

from mate_edge.errors import BundleError
from mate_edge.runtime.outputs.answer import Answer
from mate_edge.runtime.outputs.plain import plain
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.standing import standing


class Summary:
    """Counts what was answered, in constant memory."""

    def __init__(
        self,
        predictor: Predictor,
        max_ms: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.predictor = predictor
        self.num_exits = predictor.engine.num_segments
        self.max_ms = max_ms
        self.exits: Counter[int] = Counter()
        self.by_deadline: Counter[int] = Counter()
        self.failures = self.misses = self.frames = self.steadied = 0
        self.total_ms = 0.0
        self._clock, self._began = clock, clock()

    @property
    def count(self) -> int:
        """How many images and frames were classified."""
        return sum(self.exits.values())

    def add(self, answer: Answer) -> None:
        """Take in one answer."""
        prediction = answer.prediction
        self.exits[prediction.exit] += 1
        self.frames += answer.shot.number is not None
        self.steadied += answer.label != prediction.label
        self.misses += prediction.deadline_missed
        if prediction.halted_by == "deadline":
            self.by_deadline[prediction.exit] += 1
        self.total_ms += prediction.elapsed_ms

    def shares(self) -> str:
        """Return the exits' shares."""
        count = max(self.count, 1)
        return ", ".join(
            f"exit {k} {100 * self.exits[k] / count:.0f} %" for k in range(1, self.num_exits + 1)
        )

    def print(self, file: TextIO) -> None:
        """Print it, where no frame is dropped and nothing remarked."""
        print(self.text(), file=file)

    def text(self, dropped: int = 0, remarks: Sequence[str] = ()) -> str:
        """Return shares, mean time, misses, drops, what is guaranteed, drift, and the remarks."""
        count, halted = self.count, self.by_deadline.total()
        what = ("frame" if self.frames == count else "image") + "s" * (count != 1)
        lines = [f"{count} {what}: {self.shares()}; mean {self.total_ms / max(count, 1):.2f} ms"]
        if self.frames:
            passed = max(self._clock() - self._began, 1e-9)
            lines[0] += f"; {count / passed:.1f} a second"
        if self.max_ms is not None:
            where = ", ".join(f"{n} at exit {k}" for k, n in sorted(self.by_deadline.items()))
            lines.append(
                f"deadline {self.max_ms:g} ms: {self.misses} missed, {halted} halted by it"
                + (f" ({where})" if where else "")
            )
            if ended := self.predictor.timing.budget.ended:
                lines.append(
                    f"{ended} of these at exit 1 although there was time: going on had just made "
                    "too many late"
                )
        if dropped:
            were = "1 frame was" if dropped == 1 else f"{dropped} frames were"
            lines.append(f"{were} dropped for newer ones (--every-frame keeps them)")
        measured = self.predictor.timing.measured
        lines.append(standing(self.predictor.chosen, self.max_ms, measured, self.count, halted))
        if self.steadied:
            lines.append(
                f"{self.steadied} of the labels are the steady ones of --patience-frames, not the "
                "policy's answers: what is said of these does not hold for them"
            )
        lines += self._drift()
        if self.failures:
            lines.append(f"{self.failures} could not be read")
        lines += remarks
        return "\n".join(plain(line) for line in lines)

    def _drift(self) -> list[str]:
        try:
            drift = self.predictor.stats().drift
        except BundleError as error:  # what was answered stays answered
            return [f"whether the images have drifted is unknown: {error}"]
        if drift is None or not drift.warns:
            return []
        tuned = self.predictor.chosen.confidences
        before = "the images it was tuned on" if tuned else "the validation images"
        return [
            f"the images have drifted: exit 1's confidence is not spread as on {before} "
            f"(PSI {drift.psi:.2f} on {drift.samples}, above {drift.limit:.2f}), so no "
            "accuracy stated holds: label some of them and type mate-edge evaluate"
        ]
