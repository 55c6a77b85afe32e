"""The predictor under a deadline, on a clock that moves only when a segment runs."""

from __future__ import annotations

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from certified import certified
from timed import Clock, TimedEngine

from mate_edge.bundle import read_bundle
from mate_edge.decide.policy import Confidence
from mate_edge.errors import UsageError
from mate_edge.images import normalize
from mate_edge.runtime.deadline import MISS_SHARE, MOST_ALLOWED, rounds_needed
from mate_edge.runtime.latencies import keep_latencies, record_latencies
from mate_edge.runtime.outputs.summary import Summary
from mate_edge.runtime.policy import choose_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.timing import is_enough
from mate_edge.warn import MateEdgeWarning


@pytest.mark.parametrize(
    ("max_ms", "exit_", "halted_by", "missed"),
    [
        (0.5, 1, "deadline", True),
        (1.0, 1, "deadline", False),
        (2.99, 1, "deadline", False),
        (3.0, 2, "deadline", False),
        (6.99, 2, "deadline", False),
        (7.0, 3, "last-exit", False),
        (100.0, 3, "last-exit", False),
    ],
)
def test_it_goes_as_deep_as_the_deadline_allows(
    max_ms: float,
    exit_: int,
    halted_by: str,
    missed: bool,
    timed: tuple[Predictor, TimedEngine, Clock],
    frames: list[np.ndarray],
) -> None:
    predictor, engine, _ = timed
    found = predictor.predict(frames[0], max_ms=max_ms)
    assert (found.exit, found.halted_by, found.deadline_missed) == (exit_, halted_by, missed)
    assert engine.ran == list(range(1, exit_ + 1))
    assert found.elapsed_ms == pytest.approx(sum(engine.ms[:exit_]))


def test_the_age_of_a_frame_counts(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, clock = timed
    fresh = predictor.predict(frames[0], max_ms=7.5)
    stale = predictor.predict(frames[0], max_ms=7.5, started_ns=clock() - 2_000_000)
    assert (fresh.exit, stale.exit) == (3, 2)
    assert stale.elapsed_ms == pytest.approx(5.0)


@pytest.mark.parametrize("odd", [1_790_000_000_000_000_000, float("nan"), 1.5, "5"])
def test_a_moment_of_another_clock_or_none_is_refused(
    odd: Any, timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, _ = timed
    inputs = normalize(np.stack(frames[:1]), predictor.manifest.preprocessing)
    for predict, given in ((predictor.predict, frames[0]), (predictor.predict_inputs, inputs)):
        with pytest.raises(UsageError, match=r"started_ns must be a time\.perf_counter_ns"):
            predict(given, started_ns=odd, max_ms=5)  # type: ignore[operator]


def test_numpys_numbers_give_pythons_in_the_prediction(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, clock = timed
    moment: Any = np.int64(clock() - 1000)
    inputs = normalize(np.stack(frames[:1]), predictor.manifest.preprocessing)
    for max_ms in (np.float32(5), np.float64(5), np.int64(5)):
        when: Any = {"max_ms": max_ms, "started_ns": moment}
        for found in (
            predictor.predict(frames[0], **when),
            *predictor.predict_inputs(inputs, **when),
        ):
            assert (type(found.elapsed_ms), type(found.deadline_missed)) == (float, bool)


@pytest.mark.parametrize("max_ms", [0, -1.0, np.float32("nan"), float("inf"), "5", [5]])
def test_a_deadline_that_is_no_positive_number_is_a_clear_error(
    max_ms: Any, timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, _ = timed
    with pytest.raises(UsageError, match="the deadline must be a positive number of ms, not"):
        predictor.predict(frames[0], max_ms=max_ms)


def test_a_slower_device_answers_from_a_shallower_exit_and_still_in_time(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, engine, _ = timed
    assert predictor.predict(frames[0], max_ms=7.5).exit == 3
    engine.ms = [2.0, 4.0, 8.0]
    found = [predictor.predict(frames[0], max_ms=7.5) for _ in range(10)]
    assert [p.exit for p in found[3:]] == [2] * 7
    assert not any(p.deadline_missed for p in found[3:])
    engine.ms = [1.0, 2.0, 4.0]
    for _ in range(60):
        recovered = predictor.predict(frames[0], max_ms=7.5)
    assert recovered.exit == 3


def test_a_device_that_misses_too_many_stays_at_exit_1_but_for_what_was_certified_so(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray], tmp_path: Path
) -> None:
    predictor, engine, _ = timed
    measured = record_latencies(engine, [[ms] * 300 for ms in engine.ms], [0.0] * 300)
    predictor.timing.use(measured)

    engine.ms = [1.0, 2.0, 40.0]
    found = [predictor.predict(frames[0], max_ms=7.5)]
    while len(found) < 200 or not found[-1].deadline_missed:
        predictor.timing.slow_down.factor = 1.0  # a device that no factor foresees
        found.append(predictor.predict(frames[0], max_ms=7.5))
    assert predictor.stats().misses <= len(found) * MISS_SHARE + MOST_ALLOWED
    ended = sum(one.exit == 1 for one in found)
    assert f"{ended} of these at exit 1 although there was time" in Summary(predictor, 7.5).text()

    engine.ms = [1.0, 2.0, 4.0]
    shallow = predictor.predict(frames[0], max_ms=7.5)
    assert (shallow.exit, shallow.halted_by) == (1, "deadline")
    bundle = predictor.bundle

    def stored(name: str, **changes: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_bytes(msgspec.json.encode(certified(bundle, measured, 7.5, **changes)))
        return path

    joint = stored("joint")
    bare = choose_policy(bundle, joint).policy  # of which nothing is known
    for policy, max_ms, exit_ in (
        (joint, 7.5, 3),
        (choose_policy(bundle, joint), 9.0, 3),
        (joint, 7.4, 1),  # a shorter deadline was not certified
        (bare, 7.5, 1),
        (stored("of-another-device", device={}), 7.5, 1),
        (stored("by-other-rounds", measured="1999"), 7.5, 1),
    ):
        assert predictor.predict(frames[0], max_ms=max_ms, policy=policy).exit == exit_, policy
    predictor.set_policy(joint)
    assert predictor.predict(frames[0], max_ms=7.5).exit == 3
    for _ in range(100):
        predictor.predict(frames[0], max_ms=7.4)
    assert predictor.predict(frames[0], max_ms=7.5, policy="deepest").exit == 3


@pytest.mark.parametrize(("ms", "rounds"), [(1.0, 334), (10.0, 199), (40.0, 84), (400.0, 10)])
def test_a_first_deadline_measures_what_a_quantile_needs_within_ten_seconds(
    ms: float, rounds: int, bundle_folder: Path
) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [ms] * 3)
    predictor = Predictor(engine, "deepest", clock)
    table = predictor.measure()
    assert table.samples == rounds
    assert table.exact == (rounds >= rounds_needed(3))
    assert predictor.timing.measured is not None
    assert is_enough(predictor.timing.measured)


def test_a_policy_that_is_satisfied_is_not_the_deadlines_doing(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, _ = timed
    temperatures = (1.0, 1.0, 1.0)
    found = predictor.predict(frames[0], max_ms=1.0, policy=Confidence((0.0, 0.0), temperatures))
    assert (found.exit, found.halted_by) == (1, "policy")


def test_a_rare_hiccup_in_the_measurement_is_no_quantile(bundle_folder: Path) -> None:
    clock = Clock()

    class Hiccuping(TimedEngine):
        rounds = 0

        def run(self, k: int) -> np.ndarray:
            self.rounds += k == 1
            self.clock.pass_ms(50.0 if k == 2 and self.rounds % 300 == 100 else 0.0)
            return super().run(k)

    engine = Hiccuping(read_bundle(bundle_folder), clock, [0.1, 0.2, 0.4])
    table = Predictor(engine, "deepest", clock).measure()
    assert table.exact
    assert max(table.finish_ms) < 1


def test_a_warning_is_filed_under_the_line_that_called(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    lazy = Predictor.load(bundle_folder, lazy=True)
    with pytest.warns(MateEdgeWarning) as said:
        lazy.predict(frames[0], max_ms=10_000)
    assert {one.filename for one in said} == {__file__}


def test_a_deadline_without_measurements_measures_first_and_says_so(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    lazy = Predictor.load(bundle_folder, lazy=True, policy="deepest")
    assert lazy.timing.latencies is None
    with pytest.warns(UserWarning, match="never measured on this device"):
        found = lazy.predict(frames[0], max_ms=10_000)
    assert found.halted_by == "last-exit"
    assert not found.deadline_missed
    assert lazy.timing.latencies is not None
    assert lazy.timing.latencies.samples >= 10
    for wrong in (-1, 10**400):
        with pytest.raises(UsageError, match="deadline"):
            lazy.predict(frames[0], max_ms=wrong)


def test_the_first_runs_are_cold_and_no_slow_down(bundle_folder: Path) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    Predictor(engine, "deepest", clock).measure()
    engine.ms = [10.0, 20.0, 40.0]
    later = Predictor(engine, "deepest", clock)
    later.know_latencies()
    twin = later.clone()
    assert later.timing.slow_down.factor == twin.timing.slow_down.factor == 1
    assert later.timing.latencies is not None
    assert later.timing.latencies.median_ms == pytest.approx((1.0, 2.0, 4.0))
    assert later.timing.is_warm
    assert twin.timing.is_warm
    assert not Predictor(engine, "deepest", clock).clone().timing.is_warm


def test_a_warm_up_that_ctrl_c_ends_is_made_up_for(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    Predictor(engine, "deepest", clock).measure()
    later = Predictor(engine, "deepest", clock)

    def interrupt(k: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine, "open", interrupt)
        with pytest.raises(KeyboardInterrupt):
            later.know_latencies()
    later.know_latencies()
    assert later.timing.is_warm


def test_the_next_process_starts_from_what_was_measured(
    timed: tuple[Predictor, TimedEngine, Clock], recwarn: pytest.WarningsRecorder
) -> None:
    predictor, engine, clock = timed
    measured = predictor.measure()
    engine.ms = [5.0, 5.0, 5.0]
    later = Predictor(engine, "deepest", clock)
    assert later.know_latencies() == measured
    assert later.timing.measured == predictor.timing.measured
    assert not any("never measured" in str(warned.message) for warned in recwarn)
    assert measured.median_ms == pytest.approx((1.0, 2.0, 4.0))
    (state,) = Path(os.environ["MATE_EDGE_STATE"]).rglob("latencies-*.json")
    state.write_text("{")
    with pytest.warns(UserWarning, match="never measured"):
        assert Predictor(engine, "deepest", clock).know_latencies().median_ms[0] == 5.0
    assert Predictor(engine, "deepest", clock).know_latencies().median_ms[0] == 5.0


@dataclasses.dataclass
class Slow:
    """A policy that takes its time, on a clock of its own."""

    clock: Clock
    ms: float

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock.pass_ms(self.ms)
        return np.zeros(len(logits), np.bool_), np.full((len(logits), 10), 0.1, np.float32)


def test_a_policy_that_takes_long_to_decide_keeps_its_deadlines_too(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, engine, clock = timed
    predictor.measure()
    slow = Predictor(engine, Slow(clock, 0.5), clock)
    for max_ms, exit_ in ((1.6, 1), (3.9, 1), (4.1, 2), (8.4, 2), (8.6, 3)):
        found = [slow.predict(frames[0], max_ms=max_ms) for _ in range(3)]
        assert {(p.exit, p.deadline_missed) for p in found} == {(exit_, False)}, max_ms
        quick = predictor.predict(frames[0], max_ms=max_ms, policy=Slow(clock, 0.5))
        assert quick.exit == exit_, "the policy of a call counts as well"
    assert predictor.predict(frames[0], max_ms=7.1).exit == 3, "and not for others"


def test_of_clones_that_meet_their_first_deadline_together_one_measures(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    first = Predictor.load(bundle_folder, policy="deepest")
    clones = [first.clone() for _ in range(4)]
    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        list(pool.map(lambda one: one.predict(frames[0], max_ms=10_000), clones))
    assert sum("never measured" in str(one.message) for one in said) == 1
    assert len({id(one.timing.measured) for one in clones}) == 1


def test_a_state_that_cannot_be_written_only_costs_the_next_process_its_time(
    timed: tuple[Predictor, TimedEngine, Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    predictor, _, _ = timed
    with pytest.warns(MateEdgeWarning, match="not kept, each process measures anew: .*STATE"):
        assert predictor.measure().median_ms == pytest.approx((1.0, 2.0, 4.0))


def test_a_deadline_given_at_load_is_judged_at_load(bundle_folder: Path) -> None:
    with (
        pytest.warns(UserWarning, match="never measured"),
        Predictor.load(bundle_folder, max_ms=10_000) as predictor,
    ):
        assert predictor.timing.latencies is not None
    with pytest.warns(UserWarning, match="0.0001 ms is less than the .* ms that exit 1 may need"):
        Predictor.load(bundle_folder, max_ms=0.0001).close()
    with pytest.raises(UsageError, match="exit 1 may need"):
        Predictor.load(bundle_folder, max_ms=0.0001, strict=True)
    with Predictor.load(bundle_folder) as predictor:  # what bench --images would keep
        rounds = [[0.5] * 20] * predictor.engine.num_segments
        shared = {"decode_ms": [25.0] * 20, "preprocess_ms": [5.0] * 20, "images": "photos"}
        keep_latencies(record_latencies(predictor.engine, rounds, [0.1] * 20, **shared))
    with pytest.raises(UsageError, match="20 ms is less than the .* 30.00 ms of it before the net"):
        Predictor.load(bundle_folder, policy="deepest", max_ms=20, strict=True)
    says = "was measured in 20 rounds: deadlines rest on their maximum, a quantile needs 199, which"
    with pytest.warns(MateEdgeWarning, match=says), Predictor.load(bundle_folder) as predictor:
        predictor.predict(np.zeros((32, 32), np.uint8), max_ms=50)
    for odd in (-1, float("nan"), "5"):
        with pytest.raises(UsageError, match="the deadline must be a positive number of ms, not"):
            Predictor.load(bundle_folder, max_ms=odd)  # type: ignore[arg-type]
