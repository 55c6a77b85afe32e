"""The bundle: the folder `NAME.mate` that a device needs. It never changes after export.

`manifest.json` (this schema), `segments/1.onnx` ..., `unsplit.onnx`, `golden.npz`,
`calibration.npz`. The bundle's id is the SHA-256 of its manifest, and the manifest holds the
SHA-256 and the size of every other file; the bytes that are checked are the bytes that are used.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mate_edge import files
from mate_edge.decide.policy import COLDEST, HOTTEST
from mate_edge.errors import BundleError
from mate_edge.images import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
BUNDLES = Path("bundles")
MANIFEST = files.MANIFEST
UNSPLIT_OUTPUT = "logits"
MAX_BATCH = 1024
POINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(?<!\.json)")
"""What an operating point may be called: it may become a file's name, and is told from a file."""
NUMBERED_POLICY = re.compile(r"(exit|patience)-(\d{1,4})")
"""`exit-2` always leaves there; `patience-2` leaves after two equal answers in a row."""
TAKEN_NAME = re.compile(rf"deepest|unsplit|{NUMBERED_POLICY.pattern}")
"""These mean a policy already, or the unsplit network that `bench` compares with."""
Precision = Literal["fp32", "fp16", "int8"]


MAX_ARRAYS_BYTES = 256 * 2**20
"""Of images and logits, unpacked: export keeps 20 MB of validation logits at most."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle, by its path inside it."""

    path: str
    bytes: int
    sha256: str


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of a segment; `shape` is without the leading batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16"]

    def __post_init__(self) -> None:
        if not all(size > 0 for size in self.shape):
            raise ValueError(f"the shape of {self.name} must be positive, not {self.shape}")

    @property
    def nbytes(self) -> int:
        """The size of one sample."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """The backbone between two exits and the head of the exit that it ends in.

    `outputs` are the features for the next segment (none after the last one), then the logits.
    """

    file: File
    input: Tensor
    outputs: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError("a segment needs an output")


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """What one exit costs and how good it is. FLOPs: fvcore's, one multiply-add = 1."""

    flops: int
    """Of its segment alone, at batch 1."""
    cumulative_flops: int
    """Of all segments up to this one."""
    parameters: int
    border_bytes: int
    """What the segment hands to the next one, at batch 1; 0 after the last."""
    val_accuracy: float
    """Of the files in this bundle, on the validation images."""
    fp32_val_accuracy: float | None = None
    """Before the precision was lowered; None when it was not."""
    test_accuracy: float | None
    """Of the network in fp32; None when the precision was lowered: the test images stay unused."""
    temperature: float

    def __post_init__(self) -> None:
        if min(self.flops, self.parameters, self.border_bytes) < 0 or self.cumulative_flops < 1:
            raise ValueError("FLOPs, parameters and bytes cannot be negative, nor all FLOPs 0")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise ValueError(
                f"the temperature must lie between {COLDEST:g} and {HOTTEST:g}, not "
                f"{self.temperature}"
            )


class Guarantee(msgspec.Struct, frozen=True, kw_only=True):
    """What thresholds promise on images like those that they were certified on.

    Attributes:
        loss: which answers count: `worse` are wrong where the last exit is right, `differs` are
            other ones than the last exit's.
        epsilon: the bound on the share of such answers.
        delta: the share is at most `epsilon` with probability `1 - delta` over the samples;
            None: only its mean over such samples is (conformal risk control).
        n: samples that certified, none of which made the path that the thresholds are from.
        losses: how many of them had the loss.
        max_ms: the deadline that was certified together with the thresholds, and every longer one
            with it; None: a deadline voids the guarantee.
        device: with `max_ms`: the fingerprint of the device whose latencies were used.
        halted: with `max_ms`: how many of the n samples the deadline ended before the policy, in
            the longest rounds that those measured leave in doubt.
        rounds: with `max_ms`: how many rounds were measured.
        measured: with `max_ms`: when they were, by which those of another time are told.
        effect: with `max_ms`: how many rounds one slow segment ended, see `Calibration`.
    """

    loss: Literal["worse", "differs"]
    epsilon: float
    delta: float | None
    n: int
    losses: int
    max_ms: float | None = None
    device: dict[str, Any] | None = None
    halted: int | None = None
    rounds: int | None = None
    measured: str | None = None
    effect: float = 1.0

    def __post_init__(self) -> None:
        for level in (self.epsilon, self.delta):
            if level is not None and not 0 < level < 1:
                raise ValueError(f"a level of a guarantee must lie between 0 and 1, not {level}")
        if not (0 <= self.losses <= self.n and self.n > 0):
            raise ValueError(f"{self.losses} losses of {self.n} samples make no sense")
        if self.max_ms is not None:
            if not 0 < self.max_ms < float("inf"):
                raise ValueError(f"the deadline must be positive, not {self.max_ms}")
            if self.device is None or not 0 <= (self.halted or 0) <= self.n:
                raise ValueError("a guarantee under a deadline names its device")
            if self.rounds is None or self.rounds < 1:
                raise ValueError("a guarantee under a deadline counts its measured rounds")
            if not 1 <= self.effect < float("inf"):
                raise ValueError(f"one slow segment ends one round or more, not {self.effect}")


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A policy with its parameters, and what it did on validation images.

    Of a bundle's own point these are all that chose it. Of a tuned one they are the half held back,
    of the images that it was tuned on, and under the deadline that it was certified with, if any.
    """

    policy: str
    parameters: dict[str, Any]
    val_accuracy: float
    val_mean_flops: float
    val_exit_shares: tuple[float, ...]
    guarantee: Guarantee | None = None

    def __post_init__(self) -> None:
        if not (self.val_mean_flops > 0 and all(0 <= s <= 1 for s in self.val_exit_shares)):
            raise ValueError("mean FLOPs are above 0, and exits' shares between 0 and 1")


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """What a device makes of the segments.

    Attributes:
        engine: a name in the runtime's `ENGINES`.
        max_batch: the largest batch that a built engine takes.
    """

    engine: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"] = "onnxruntime"
    max_batch: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch must lie between 1 and {MAX_BATCH}, not {self.max_batch}")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`."""

    schema: int = SCHEMA
    name: str
    target: str
    precision: Precision
    build: Build = Build()
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    segments: tuple[Segment, ...]
    exits: tuple[Exit, ...]
    operating_points: dict[str, OperatingPoint]
    unsplit: File
    unsplit_flops: int
    golden: File
    calibration: File
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if not 1 <= len(self.segments) == len(self.exits):
            raise ValueError("there must be one segment for each exit")
        if len(self.classes) < 2:
            raise ValueError("there must be two classes or more")
        if self.unsplit_flops < 1 or list(self.cumulative_flops) != sorted(self.cumulative_flops):
            raise ValueError(
                "cumulative FLOPs must rise from exit to exit, and the unsplit be some"
            )
        for name in self.operating_points:
            if TAKEN_NAME.fullmatch(name) or not POINT_NAME.fullmatch(name):
                raise ValueError(f"no operating point may be called {name!r}")
        pre, classes = self.preprocessing, (len(self.classes),)
        expected: tuple[int, ...] = (pre.channels, pre.size, pre.size)
        dtype = "float32"
        for k, segment in enumerate(self.segments, start=1):
            if segment.input.shape != expected or segment.outputs[-1].shape != classes:
                raise ValueError(f"the shapes of segment {k} do not fit the others")
            if segment.input.dtype != dtype:  # it is read where the one before wrote it
                raise ValueError(f"the input of segment {k} must be {dtype}")
            if len(segment.outputs) != (1 if k == len(self.segments) else 2):
                raise ValueError(f"segment {k} has {len(segment.outputs)} outputs")
            expected, dtype = segment.outputs[0].shape, segment.outputs[0].dtype

    @property
    def cumulative_flops(self) -> tuple[int, ...]:
        """[K], of all segments up to each exit."""
        return tuple(exit_.cumulative_flops for exit_ in self.exits)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """[K], what each exit's logits are divided by."""
        return tuple(exit_.temperature for exit_ in self.exits)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its manifest and its id."""

    folder: Path
    manifest: Manifest
    id: str

    def unsplit(self) -> Bundle:
        """Return the unsplit network as a bundle of one segment, to be compared with the exits."""
        last, segments = self.manifest.exits[-1], self.manifest.segments
        flops = self.manifest.unsplit_flops
        manifest = msgspec.structs.replace(
            self.manifest,
            segments=(
                Segment(
                    file=self.manifest.unsplit,
                    input=segments[0].input,
                    outputs=(
                        Tensor(name=UNSPLIT_OUTPUT, shape=(len(self.manifest.classes),),
                               dtype="float32"),
                    ),
                ),
            ),
            exits=(msgspec.structs.replace(last, flops=flops, cumulative_flops=flops),),
            operating_points={},
        )  # fmt: skip
        return Bundle(self.folder, manifest, self.id)

    def read(self, file: File) -> bytes:
        """Return the bytes of a file, after checking path, size and SHA-256.

        Raises:
            BundleError: a path that leaves the folder, a missing or an altered file.
        """
        path = files.inside(self.folder, file.path, BundleError)
        if not 0 <= file.bytes <= files.MAX_FILE_BYTES:
            raise BundleError(f"{path} cannot have {file.bytes} bytes: the manifest is damaged")
        data = files.read_bytes(path, file.bytes, BundleError)
        if len(data) != file.bytes:
            raise BundleError(
                f"{path} is truncated: {len(data)} of {file.bytes} bytes; copy the bundle again"
            )
        if files.sha256(data) != file.sha256:
            raise BundleError(f"{path} was altered (SHA-256 differs); copy the bundle again")
        return data

    def check_files(self) -> None:
        """Read every file of the bundle once.

        Raises:
            BundleError: as `read`.
        """
        manifest = self.manifest
        models = [segment.file for segment in manifest.segments]
        for file in (*models, manifest.unsplit, manifest.golden, manifest.calibration):
            self.read(file)

    def arrays(self, file: File) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of `golden.npz` or `calibration.npz`, checked like `read`."""
        path = self.folder / file.path
        return files.bytes_to_arrays(self.read(file), path, BundleError, MAX_ARRAYS_BYTES)


def find_bundle(path: Path | None) -> Path:
    """Return the bundle that the user means.

    That is `path`, or the newest under `bundles/`, or a lone `*.mate` in the working folder.

    Raises:
        BundleError: there is none, or more than one and nothing tells which.
    """
    if path is not None:
        return path
    latest = files.read_latest(BUNDLES)
    if latest is not None:
        return latest
    here = sorted(Path().glob("*.mate"))
    if len(here) == 1:
        return here[0]
    if here:
        raise BundleError(f"{len(here)} bundles are here: choose one, such as --bundle {here[0]}")
    raise BundleError("there is no bundle under bundles/ yet: type mate-edge export, or name one")


def read_bundle(folder: str | Path) -> Bundle:
    """Open a bundle and validate its manifest; the other files are checked when they are read.

    Raises:
        BundleError: missing, damaged, or of a newer schema.
    """
    folder = Path(folder)
    real = files.resolved(folder)
    if real != Path(os.path.abspath(folder)):  # a link, which may lead to another one tomorrow
        folder = real
    path = folder / MANIFEST
    try:
        there = folder.is_dir()
    except OSError as error:
        raise BundleError(f"cannot use {folder!s:.200}: {error.strerror}") from None
    if not there:
        raise BundleError(f"there is no bundle folder {folder}: check the path")
    if not path.exists() and (folder / files.RUN).is_file():
        raise BundleError(f"{folder} is a run, no bundle: type mate-edge export {folder} first")
    data = files.read_bytes(path, files.MAX_JSON_BYTES, BundleError)
    manifest = files.decode_json(data, Manifest, path, SCHEMA, BundleError)
    return Bundle(folder, manifest, files.sha256(data))


def add_file(folder: Path, path: str, data: bytes) -> File:
    """Write one file of a bundle in the making and return its entry for the manifest."""
    target = folder / path
    with files.write_errors(target):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return File(path=path, bytes=len(data), sha256=files.sha256(data))
