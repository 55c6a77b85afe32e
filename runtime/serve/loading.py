"""From a bundle to a model that serves: built, verified, warmed up, its latencies known."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.errors import BundleError, MateEdgeError
from mate_edge.machine import cpu_count
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.deadline import check_reachable
from mate_edge.runtime.engines import ON_CPU, Say, choose_engine, make_engine
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.points import all_points
from mate_edge.runtime.policy import choose_policy, resolve_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.serve.model import Model
from mate_edge.runtime.verify import verified_before, verify
from mate_edge.runtime.warm import load_decoders


@dataclass(frozen=True)
class Options:
    """How models are run.

    Attributes:
        workers: threads that predict, each with a predictor of its own.
        threads: of a segment on the CPU.
        engine: a name in `ENGINES`; None chooses.
        max_ms: the deadline of a request that names none.
        policy: of a request that names none; see `choose_policy`.
    """

    workers: int
    threads: int = 1
    engine: str | None = None
    max_ms: float | None = None
    policy: str | float | None = None


def choose_workers(threads: int, on_gpu: bool) -> int:
    """Return how many threads predict: as many as fill the cores, or one on a GPU.

    More than one at a time on a GPU would make the times that deadlines rest on wrong.
    """
    return 1 if on_gpu else max(1, cpu_count() // threads)


def is_on_gpu(folder: Path, engine: str | None) -> bool:
    """Say whether a bundle would run on a GPU here; one that cannot be read runs nowhere."""
    try:
        return (engine or choose_engine(read_bundle(folder), lambda line: None)) not in ON_CPU
    except MateEdgeError:  # loading it says why
        return False


def load_model(
    folder: Path,
    name: str,
    version: str,
    options: Options,
    metrics: Metrics,
    say: Say,
    beside: bool = False,
) -> Model:
    """Make a model that serves; takes seconds, and touches none that serves already.

    What was accepted by `mate-edge verify` on this device with these versions is not verified
    again.

    Args:
        folder: the bundle's.
        name: the model's.
        version: likewise.
        options: how it runs.
        metrics: where its predictions are counted.
        say: told what is going on.
        beside: others serve meanwhile: what is measured then is not kept for other processes.

    Raises:
        BundleError: damaged, or refused by its golden inputs.
        EngineError: the engine cannot be had, built or run.
        UsageError: an unknown policy or engine.
    """
    bundle = read_bundle(folder)
    choose_policy(bundle, options.policy)
    engine = options.engine or choose_engine(bundle, say)
    with ExitStack() as when_it_fails:
        start = partial(_start, bundle, engine, options)
        predictor = build_if_needed(bundle, engine, start, say)
        when_it_fails.enter_context(predictor)
        if verified_before(predictor.engine):
            bundle.check_files()  # some were not read: what was built of them is run
        else:
            say(f"{name} version {version}: verifying with its golden inputs")
            _verify(folder, bundle, engine, options, say)
        table = predictor.know_latencies(say, keep=not beside)
        for policy in (*all_points(bundle), "patience-1"):  # or its first request measures it
            predictor.latencies_of(resolve_policy(bundle, policy))
        if options.max_ms is not None:
            check_reachable(table, options.max_ms, False, say, predictor.timing.frame_ms)
        load_decoders(bundle.manifest.preprocessing)
        predictors = [predictor]
        predictors += (
            when_it_fails.enter_context(predictor.clone()) for _ in range(options.workers - 1)
        )
        when_it_fails.pop_all()
    return Model(name, version, predictors, engine, metrics, options.max_ms)


def _start(bundle: Bundle, engine: str, options: Options) -> Predictor:
    made = make_engine(engine, bundle, options.threads, shared_pool=True)
    return Predictor.warmed_up(made, options.policy)


def _verify(folder: Path, bundle: Bundle, engine: str, options: Options, say: Say) -> None:
    found = verify(folder, engine, say, options.threads)
    if found.bundle_id != bundle.id:
        raise BundleError(f"{folder} was replaced while it was loaded: load it again")
    if not found.accepted:
        raise BundleError(f"{folder} is refused on this device: {'; '.join(found.refusals)}")
