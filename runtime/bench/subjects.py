"""What `bench` measures: a bundle and its unsplit network in an engine, in every way of running."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from mate_edge.bundle import Bundle
from mate_edge.decide.policy import Deepest, FixedExit, Policy
from mate_edge.errors import EngineError
from mate_edge.report.bench import UNSPLIT
from mate_edge.runtime.bench.rounds import Contender
from mate_edge.runtime.bench.verdict import exit_name
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.engines import ENGINES, NEEDS, Say, make_engine
from mate_edge.runtime.points import DEEPEST, all_points
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor


@dataclass(frozen=True)
class Subject:
    """One engine that is measured: the bundle and its unsplit network in it."""

    name: str
    whole: Predictor
    unsplit: Predictor


def open_subject(name: str, bundle: Bundle, threads: int | None) -> Subject:
    """Open and warm up the bundle and its unsplit network in the engine called `name`."""
    with ExitStack() as when_it_fails:
        pair = [
            when_it_fails.enter_context(
                Predictor.warmed_up(make_engine(name, one, threads, shared_pool=True), DEEPEST)
            )
            for one in (bundle, bundle.unsplit())
        ]
        when_it_fails.pop_all()
    return Subject(name, *pair)


def open_all_subjects(bundle: Bundle, threads: int | None, say: Say) -> list[Subject]:
    """Open every engine that can be had here; say why not of the others.

    Raises:
        EngineError: there is none.
    """
    found = []
    for name in ENGINES:
        if name in NEEDS and name != bundle.manifest.build.engine:
            continue  # another target's
        start = partial(open_subject, name, bundle, threads)
        try:
            found.append(build_if_needed(bundle, name, start, say, unsplit=True))
        except (EngineError, ModuleNotFoundError) as error:
            say(f"without {name}: {error}")
    if not found:
        raise EngineError(f"no engine here runs {bundle.folder}: type mate-edge doctor")
    return found


def contenders_of(subject: Subject) -> list[Contender]:
    """Return the network cut at each exit (with earlier heads), the points and the unsplit one."""
    manifest = subject.whole.manifest
    temperatures = manifest.temperatures
    last = len(temperatures)
    policies: dict[str, Policy] = {
        exit_name(k, last): FixedExit(k, temperatures) for k in range(1, last)
    }
    policies[DEEPEST] = Deepest(temperatures)
    bundle = subject.whole.bundle
    policies |= {name: resolve_policy(bundle, name) for name in all_points(bundle)}
    ours = [
        Contender(f"{subject.name}/{name}", subject.whole, policy)
        for name, policy in policies.items()
    ]
    whole = Deepest(temperatures[-1:])
    return [*ours, Contender(f"{subject.name}/{UNSPLIT}", subject.unsplit, whole)]
