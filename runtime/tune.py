"""`mate-edge tune`: from a bundle's calibration logits to an operating point under a name.

An operating point is also a file of its own, which names the bundle that it is for and can be
shipped alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mate_edge import __version__, files
from mate_edge.bundle import Bundle, OperatingPoint
from mate_edge.decide.calibrate import Calibrated, Calibration
from mate_edge.decide.policy import THRESHOLDS
from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.runtime.state import read_state, state_folder, write_state

SCHEMA = 1
POINTS = "operating-points"
"""They depend on the bundle alone, so they lie in its state under this name, not a device's."""


class TunedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The file of an operating point.

    Attributes:
        name: what `run --policy` calls it.
        bundle: the id of the bundle that it is for.
        goal: what was asked for, in the words of the command line.
        last_accuracy: the last exit's on the samples that `point` is reported on.
        samples: how many those are: the half of the validation images that chose nothing.
    """

    schema: int = SCHEMA
    name: str
    bundle: str
    goal: str
    point: OperatingPoint
    last_accuracy: float
    samples: int
    created: str
    version: str = __version__


def calibration(bundle: Bundle, costs: Sequence[float], kind: str) -> Calibration:
    """Return the bundle's validation logits, halved and ready for a goal.

    Args:
        bundle: an opened bundle.
        costs: of each exit with all segments before it, in FLOPs or ms.
        kind: a policy in `THRESHOLDS`.

    Raises:
        BundleError: `calibration.npz` is damaged.
        UsageError: a policy without thresholds.
    """
    look_up("--policy", kind, THRESHOLDS)
    arrays: dict[str, Any] = bundle.arrays(bundle.manifest.calibration)
    return Calibration(
        arrays["logits"].astype(np.float32), arrays["labels"].astype(np.int64), costs, kind
    )


def tuned_point(
    bundle: Bundle, name: str, goal: str, kind: str, calibrated: Calibrated
) -> TunedPoint:
    """Return the file's contents for a policy that was chosen.

    Raises:
        UsageError: a name that is no plain word, or taken by the bundle's own points.
    """
    check_name(bundle, name)
    exits = bundle.manifest.exits
    return TunedPoint(
        name=name,
        bundle=bundle.id,
        goal=goal,
        point=OperatingPoint(
            policy=kind,
            parameters=asdict(calibrated.policy),
            val_accuracy=calibrated.accuracy,
            val_mean_flops=calibrated.outcome.mean_flops(
                tuple(exit_.cumulative_flops for exit_ in exits)
            ),
            val_exit_shares=calibrated.outcome.exit_shares(len(exits)),
            guarantee=calibrated.guarantee,
        ),
        last_accuracy=calibrated.last_accuracy,
        samples=len(calibrated.labels),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def check_name(bundle: Bundle, name: str) -> None:
    """Refuse a name that cannot be a file's, or that the bundle's own points have.

    Raises:
        UsageError: with the name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name) or name.endswith(".json"):
        raise UsageError(f"--name takes letters, digits, - and _, not {name!r}")
    if name in bundle.manifest.operating_points or name == "deepest":
        raise UsageError(f"--name {name} is one of the bundle's own: choose another")


def keep_point(found: TunedPoint, out: Path | None) -> None:
    """Store an operating point under its name on this device, and in the file `out`.

    Raises:
        UsageError: a place that cannot be written.
    """
    write_state(state_folder(found.bundle, POINTS), found.name, found)
    if out is not None:
        files.make_folder(out.parent)
        files.write_json(out, found)


def kept_points(bundle: Bundle) -> dict[str, TunedPoint]:
    """Return the operating points of this bundle that were stored on this device, by name."""
    folder = state_folder(bundle.id, POINTS)
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    found = {name: read_state(folder, name, TunedPoint) for name in names}
    return {
        name: point
        for name, point in found.items()
        if point is not None and point.schema == SCHEMA and point.bundle == bundle.id
    }


def read_point(path: Path, bundle: Bundle) -> TunedPoint:
    """Read an operating point's file.

    Raises:
        UsageError: missing, damaged, of a newer schema, or for another bundle.
    """
    data = files.read_bytes(path, files.MAX_JSON_BYTES, UsageError)
    found = files.decode_json(data, TunedPoint, path, SCHEMA, UsageError)
    if found.bundle != bundle.id:
        raise UsageError(
            f"{path} is for the bundle {found.bundle[:12]}, {bundle.folder} is {bundle.id[:12]}: "
            "tune this one (mate-edge tune), or use the bundle that it was made for"
        )
    return found
