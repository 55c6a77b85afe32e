"""What is asked of `mate-edge bench`."""

from __future__ import annotations

from dataclasses import dataclass

from mate_edge.errors import UsageError
from mate_edge.runtime.deadline import check_max_ms

SLOWEST_FPS, FASTEST_FPS = 0.001, 1e6
MOST_LOAD = 256
MOST_ROUNDS = 1_000_000


@dataclass(frozen=True)
class Options:
    """What to measure, and how.

    Attributes:
        rounds: of each contender, exactly; None: enough for a 99th percentile, if time allows.
        fps: measure at so many predictions a second too.
        load: busy processes beside it.
        max_ms: the deadline that the verdict is about.
    """

    rounds: int | None = None
    fps: float | None = None
    load: int = 0
    max_ms: float | None = None

    def __post_init__(self) -> None:
        check_max_ms(self.max_ms)
        if self.fps is not None and not SLOWEST_FPS <= self.fps <= FASTEST_FPS:
            raise UsageError(
                f"--fps must lie between {SLOWEST_FPS} and {FASTEST_FPS:g}, not {self.fps:g}"
            )
        if self.rounds is not None and not 1 <= self.rounds <= MOST_ROUNDS:
            most = f"{MOST_ROUNDS:,}"
            raise UsageError(f"--rounds must lie between 1 and {most}, not {self.rounds}")
        if not 0 <= self.load <= MOST_LOAD:
            raise UsageError(f"--load must lie between 0 and {MOST_LOAD}, not {self.load}")
