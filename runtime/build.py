"""`mate-edge build`: make the engines of a bundle, on this device or ahead of time.

Engines go to the device state, each under its full key; what is there already stays. A bundle only
ever brings ONNX: nothing executable is loaded out of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mate_edge import files
from mate_edge.bundle import MAX_BATCH, Bundle
from mate_edge.errors import EngineError, UsageError
from mate_edge.runtime.compile import Progress, check_capability, compile_onnx
from mate_edge.runtime.cuda import open_cuda
from mate_edge.runtime.engines import installed_engines, make_engine
from mate_edge.runtime.fastest import keep_fastest
from mate_edge.runtime.frames import GRAPH, preprocess_model
from mate_edge.runtime.join import try_blocked
from mate_edge.runtime.plans import (
    FRAME,
    EngineRecipe,
    FrameFormat,
    Plans,
    Platform,
    ahead_platform,
    device_platform,
    segment_name,
)
from mate_edge.runtime.state import building_alone, forget_engines
from mate_edge.runtime.tensorrt_library import KINDS, Library, import_library

Compile = Callable[[Library, bytes, str, int, tuple[int, int], Progress], bytes]


@dataclass(frozen=True)
class Built:
    """One engine that is there now.

    Attributes:
        what: `segment 1 of 3`, `the unsplit network` or `the preprocessing`.
        device_key: what it is for.
        path: of its file.
        bytes: its size.
        seconds: that the build took; 0 when it was there already.
    """

    what: str
    device_key: str
    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True)
class BuildReport:
    """What a build did; empty when the bundle needs none."""

    engines: tuple[Built, ...]

    @property
    def built(self) -> int:
        """How many engines are new."""
        return sum(engine.seconds > 0 for engine in self.engines)


@dataclass(frozen=True)
class _Job:
    """An engine to be there in the end; `model` gives the ONNX bytes when they are needed."""

    name: str
    what: str
    model: Callable[[], bytes]
    recipe: EngineRecipe


def build_engines(
    bundle: Bundle,
    *,
    max_batch: int | None = None,
    capabilities: Sequence[tuple[int, int]] = (),
    frame: FrameFormat | None = None,
    unsplit: bool = True,
    force: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[str, float], None] = lambda what, share: None,
    compiler: Compile = compile_onnx,
) -> BuildReport:
    """Build what is not built yet.

    Args:
        bundle: an opened bundle.
        max_batch: the largest batch; None takes that of the engines that are there, or were
            there before the library or the power mode changed, or the bundle's.
        capabilities: GPUs to build for, for a library that can do so on any machine; without, it
            is this machine's GPU.
        frame: build the preprocessing of such frames, too; None takes those of the engine that is
            there, or was, likewise.
        unsplit: build the unsplit network, too, to compare the segments with.
        force: build what is there already, too.
        say: is given a line for each engine.
        progress: is told how far an engine is, 0 to 1.
        compiler: `compile_onnx`.

    Raises:
        UsageError: options that make no sense for this bundle, or the device state cannot be
            written.
        BundleError: a file of the bundle is missing or altered.
        EngineError: the library cannot be had or refuses a segment, or there is no GPU.
    """
    name = bundle.manifest.build.engine
    if name not in KINDS:
        if capabilities or frame or max_batch is not None:
            raise UsageError(
                f"{bundle.folder} is for {name}, which builds nothing: leave out the options, or "
                "export with --target jetson, cuda or rtx"
            )
        try_blocked(bundle, force, say)
        others = installed_engines(bundle)
        if len(others) > 1:
            keep_fastest(bundle, others, lambda one: make_engine(one, bundle, None, True), say)
        return BuildReport(())
    if max_batch is not None and not 1 <= max_batch <= MAX_BATCH:
        raise UsageError(f"--max-batch must lie between 1 and {MAX_BATCH}, not {max_batch}")
    library = import_library(name)
    done: list[Built] = []
    for platform, capability in _platforms(library, capabilities):
        plans = Plans(bundle, platform)
        with building_alone(plans.folder, say):
            say(f"{library.title} for {platform.device_key}, engines go to {plans.folder}")
            for job in _jobs(plans, max_batch, frame, unsplit):
                engine = _build(library, plans, job, capability, force, say, progress, compiler)
                done.append(engine)
    return BuildReport(tuple(done))


def _platforms(
    library: Library, capabilities: Sequence[tuple[int, int]]
) -> list[tuple[Platform, tuple[int, int]]]:
    if capabilities and not library.kind.ahead_of_time:
        raise UsageError(
            f"{library.kind.title} builds for the GPU of this machine only: leave out "
            "--compute-capability, or export with --target rtx"
        )
    if not capabilities:
        try:
            gpu = open_cuda().device()
        except EngineError as error:
            hint = "; --compute-capability 8.6 builds without" if library.kind.ahead_of_time else ""
            raise EngineError(f"{error}{hint}") from None
        return [(device_platform(library, gpu), gpu.compute_capability)]
    for capability in capabilities:
        check_capability(library, capability)
    return [(ahead_platform(library, pair), pair) for pair in dict.fromkeys(capabilities)]


def _jobs(
    plans: Plans, max_batch: int | None, frame: FrameFormat | None, unsplit: bool
) -> list[_Job]:
    manifest, bundle = plans.bundle.manifest, plans.bundle
    segments = [segment.file for segment in manifest.segments]
    if max_batch is None:
        asked = [plans.asked(segment_name(file.sha256)) for file in segments]
        sizes = [recipe.max_batch for recipe in asked if recipe is not None]
        max_batch = max(sizes, default=manifest.build.max_batch)
    if frame is None and (earlier := plans.asked(FRAME)) is not None and earlier.frame is not None:
        frame = msgspec.structs.replace(earlier.frame, graph=GRAPH)
    named = {f"segment {k} of {len(segments)}": file for k, file in enumerate(segments, start=1)}
    if unsplit:
        named["the unsplit network"] = manifest.unsplit
    recipe = EngineRecipe(max_batch=max_batch)
    jobs = [
        _Job(segment_name(file.sha256), what, lambda file=file: bundle.read(file), recipe)  # type: ignore[misc]
        for what, file in named.items()
    ]
    if frame is not None:
        jobs.append(_frame_job(plans, frame))
    return jobs


def _frame_job(plans: Plans, frame: FrameFormat) -> _Job:
    preprocessing = plans.bundle.manifest.preprocessing
    model = preprocess_model(preprocessing, frame.width, frame.height, color=frame.color)
    return _Job(FRAME, "the preprocessing", lambda: model, EngineRecipe(max_batch=1, frame=frame))


def _build(
    library: Library,
    plans: Plans,
    job: _Job,
    capability: tuple[int, int],
    force: bool,
    say: Callable[[str], None],
    progress: Callable[[str, float], None],
    compiler: Compile,
) -> Built:
    model = job.model()
    sha256 = files.sha256(model)
    there = None if force else plans.read(job.name)
    if there is not None and (there[0].key.model, there[0].key.recipe) == (sha256, job.recipe):
        say(f"{job.what}: built already")
        size, seconds = there[0].bytes, 0.0
    else:
        began = time.perf_counter()
        what = f"{job.what} of {plans.bundle.folder}"

        def show(share: float) -> None:
            progress(job.what, share)

        data = compiler(library, model, what, job.recipe.max_batch, capability, show)
        size = plans.write(job.name, sha256, job.recipe, data).bytes
        forget_engines(plans.folder)
        seconds = time.perf_counter() - began
        say(f"{job.what}: built in {seconds:.1f} s, {size / 2**20:.1f} MiB")
    return Built(job.what, plans.platform.device_key, plans.path(job.name), size, seconds)


def parse_capabilities(text: str | None) -> list[tuple[int, int]]:
    """Return `8.6,8.9` as pairs.

    Raises:
        UsageError: something else.
    """
    found = []
    for part in text.split(",") if text is not None else []:
        match = re.fullmatch(r"\s*(\d{1,2})\.(\d)\s*", part)
        if match is None:
            raise UsageError(f"--compute-capability takes numbers such as 8.6,8.9, not {text!r}")
        found.append((int(match[1]), int(match[2])))
    return found
