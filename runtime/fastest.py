"""Which engine is the fastest for a bundle on this CPU: `build` measures and keeps it for `run`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, UsageError
from mate_edge.extras import installed_versions
from mate_edge.machine import cpu_count
from mate_edge.runtime.policy import DEFAULT_POLICY
from mate_edge.runtime.state import read_state, state_folder, write_state

if TYPE_CHECKING:
    from mate_edge.runtime.engines import Say
    from mate_edge.runtime.engines.engine import Engine

STATE = "fastest"
WARM_UP_ROUNDS = 3
MEASURE_S = 3.0
"""How long all engines are measured at most; `FEWEST_ROUNDS` are run in any case."""
FEWEST_ROUNDS, MOST_ROUNDS = 10, 300
WORTH = 0.97
"""Another engine than the first one must take less than this share of its time."""


class Fastest(msgspec.Struct, frozen=True, kw_only=True):
    """`fastest.json`: the engine to take on this device.

    Attributes:
        engine: its name.
        median_ms: of an image, on each engine measured.
        versions: of their libraries then; with others the choice is void.
        cpu: the model that they were measured on; another one voids it, too.
    """

    engine: str
    cpu: str
    median_ms: dict[str, float]
    versions: dict[str, str]


def read_fastest(bundle: Bundle) -> str | None:
    """Return the engine that was the fastest here, with the libraries of today; None: unknown."""
    found = read_state(_folder(bundle), STATE, Fastest)
    if (
        found is None
        or found.versions != installed_versions(found.median_ms)
        or found.cpu != _cpu()
    ):
        return None
    return found.engine


def keep_fastest(
    bundle: Bundle, names: Sequence[str], make: Callable[[str], Engine], say: Say
) -> Fastest:
    """Measure engines on a bundle, in turns, and keep the fastest in the device state.

    An image's time is that of the segments, each weighed by how often the bundle's default
    operating point reaches it; of the rounds the median counts. A device state that cannot be
    written is only said.

    Args:
        bundle: an opened bundle.
        names: of the engines, the default one first.
        make: makes one of them.
        say: told the times and the choice.

    Raises:
        EngineError: the default one cannot run the bundle.
    """
    engines: dict[str, Engine] = {}
    try:
        for name in names:
            try:
                engines[name] = make(name)
                for k in range(1, engines[name].num_segments + 1):
                    engines[name].open(k)
                _run(engines[name], _noise(bundle), _reach(bundle))
            except EngineError as error:
                if name == names[0]:
                    raise
                if name in engines:
                    engines.pop(name).close()
                say(f"{name} cannot run it: {error}")
        median_ms = _measure(bundle, engines)
        devices = {name: engine.device for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()
    best = min(median_ms, key=lambda name: median_ms[name] * (WORTH if name == names[0] else 1))
    found = Fastest(
        engine=best, cpu=_cpu(), median_ms=median_ms, versions=installed_versions(median_ms)
    )
    for name, ms in median_ms.items():
        say(f"{devices[name]}: {ms:.3f} ms an image, median")
    try:
        write_state(_folder(bundle), STATE, found)
    except UsageError as error:  # the times are worth more than their record
        say(f"{best} is not kept as the engine to take: {error}")
        return found
    say(f"mate-edge run will take {best} for {bundle.folder} on this device")
    return found


def _measure(bundle: Bundle, engines: dict[str, Engine]) -> dict[str, float]:
    """Return each engine's median ms of an image, from interleaved rounds at batch 1."""
    reach, images = _reach(bundle), _noise(bundle)
    times: dict[str, list[float]] = {name: [] for name in engines}
    began = time.monotonic()
    for turn in range(WARM_UP_ROUNDS + MOST_ROUNDS):
        if turn >= WARM_UP_ROUNDS + FEWEST_ROUNDS and time.monotonic() - began > MEASURE_S:
            break
        for name in list(engines)[:: 1 if turn % 2 else -1]:
            ms = _run(engines[name], images, reach)
            if turn >= WARM_UP_ROUNDS:
                times[name].append(ms)
    return {name: median(found) for name, found in times.items()}


def _noise(bundle: Bundle) -> NDArray[np.float32]:
    shape = (1, *bundle.manifest.segments[0].input.shape)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _run(engine: Engine, images: np.ndarray, reach: Sequence[float]) -> float:
    engine.load(images)
    total = 0.0
    for k, share in enumerate(reach, start=1):
        started = time.perf_counter_ns()
        engine.run(k)
        total += share * (time.perf_counter_ns() - started) / 1e6
    return total


def _reach(bundle: Bundle) -> list[float]:
    """Return the share of images that reach each segment."""
    num_exits = len(bundle.manifest.exits)
    point = bundle.manifest.operating_points.get(DEFAULT_POLICY)
    if point is None or len(point.val_exit_shares) != num_exits:
        return [1.0] * num_exits
    return [sum(point.val_exit_shares[k:]) for k in range(num_exits)]


@cache
def _cpu() -> str:
    # only who has measured engines comes here: 14 ms to import, and on ARM `lscpu` is run
    from mate_edge.runtime.doctor.hardware import cpu_name
    from mate_edge.runtime.doctor.machine import Machine

    return cpu_name(Machine())


def _folder(bundle: Bundle) -> Path:
    return state_folder(bundle.id, f"cpu-{platform.machine()}-{cpu_count()}")
