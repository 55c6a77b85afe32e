"""Segments that hand over features in the layout that ONNX Runtime computes in.

On a CPU it computes convolutions on blocks of 4, 8 or 16 channels: [n, C / block, H, W, block]
instead of [n, C, H, W]. A session takes and returns the latter, so two segments turn the layout and
turn it back at the border between them. `mate-edge build` leaves both out (`runtime/join.py`) and
keeps the segments in the device state, for this version of ONNX Runtime and this size of a block.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mate_edge import files
from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError
from mate_edge.runtime.state import read_state, state_folder

STATE = "blocked"
BLOCKS = (4, 8, 16, 32)
PROBED = 2 * max(BLOCKS)
"""The channels of the probe, [1, `PROBED`, 1, 2]."""


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
    """`blocked.json`: the segments of a bundle for ONNX Runtime on this CPU.

    Attributes:
        bundle_id: of the bundle that they were made from.
        segments: K of them, or none when no border can be blocked.
        borders: [K - 1], whether what goes from segment k to k + 1 is blocked.
        block: channels in a block; None where ONNX Runtime has no blocks.
        probe: an ONNX model that turns a layout; it tells the block of a CPU.
    """

    bundle_id: str
    segments: tuple[BlockedSegment, ...]
    borders: tuple[bool, ...]
    block: int | None
    probe: bytes

    def __post_init__(self) -> None:
        if self.segments and len(self.borders) != len(self.segments) - 1:
            raise ValueError("K segments have K - 1 borders")
        if self.segments and self.block not in BLOCKS:
            raise ValueError(f"a block has one of {BLOCKS} channels")


def blocked_folder(bundle: Bundle) -> Path:
    """Return the folder of the device state in which they are kept."""
    return state_folder(bundle.id, f"onnxruntime-{onnxruntime.__version__}-{platform.machine()}")


def blocked_path(bundle: Bundle, k: int) -> Path:
    """Return the file of segment k."""
    return blocked_folder(bundle) / f"{STATE}-{k}.onnx"


def read_blocked(bundle: Bundle) -> Blocked | None:
    """Return what `mate-edge build` kept for this CPU; None when it did not run here."""
    found = read_state(blocked_folder(bundle), STATE, Blocked)
    if found is None or found.bundle_id != bundle.id:
        return None
    if found.segments and len(found.segments) != len(bundle.manifest.segments):
        return None
    if not all(blocked_path(bundle, k).is_file() for k in range(1, len(found.segments) + 1)):
        return None
    return found if block_of(found.probe) == found.block else None


def read_segment(bundle: Bundle, blocked: Blocked, k: int) -> bytes | None:
    """Return the ONNX bytes of segment k, or None when they are absent or damaged."""
    kept = blocked.segments[k - 1]
    try:
        data = files.read_bytes(blocked_path(bundle, k), max(kept.bytes, 0), EngineError)
    except EngineError:
        return None
    return data if files.sha256(data) == kept.sha256 else None


def block_of(probe: bytes) -> int | None:
    """Return the channels in a block on this CPU; None when ONNX Runtime has no blocks here."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # where there are no blocks, the model is refused
    options.intra_op_num_threads = 1
    pixels = np.arange(2 * PROBED, dtype=np.float32).reshape(1, PROBED, 1, 2)
    try:
        session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
        (turned,) = session.run(None, {session.get_inputs()[0].name: pixels})
    except Exception:  # ONNX Runtime's own exception types share no base class
        return None
    same = (block for block in BLOCKS if np.array_equal(turned, to_blocks(pixels, block)))
    return next(same, None)


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
