"""An operating point that was certified together with a deadline."""

from __future__ import annotations

from typing import Any

import msgspec

from mate_edge.bundle import Bundle, Guarantee, OperatingPoint
from mate_edge.report.tuned import TunedPoint
from mate_edge.runtime.latencies import Latencies


def certified(bundle: Bundle, by: Latencies, max_ms: float, **changes: Any) -> TunedPoint:
    """Return one that never leaves early, certified by these rounds, but for `changes`."""
    guarantee = Guarantee(
        loss="worse",
        epsilon=0.01,
        delta=0.05,
        n=1000,
        losses=3,
        max_ms=max_ms,
        device=msgspec.to_builtins(by.fingerprint),
        halted=0,
        rounds=by.rounds,
        measured=by.created,
    )
    point = OperatingPoint(
        policy="deepest",
        parameters={"temperatures": bundle.manifest.temperatures},
        val_accuracy=0.9,
        val_mean_flops=1e6,
        val_exit_shares=(0.0, 0.0, 1.0),
        guarantee=msgspec.structs.replace(guarantee, **changes),
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
