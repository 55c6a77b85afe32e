"""From ONNX to an engine's bytes, with TensorRT or TensorRT for RTX, through Polygraphy's loaders.

Networks are strongly typed: precision lives in the ONNX, and nothing here changes it. What the
parser refuses fails the build, with its node and reason.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mate_edge.errors import EngineError, UsageError
from mate_edge.runtime.cuda import INSTALL
from mate_edge.runtime.tensorrt_library import Library
from mate_edge.warn import warn

RTX_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"
SILENT = 100
"""Above every severity that Polygraphy logs: what matters is in the errors."""
STRONGLY_TYPED_UNTIL = 11
"""The major version of TensorRT from which on every network is strongly typed."""

WORKSPACE_BYTES = 2**30
"""What TensorRT may use beside weights and features, while it tries kernels and afterwards.

Without a limit it tries those that want all of the device's memory, which on a Jetson is the CPU's.
"""

Progress = Callable[[float], None]
"""Takes the share that is done, 0 to 1."""


def compile_onnx(
    library: Library,
    model: bytes,
    what: str,
    max_batch: int,
    capability: tuple[int, int],
    progress: Progress,
) -> bytes:
    """Compile a model for batches from 1 to `max_batch`, fastest at 1.

    Args:
        library: that compiles.
        model: ONNX.
        what: how errors call it.
        max_batch: of the inputs whose first axis is dynamic.
        capability: the GPU's; the library has to be one that can build ahead of time, unless it is
            this machine's.
        progress: is told how far it is.

    Raises:
        UsageError: the library does not build for this compute capability.
        EngineError: the library refuses the model or cannot build it, or Polygraphy is missing.
        KeyboardInterrupt: Ctrl-C, as soon as the library has stopped.
    """
    loaders, config_loader = _polygraphy(library)
    options = _options(library, capability)
    library.errors()
    monitor = _make_monitor(library.module, progress)
    polygraphy_log = import_module("polygraphy.logger").G_LOGGER
    failure = import_module("polygraphy.exception").PolygraphyException
    plan, reason = None, ""
    with _ctrl_c_goes_to(monitor):
        builder, network, parser = _parse(library, model, what)
        profile = _profile(loaders, network, max_batch)
        make = config_loader(profiles=[profile], progress_monitor=monitor, **options)

        def config(builder: Any, network: Any) -> Any:
            made = make(builder, network)
            if library.kind.ahead_of_time:  # or it may allocate in a graph's recording
                made.set_flag(library.module.BuilderFlag.REQUIRE_USER_ALLOCATION)
            return made

        try:
            with polygraphy_log.verbosity(SILENT):
                plan = loaders.EngineBytesFromNetwork((builder, network, parser), config=config)()
        except failure as error:
            reason = " ".join(str(error).split())
    if monitor.stopped_by is not None:
        library.errors()
        raise monitor.stopped_by
    said = library.errors()
    if plan is None or (said and library.kind.ahead_of_time):
        raise EngineError(f"{library.title} cannot build {what}: {said or reason}")
    if said:  # TensorRT tries kernels on the device, and logs those that do not work as errors
        warn(f"{library.title} built {what}, and said: {said:.300}")
    return bytes(plan)


def _options(library: Library, capability: tuple[int, int]) -> dict[str, Any]:
    """Return what Polygraphy would else decide otherwise than NVIDIA's own tools.

    Raises:
        UsageError: the library does not build for this compute capability.
    """
    trt = library.module
    options: dict[str, Any] = {"profiling_verbosity": trt.ProfilingVerbosity.LAYER_NAMES_ONLY}
    if library.kind.ahead_of_time:
        check_capability(library, capability)
        return {**options, "compute_capabilities": [capability]}
    limits = {trt.MemoryPoolType.WORKSPACE: WORKSPACE_BYTES}
    return {**options, "tf32": True, "memory_pool_limits": limits}


def check_capability(library: Library, capability: tuple[int, int]) -> None:
    """Refuse a compute capability that a library cannot build for.

    Raises:
        UsageError: with those that it can.
    """
    found = [name for name in library.module.ComputeCapability.__members__ if name[:2] == "SM"]
    if f"SM{capability[0]}{capability[1]}" not in found:
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in found)
        raise UsageError(
            f"{library.title} does not build for compute capability "
            f"{capability[0]}.{capability[1]}: choose from {known}"
        )


def _polygraphy(library: Library) -> tuple[Any, Any]:
    """Import Polygraphy for a library; return its loaders and its maker of configurations."""
    rtx = library.name == "tensorrt_rtx"
    os.environ[RTX_VARIABLE] = "1" if rtx else "0"  # it looks when it is imported
    try:
        settings: Any = import_module("polygraphy.config")
        if "polygraphy.backend.trt" not in sys.modules:
            settings.USE_TENSORRT_RTX = rtx
        loaders = import_module("polygraphy.backend.trt")
        kind = "polygraphy.backend.tensorrt_rtx" if rtx else "polygraphy.backend.trt"
        maker = import_module(kind)
    except ModuleNotFoundError as error:
        raise EngineError(f"{error.name} is missing, which builds engines: {INSTALL}") from None
    if rtx != settings.USE_TENSORRT_RTX:
        raise EngineError(
            f"Polygraphy was imported in this process for the other TensorRT: set {RTX_VARIABLE}="
            f"{int(rtx)} before it is, or build in a process of its own"
        )
    return loaders, maker.CreateConfigRTX if rtx else maker.CreateConfig


def _parse(library: Library, model: bytes, what: str) -> tuple[Any, Any, Any]:
    trt = library.module
    flags = 0
    if library.name == "tensorrt" and library.major < STRONGLY_TYPED_UNTIL:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    builder = trt.Builder(library.logger)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, library.logger)
    parsed = parser.parse(model)
    reasons = [_explain(parser.get_error(number)) for number in range(parser.num_errors)]
    if not parsed or reasons:
        logged = library.errors()
        raise EngineError(f"{library.title} refuses {what}: {'; '.join(reasons) or logged}")
    return builder, network, parser


def _explain(error: Any) -> str:
    """Return one of the parser's errors with the node that it is about."""
    name, operator = error.node_name(), error.node_operator()
    node = f"node {name} ({operator}): " if operator else ""
    return node + " ".join(error.desc().split())


def _profile(loaders: Any, network: Any, max_batch: int) -> Any:
    """Return the range of shapes; only the batch axis is free."""
    profile = loaders.Profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        dynamic, *rest = tuple(tensor.shape)
        if dynamic == -1:
            one = (1, *rest)
            profile.add(tensor.name, min=one, opt=one, max=(max_batch, *rest))
    return profile


@contextmanager
def _ctrl_c_goes_to(monitor: Any) -> Iterator[None]:
    """Let Ctrl-C stop the build through its monitor.

    Python would raise it in whatever the library calls back, the logger too, where it is dropped.
    """
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(earlier):
        yield  # signals are the main thread's, and who ignores them goes on to do so
        return

    def stop(number: int, frame: Any) -> None:
        monitor.stopped_by = KeyboardInterrupt()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _make_monitor(trt: Any, progress: Progress) -> Any:
    """Return a monitor that turns nested phases into one share; the library calls it back."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self.shown = 0.0
            self.phases: dict[str, list[int]] = {}  # outermost first: steps done, steps in all

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = [0, max(num_steps, 1)]

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self.phases:
                    self.phases[phase_name][0] = step + 1
                self.shown = max(self.shown, self.share())  # phases are not always nested
                progress(self.shown)
            except BaseException as error:  # it must not pass through the library
                self.stopped_by = error
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def share(self) -> float:
            found, width = 0.0, 1.0
            for done, steps in self.phases.values():
                found += width * min(done / steps, 1.0)
                width /= steps
            return min(found, 1.0)

    return Monitor()
