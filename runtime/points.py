"""Operating points outside of bundles: files, and names in the device state.

A file names the bundle that it is for and can be shipped alone. A name lies in the bundle's part of
the device state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mate_edge import files
from mate_edge.bundle import POINT_NAME, TAKEN_NAME, Bundle, OperatingPoint
from mate_edge.decide.policy import make_policy
from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.report.tuned import SCHEMA, TunedPoint
from mate_edge.runtime.state import read_state, state_folder, write_state

POINTS = "operating-points"
"""They depend on the bundle alone, so they lie in its state under this name, not a device's."""

DEEPEST = "deepest"
POINT = re.compile(rb'"bundle": "[0-9a-f]{64}",\s+"goal": ')
"""What no other JSON has."""


def check_name(bundle: Bundle, name: str) -> None:
    """Refuse a name that cannot be a file's, or that means something already.

    Raises:
        UsageError: with the name.
    """
    if not POINT_NAME.fullmatch(name):
        raise UsageError(
            "--name takes up to 64 letters, digits, -, _ and ., without .json at the end, not "
            f"{name!r}"
        )
    try:
        float(name)
    except ValueError:
        pass
    else:
        raise UsageError(f"--name {name} would be taken for a threshold: choose one with letters")
    if name in bundle.manifest.operating_points:
        raise UsageError(f"--name {name} is one of the bundle's own: choose another")
    if TAKEN_NAME.fullmatch(name):
        raise UsageError(f"--name {name} means a policy or the unsplit network: choose another")


def check_out(out: Path) -> None:
    """Refuse a file that `run --policy` would not take for one, or that cannot be written.

    Raises:
        UsageError: with the name.
    """
    if out.suffix != ".json":
        raise UsageError(f"--out takes a file that ends in .json, not {out}")
    files.make_folder(out.parent)
    files.check_place(out)
    files.check_replaces(out, "operating point", lambda head: POINT.search(head) is not None)


def keep_point(
    found: TunedPoint, out: Path | None, say: Callable[[str], object]
) -> str | Path | None:
    """Store an operating point under its name on this device, and in the file `out`.

    What cannot be written is only said: the figures are worth more than their record.

    Returns:
        What `run --policy` takes for it: the name, or else the file; None when there is neither.
    """
    stored: str | Path | None = None
    if out is not None:
        try:
            files.write_json(out, found)
            stored = out
        except UsageError as error:
            say(str(error))
    try:
        write_state(state_folder(found.bundle, POINTS), found.name, found)
        stored = found.name
    except UsageError as error:
        say(f"{found.name} is not kept on this device: {error}")
    return stored


def all_points(bundle: Bundle) -> dict[str, OperatingPoint]:
    """Return the bundle's own operating points, then those stored on this device, by name."""
    kept = {name: found.point for name, found in kept_points(bundle).items()}
    return bundle.manifest.operating_points | kept


def stored_names(bundle: Bundle) -> list[str]:
    """Return the names under which something was stored, be it damaged or of another mate-edge."""
    folder = state_folder(bundle.id, POINTS)
    if not os.path.isdir(folder):  # so it is, too, where the folder above may not be searched
        return []
    names = sorted(path.stem for path in folder.glob("*.json"))
    return [name for name in names if POINT_NAME.fullmatch(name) and not TAKEN_NAME.fullmatch(name)]


def kept_points(bundle: Bundle) -> dict[str, TunedPoint]:
    """Return the operating points of this bundle that were stored on this device, by name."""
    found = {name: kept_point(bundle, name) for name in stored_names(bundle)}
    return {name: point for name, point in found.items() if point is not None}


def remove_point(bundle: Bundle, name: str) -> None:
    """Forget what was stored under a name.

    Raises:
        UsageError: nothing was, or it cannot be removed.
    """
    names = stored_names(bundle)
    if not names:
        raise UsageError(f"nothing is stored on this device for {bundle.folder}")
    look_up("operating point", name, dict.fromkeys(names))
    path = state_folder(bundle.id, POINTS) / f"{name}.json"
    with files.write_errors(path):
        path.unlink(missing_ok=True)


def kept_point(bundle: Bundle, name: str) -> TunedPoint | None:
    """Return the point of that name, or None when it is absent, damaged or another bundle's."""
    found = read_state(state_folder(bundle.id, POINTS), name, TunedPoint)
    if found is None or (found.schema, found.bundle) != (SCHEMA, bundle.id):
        return None
    point, num_exits = found.point, len(bundle.manifest.exits)
    try:
        make_policy(point.policy, point.parameters)
    except UsageError:
        return None
    lengths = len(point.parameters["temperatures"]), len(point.val_exit_shares)
    return found if lengths == (num_exits, num_exits) else None


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
