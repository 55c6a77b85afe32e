"""Segments that hand over features in the layout that ONNX Runtime computes in.

On a CPU it computes convolutions on blocks of 4, 8 or 16 channels: [n, C / block, H, W, block]
instead of [n, C, H, W]. A session takes and returns the latter, so two segments turn the layout and
turn it back at the border between them. `mate-edge build` leaves both out (`runtime/join.py`) and
keeps the segments in the device state, for this version of ONNX Runtime and this size of a block.
"""

from __future__ import annotations

import base64
import platform
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mate_edge import files
from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, UsageError
from mate_edge.runtime.state import read_state, state_folder

STATE = "blocked"
REVISION = 2
"""Of what `join` does; what an earlier one made is made anew."""
BLOCKS = (4, 8, 16, 32)
PROBED = 2 * max(BLOCKS)
PROBE = base64.b64decode(
    "CAg6gAEKMwoGaW1hZ2VzEgZ0dXJuZWQiDFJlb3JkZXJJbnB1dDoTY29tLm1pY3Jvc29mdC5uY2h3YxIFcHJvYmVaIAoG"
    "aW1hZ2VzEhYKFAgBEhAKAggBCgIIQAoCCAEKAggCYiAKBnR1cm5lZBIWChQIARIQCgIIAQoCCEAKAggBCgIIAkIXChNj"
    "b20ubWljcm9zb2Z0Lm5jaHdjEAFCBAoAEBI="
)
"""An ONNX model of one operator, ReorderInput, that turns [1, `PROBED`, 1, 2] into blocks."""


class BlockedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A file `blocked-K.onnx`.

    Attributes:
        bytes: its size.
        sha256: of its contents.
        in_place: an output of the model that is to be given the memory of the features, which are
            added to it; None when there is none.
    """

    bytes: int
    sha256: str
    in_place: str | None


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """`blocked.json`: the segments of a bundle for ONNX Runtime on a CPU with such blocks.

    Attributes:
        revision: see `REVISION`.
        bundle_id: of the bundle that they were made from.
        segments: K of them, or none when no border can be blocked.
        borders: [K - 1], whether what goes from segment k to k + 1 is blocked.
    """

    revision: int = REVISION
    bundle_id: str
    segments: tuple[BlockedSegment, ...]
    borders: tuple[bool, ...]


@cache
def channels_of_block() -> int:
    """Return how many channels ONNX Runtime takes together on this CPU; 0 when it does not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # where there are no blocks, the model is refused
    options.intra_op_num_threads = 1
    images = np.arange(2 * PROBED, dtype=np.float32).reshape(1, PROBED, 1, 2)
    try:
        session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
        (turned,) = session.run(None, {"images": images})
    except Exception:  # ONNX Runtime's own exception types share no base class
        return 0
    same = (block for block in BLOCKS if np.array_equal(turned, to_blocks(images, block)))
    return next(same, 0)


def blocked_folder(bundle: Bundle) -> Path:
    """Return the folder of the device state in which they are kept."""
    version, machine = onnxruntime.__version__, platform.machine()
    return state_folder(bundle.id, f"onnxruntime-{version}-{machine}-{channels_of_block()}c")


def blocked_path(bundle: Bundle, k: int) -> Path:
    """Return the file of segment k."""
    return blocked_folder(bundle) / f"{STATE}-{k}.onnx"


def read_blocked(bundle: Bundle) -> Blocked | None:
    """Return what `mate-edge build` kept for such a CPU; None when it did not run here."""
    try:
        folder = blocked_folder(bundle)
    except UsageError:  # of a user without a home
        return None
    found = read_state(folder, STATE, Blocked)
    if found is None or (found.revision, found.bundle_id) != (REVISION, bundle.id):
        return None
    num_segments = len(bundle.manifest.segments)
    if len(found.segments) not in (0, num_segments) or len(found.borders) != num_segments - 1:
        return None
    files_ = (blocked_path(bundle, k) for k in range(1, len(found.segments) + 1))
    return found if all(path.is_file() for path in files_) else None


def read_segment(bundle: Bundle, blocked: Blocked, k: int) -> bytes | None:
    """Return the ONNX bytes of segment k, or None when they are absent or damaged."""
    kept = blocked.segments[k - 1]
    try:
        data = files.read_bytes(blocked_path(bundle, k), max(kept.bytes, 0), EngineError)
    except EngineError:
        return None
    return data if files.sha256(data) == kept.sha256 else None


def to_blocks(features: NDArray[Any], block: int) -> NDArray[Any]:
    """Return features [n, C, H, W] with `block` channels together, in the same shape."""
    n, channels, height, width = features.shape
    parts = features.reshape(n, channels // block, block, height, width)
    return np.ascontiguousarray(parts.transpose(0, 1, 3, 4, 2)).reshape(features.shape)


def from_blocks(features: NDArray[Any], block: int) -> NDArray[Any]:
    """Undo `to_blocks`."""
    n, channels, height, width = features.shape
    parts = features.reshape(n, channels // block, height, width, block)
    return np.ascontiguousarray(parts.transpose(0, 1, 4, 2, 3)).reshape(features.shape)
