"""An operating point that was certified together with a deadline."""

from __future__ import annotations

from typing import Any

import msgspec

from mate_edge.bundle import Bundle, Guarantee, OperatingPoint
from mate_edge.report.tuned import TunedPoint
from mate_edge.runtime.fingerprint import Fingerprint
from mate_edge.runtime.latencies import Latencies


def certified_on(here: Fingerprint, **changes: Any) -> Guarantee:
    """Return a guarantee together with 5 ms, by rounds of that device, but for `changes`."""
    guarantee = Guarantee(
        loss="worse",
        epsilon=0.01,
        delta=0.05,
        n=1000,
        losses=3,
        max_ms=5.0,
        device=msgspec.to_builtins(here),
        halted=20,
        rounds=500,
        measured="2026-11-30",
    )
    return msgspec.structs.replace(guarantee, **changes)


def certified(bundle: Bundle, by: Latencies, max_ms: float, **changes: Any) -> TunedPoint:
    """Return a point that never leaves early, certified by these rounds, but for `changes`."""
    known = {"max_ms": max_ms, "rounds": by.rounds, "measured": by.created}
    point = OperatingPoint(
        policy="deepest",
        parameters={"temperatures": bundle.manifest.temperatures},
        val_accuracy=0.9,
        val_mean_flops=1e6,
        val_exit_shares=(0.0, 0.0, 1.0),
        guarantee=certified_on(by.fingerprint, **known | changes),
    )
    return TunedPoint(
        name="joint",
        bundle=bundle.id,
        goal="--max-risk 0.01",
        point=point,
        last_accuracy=0.9,
        samples=1000,
        created=by.created,
    )
