"""What predictions took on this device, round by round, kept in the device state.

The raw rounds are kept and no summary of them: a deadline needs a quantile of each segment, tuning
replays whole rounds, and both must rest on the same measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from mate_edge.bundle import Bundle
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.fingerprint import Fingerprint, fingerprint
from mate_edge.runtime.state import read_state, state_folder, write_state
from mate_edge.times import now_utc

if TYPE_CHECKING:
    from mate_edge.runtime.doctor.machine import Machine

STATE = "latencies"
SCHEMA = 1
MOST_ROUNDS = 5000
"""More than this are not kept: the last ones count."""


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """A `latencies-….json` of the device state: n rounds of one image through all segments, in ms.

    Each fingerprint has a file of its own: a process that is pinned to one core, or a power mode
    tried out, does not cost the others their rounds.

    Attributes:
        bundle_id: of the bundle that was measured.
        fingerprint: of the device, as it was then.
        segments_ms: [K][n], what each segment took; index i is the same round everywhere.
        rest_ms: [n], what a round spent outside of its segments, after preprocessing: decisions
            and bookkeeping of all K exits.
        decode_ms: [n], or empty where nothing was decoded.
        preprocess_ms: [n], or empty.
        images: what was decoded, where it was the user's own.
        fps: how many rounds a second were begun; None when one followed the other at once.
        created: when, ISO 8601 in UTC.
    """

    schema: int = SCHEMA
    bundle_id: str
    fingerprint: Fingerprint
    segments_ms: tuple[tuple[float, ...], ...]
    rest_ms: tuple[float, ...]
    decode_ms: tuple[float, ...] = ()
    preprocess_ms: tuple[float, ...] = ()
    images: str | None = None
    fps: float | None = None
    created: str

    def __post_init__(self) -> None:
        n, optional = len(self.rest_ms), (self.decode_ms, self.preprocess_ms)
        rows = [*self.segments_ms, self.rest_ms, *(row for row in optional if row)]
        if n < 1 or not self.segments_ms or any(len(row) != n for row in rows):
            raise ValueError("every row of latencies needs the same number of rounds, 1 or more")
        if not all(0 <= ms < math.inf for row in rows for ms in row):
            raise ValueError("a latency must be a number of ms, not negative")
        if not all(ms > 0 for row in self.segments_ms for ms in row):
            raise ValueError("a segment takes more than 0 ms")

    @property
    def rounds(self) -> int:
        """The number n of rounds."""
        return len(self.rest_ms)

    @property
    def frame_ms(self) -> float:
        """What decoding and preprocessing usually take; 0 where nothing was decoded."""
        return sum(median(row) for row in (self.decode_ms, self.preprocess_ms) if row)


def record_latencies(
    engine: Engine,
    segments_ms: Sequence[Sequence[float]],
    rest_ms: Sequence[float],
    *,
    decode_ms: Sequence[float] = (),
    preprocess_ms: Sequence[float] = (),
    images: str | None = None,
    fps: float | None = None,
    machine: Machine | None = None,
) -> Latencies:
    """Put rounds just measured with `engine` into a record; see `Latencies`.

    Raises:
        ValueError: they are no such rounds.
    """

    def last(row: Sequence[float]) -> tuple[float, ...]:
        return tuple(round(ms, 6) for ms in row[-MOST_ROUNDS:])

    return Latencies(
        bundle_id=engine.bundle.id,
        fingerprint=fingerprint(engine, machine),
        segments_ms=tuple(last(row) for row in segments_ms),
        rest_ms=last(rest_ms),
        decode_ms=last(decode_ms),
        preprocess_ms=last(preprocess_ms),
        images=images,
        fps=fps,
        created=now_utc(),
    )


def keep_latencies(latencies: Latencies) -> None:
    """Keep them for later processes, in place of those before.

    Raises:
        UsageError: the device state cannot be written.
    """
    folder = state_folder(latencies.bundle_id, latencies.fingerprint.engine)
    write_state(folder, latencies.fingerprint.named(STATE), latencies)


def read_latencies(
    bundle: Bundle, engine: Engine, machine: Machine | None = None
) -> Latencies | None:
    """Return what was kept of a bundle on this device as it is now.

    None when nothing was kept of the device in this state (power mode, clocks, versions, CPUs), or
    what was kept is damaged or of another schema.

    Args:
        bundle: opened; its unsplit network, as a bundle, has no latencies of its own.
        engine: of the bundle; `device_key` and threads are its.
        machine: this one when None.
    """
    now = fingerprint(engine, machine)
    found = read_state(state_folder(bundle.id, engine.device_key), now.named(STATE), Latencies)
    if found is None or (found.schema, found.bundle_id) != (SCHEMA, bundle.id):
        return None
    if len(found.segments_ms) != len(bundle.manifest.segments):
        return None
    return found if found.fingerprint == now else None
