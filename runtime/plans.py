"""Built engines on this device's disk, each under the full key of what it was built from and for.

A plan file is code: it is only ever read from the device state, never out of a bundle, and only
when its key is the one that is asked for and its bytes are the ones that were written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from mate_edge import files
from mate_edge.bundle import Bundle
from mate_edge.errors import BundleError, EngineError
from mate_edge.runtime.cuda.cuda import Device
from mate_edge.runtime.frames import GRAPH
from mate_edge.runtime.state import read_state, state_errors, state_folder, write_state
from mate_edge.runtime.tensorrt_library import Library

FRAME = "frame"
"""The name of the engine that preprocesses frames; segments are named by their SHA-256."""


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is tied to.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        version: of it.
        cuda: what the driver supports; empty for `tensorrt_rtx`, which does not depend on it.
        gpu: its name; empty for `tensorrt_rtx`.
        multiprocessors: of it; 0 for `tensorrt_rtx`. Every Orin has the same name, and an engine's
            kernels were chosen for so many.
        compute_capability: such as `8.7`.
    """

    library: str
    version: str
    cuda: str
    gpu: str
    multiprocessors: int
    compute_capability: str

    @property
    def device_key(self) -> str:
        """The name of the folder of the device state."""
        kind = "sm" + self.compute_capability.replace(".", "")
        cuda = f"cuda{self.cuda}" if self.cuda else ""
        many = f"{self.multiprocessors}mp" if self.multiprocessors else ""
        return "-".join(filter(None, (self.library, self.version, cuda, self.gpu, many, kind)))


class FrameFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The frames that an engine preprocesses; sizes in pixels, `graph` as in `frames`."""

    width: int
    height: int
    color: Literal["rgb", "bgr"]
    graph: int = GRAPH


class EngineRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of the build.

    Attributes:
        max_batch: batches from 1 to this.
        frame: of the engine that preprocesses; None for a segment.
    """

    max_batch: int
    frame: FrameFormat | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine depends on: an engine of another key is never loaded.

    Attributes:
        bundle: its id.
        model: the SHA-256 of the ONNX bytes.
        platform: what it was built for.
        recipe: how.
    """

    bundle: str
    model: str
    platform: Platform
    recipe: EngineRecipe


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The record beside an engine file: its key, and size and SHA-256 of its bytes."""

    key: Key
    bytes: int
    sha256: str


def device_platform(library: Library, device: Device) -> Platform:
    """Return the platform of this machine's GPU."""
    if library.kind.ahead_of_time:
        return ahead_platform(library, device.compute_capability)
    return Platform(
        library=library.name,
        version=library.version,
        cuda=device.driver_version,
        gpu=device.name,
        multiprocessors=device.multiprocessors,
        compute_capability=".".join(map(str, device.compute_capability)),
    )


def ahead_platform(library: Library, capability: tuple[int, int]) -> Platform:
    """Return the platform of any GPU of a compute capability, for a library that allows it."""
    return Platform(
        library=library.name,
        version=library.version,
        cuda="",
        gpu="",
        multiprocessors=0,
        compute_capability=".".join(map(str, capability)),
    )


class Plans:
    """The engines of one bundle for one platform.

    Args:
        bundle: whose id they carry.
        platform: that they are tied to.
    """

    def __init__(self, bundle: Bundle, platform: Platform) -> None:
        self.bundle, self.platform = bundle, platform
        self.folder = state_folder(bundle.id, platform.device_key)

    def path(self, name: str) -> Path:
        """Return where the engine called `name` lies."""
        return self.folder / f"{name}.engine"

    def find(self, name: str) -> Plan | None:
        """Return the record of an engine, or None when there is none of this bundle and platform.

        The bytes are not looked at.
        """
        plan = read_state(self.folder, name, Plan)
        if plan is None or (plan.key.bundle, plan.key.platform) != (self.bundle.id, self.platform):
            return None
        return plan if name in (FRAME, segment_name(plan.key.model)) else None

    def asked(self, name: str) -> EngineRecipe | None:
        """Return how an engine was built here, else last on a GPU like this; None when never.

        Another version of the library or of CUDA, or another power mode, is no reason to forget it.
        """
        here = self.find(name)
        if here is not None:
            return here.key.recipe
        records = self.folder.parent.glob(f"*/{name}.json")
        for record in sorted(records, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            plan = read_state(record.parent, name, Plan)
            if plan is not None and self._is_for_such_a_gpu(plan.key):
                return plan.key.recipe
        return None

    def _is_for_such_a_gpu(self, key: Key) -> bool:
        mine, other = self.platform, key.platform
        return (key.bundle, other.library, other.compute_capability) == (
            self.bundle.id,
            mine.library,
            mine.compute_capability,
        )

    def read(self, name: str) -> tuple[Plan, bytes] | None:
        """Return an engine's record and bytes, or None when it is absent, foreign or corrupt."""
        plan = self.find(name)
        if plan is None:
            return None
        try:
            data = files.read_bytes(self.path(name), max(plan.bytes, 0), EngineError)
        except EngineError:
            return None
        right = len(data) == plan.bytes and files.sha256(data) == plan.sha256
        return (plan, data) if right else None

    def write(self, name: str, model_sha256: str, recipe: EngineRecipe, data: bytes) -> Plan:
        """Write an engine, then its record: until that is there, the engine does not count.

        Raises:
            UsageError: the folder cannot be written.
        """
        key = Key(bundle=self.bundle.id, model=model_sha256, platform=self.platform, recipe=recipe)
        plan = Plan(key=key, bytes=len(data), sha256=files.sha256(data))
        with state_errors():
            files.make_folder(self.folder)
            files.write_whole(self.path(name), data)
        write_state(self.folder, name, plan)
        return plan


def segment_name(sha256: str) -> str:
    """Return the name of a segment's engine.

    Raises:
        BundleError: no SHA-256; it goes into a file name.
    """
    if re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
        raise BundleError(f"{sha256!r} in the manifest is no SHA-256; copy the bundle again")
    return sha256
