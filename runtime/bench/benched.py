"""The last `mate-edge bench` of a bundle on this device, kept for reports."""

from __future__ import annotations

import msgspec

from mate_edge.bundle import Bundle
from mate_edge.report.bench import Bench
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.fingerprint import Fingerprint, fingerprint
from mate_edge.runtime.state import read_state, state_folder, write_state

STATE = "bench"
SCHEMA = 1


class Benched(msgspec.Struct, frozen=True, kw_only=True):
    """A `bench-….json` of the device state: what bench said, of which device as it was then."""

    schema: int = SCHEMA
    fingerprint: Fingerprint
    bench: Bench


def keep_bench(bench: Bench, engine: Engine, machine: Machine | None = None) -> None:
    """Keep a measurement in place of the one before.

    Raises:
        UsageError: the device state cannot be written.
    """
    folder, now = state_folder(engine.bundle.id, engine.device_key), fingerprint(engine, machine)
    write_state(folder, now.named(STATE), Benched(fingerprint=now, bench=bench))


def read_bench(bundle: Bundle, engine: Engine, machine: Machine | None = None) -> Bench | None:
    """Return the last measurement of a bundle on this device as it is now.

    None when there is none, or it is damaged, of another schema, or of a device that has changed.
    """
    now = fingerprint(engine, machine)
    found = read_state(state_folder(bundle.id, engine.device_key), now.named(STATE), Benched)
    if found is None or (found.schema, found.bench.bundle_id) != (SCHEMA, bundle.id):
        return None
    if len(found.bench.parts.segments) != len(bundle.manifest.segments):
        return None
    return found.bench if found.fingerprint == now else None
