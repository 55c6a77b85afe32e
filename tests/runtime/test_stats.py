"""What a predictor says of itself: every policy as simulated, stats, drift, what still holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from certified import certified_on
from timed import Clock, TimedEngine

import mate_edge
from mate_edge.bundle import Guarantee, read_bundle
from mate_edge.decide.drift import compare, count_confidences
from mate_edge.decide.policy import POLICIES, Confidence, Policy, make_policy
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import softmax
from mate_edge.errors import BundleError, UsageError
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.fingerprint import Fingerprint, fingerprint
from mate_edge.runtime.latencies import Latencies, record_latencies
from mate_edge.runtime.policy import Chosen, choose_policy, resolve_policy
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.replay import exits_in_time
from mate_edge.runtime.standing import standing
from mate_edge.runtime.stats import Tally

TEMPERATURES = (1.3, 0.8, 1.1)


def every_policy() -> dict[str, Policy]:
    own = {"patience": {"patience": 2}, "fixed-exit": {"exit": 2}, "deepest": {}}
    return {
        name: make_policy(
            name, {"temperatures": TEMPERATURES, **own.get(name, {"thresholds": (0.7, 0.6)})}
        )
        for name in POLICIES
    }


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Predictor:
    return mate_edge.load(bundle_folder)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_does_in_the_runtime_what_the_simulation_says(
    name: str, predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    policy, frames = every_policy()[name], list(golden["images"])
    expected = simulate(policy, golden["logits"])
    predictor.set_policy(policy)
    alone = [predictor.predict(frame) for frame in frames]
    for found in (alone, predictor.predict_batch(frames)):
        assert [p.exit for p in found] == expected.exits.tolist()
        assert [p.index for p in found] == expected.predictions.tolist()
        np.testing.assert_allclose([p.confidence for p in found], expected.confidences, atol=1e-4)


def test_names_mean_what_they_say(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    temperatures = tuple(exit_.temperature for exit_ in bundle.manifest.exits)
    for name, kind, parameters in (
        ("exit-2", "fixed-exit", {"exit": 2}),
        ("patience-3", "patience", {"patience": 3}),
        ("deepest", "deepest", {}),
    ):
        chosen = choose_policy(bundle, name)
        assert chosen.name == name
        assert chosen.policy == make_policy(kind, {**parameters, "temperatures": temperatures})
    with pytest.raises(UsageError, match="exit must be a whole number from 1 to 3, not 4"):
        resolve_policy(bundle, "exit-4")
    with pytest.raises(UsageError, match="patience must be a whole number from 1 to 3, not 0"):
        resolve_policy(bundle, "patience-0")
    with pytest.raises(UsageError, match="not True"):
        resolve_policy(bundle, True)
    with pytest.raises(UsageError, match="another number of exits"):
        resolve_policy(bundle, Confidence((0.5,), (1.0, 1.0)))
    with pytest.raises(UsageError, match=r"none\.json"):
        resolve_policy(bundle, Path("none.json"))


# a deadline, simulated and run


def test_the_simulated_deadline_lets_each_round_go_as_far_as_the_runtime_does(
    bundle_folder: Path, golden: dict[str, np.ndarray]
) -> None:
    rng, clock = np.random.default_rng(0), Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    rounds = np.array([1.0, 2.0, 4.0])[:, None] * rng.lognormal(0, 0.25, (3, 400))
    rounds[:, 200:260] *= 2  # as when the device throttles
    decoding = rng.uniform(0, 4, 400).tolist()
    measured = record_latencies(engine, rounds.tolist(), [0.0] * 400, decode_ms=decoding)
    predictor = Predictor(engine, "deepest", clock)
    predictor.timing.use(measured)
    exits = []
    for number in range(400):
        engine.ms = [row[number] for row in measured.segments_ms]
        began = clock() - round(measured.decode_ms[number] * 1e6)
        found = predictor.predict(golden["images"][0], max_ms=15.0, started_ns=began)
        exits.append(found.exit)
    assert exits == exits_in_time(measured, 15.0)
    assert set(exits) == {1, 2, 3}


# stats


def test_stats_count_what_was_answered_and_can_begin_anew(
    predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    frames = list(golden["images"])
    predictor.set_policy("exit-1")
    predictor.reset_stats()
    answers = predictor.predict_batch(frames)
    answers += [predictor.predict(frames[0], policy="deepest") for _ in range(3)]
    late = predictor.predict(frames[0], policy="deepest", max_ms=1e-6)
    found = predictor.stats()
    assert found.predictions == 12
    assert found.by_halted == {
        "policy": (8, 0, 0), "deadline": (1, 0, 0), "last-exit": (0, 0, 3)
    }  # fmt: skip
    assert found.exit_shares == (0.75, 0, 0.25)
    assert late.deadline_missed
    assert found.misses == 1
    assert found.mean_ms == pytest.approx(np.mean([a.elapsed_ms for a in (*answers, late)]))
    assert found.drift is None, "twelve images say nothing"
    predictor.reset_stats()
    assert predictor.stats().predictions == 0
    assert predictor.clone().stats().predictions == 0


class Scaled:
    """Somebody's own policy, whose probabilities are multiplied by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sure = np.eye(logits.shape[2], dtype=np.float32)[np.zeros(len(logits), int)]
        return np.ones(len(logits), np.bool_), sure * np.float32(self.factor)


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.5, -1.0, float("nan")])
def test_a_policy_whose_probabilities_are_none_is_refused_and_nothing_counted(
    factor: float, predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    frames = list(golden["images"])
    predictor.set_policy(Scaled(factor))
    predictor.reset_stats()
    with pytest.raises(UsageError, match="Scaled returned .* for probabilities"):
        predictor.predict(frames[0])
    with pytest.raises(UsageError, match="Scaled returned .* for probabilities"):
        predictor.predict_batch(frames)
    predictor.set_policy("fast")
    with pytest.raises(UsageError, match="Scaled returned .* for probabilities"):
        predictor.predict(frames[0], policy=Scaled(factor))
    assert predictor.stats().predictions == 0


class Reusing:
    """Somebody's own policy, which writes into the same array each time; all leave at exit 2."""

    def __init__(self) -> None:
        self.memory = np.empty((64, 10), np.float32)

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self.memory[: len(logits)]
        found[:] = softmax(logits[:, -1])
        return np.full(len(logits), logits.shape[1] == 2), found


def test_a_policy_may_write_into_the_same_array_again(
    predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    frames, policy = list(golden["images"]), Reusing()
    answers = [predictor.predict(frame, policy=policy) for frame in frames]
    together = predictor.predict_batch(frames, policy=policy)
    expected = simulate(policy, golden["logits"])
    for one, other, index in zip(answers, together, expected.predictions, strict=True):
        assert one.exit == other.exit == 2
        assert one.index == other.index == index
        assert one.index == one.probabilities.argmax() == other.probabilities.argmax()


def test_a_probability_that_rounding_puts_above_one_counts_as_one(
    predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    predictor.set_policy(Scaled(1.0000001))
    predictor.reset_stats()
    predictor.predict_batch(list(golden["images"]) * 15)
    drift = predictor.stats().drift
    assert drift is not None
    assert drift.samples == 120
    assert drift.psi < 0.01, "those of calibration are 1, too"


def test_drift_compares_exit_1_with_calibration_whatever_exit_answers(
    predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    predictor.set_policy("deepest")
    predictor.reset_stats()
    frames = list(golden["images"])
    answers = [a for _ in range(10) for a in predictor.predict_batch(frames)]
    answers += [predictor.predict(frame) for frame in frames for _ in range(4)]
    own = predictor.chosen  # as a server passes it on where a request names it
    answers += [predictor.predict(frame, policy=own) for frame in frames[1:]]
    answers.append(predictor.predict(frames[0], policy=own.policy))
    predictor.predict(frames[0], policy=0.5)  # of another policy: its confidence is not counted
    assert {a.exit for a in answers} == {3}
    drift = predictor.stats().drift
    assert drift is not None
    assert drift.samples == 120
    logits, _ = read_calibration(predictor.bundle)
    before, now = (
        count_confidences(predictor.policy.decide(some[:, :1])[1].max(axis=-1))
        for some in (logits, golden["logits"])
    )
    expected = compare(before, [15 * count for count in now])
    assert expected is not None
    assert drift.psi == pytest.approx(expected.psi, rel=0.2)
    predictor.set_policy("fast")
    assert predictor.stats().drift is None


def test_run_warns_when_the_images_are_others_than_on_validation(
    cli: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(120):  # one image again and again is no distribution like calibration's
        shutil.copy(pictures / "0.png", many / f"{number}.png")
    done = cli("run", "--bundle", bundle_folder, many)
    assert done.returncode == 0, done.stderr
    assert "the images have drifted" in done.stdout
    assert "drifted" not in cli("run", "--bundle", bundle_folder, pictures).stdout


def test_damaged_calibration_costs_no_answer(
    cli: Any, own_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    (own_bundle / "calibration.npz").write_bytes(b"")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(120):
        shutil.copy(pictures / "0.png", many / f"{number}.png")
    done = cli("run", "--bundle", own_bundle, "--json", many)
    assert done.returncode == 0
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 120
    assert "whether the images have drifted is unknown" in done.stderr
    with mate_edge.load(own_bundle) as predictor:
        predictor.predict_batch([pictures / "0.png"] * 120)
        with pytest.raises(BundleError, match=r"calibration\.npz"):
            predictor.stats()


# what still holds


def rounds_of(here: Fingerprint) -> Latencies:
    return Latencies(
        bundle_id="b",
        fingerprint=here,
        segments_ms=((1.0,),) * 3,
        rest_ms=(0.1,),
        created="2026-11-30",
    )


def chosen(here: Fingerprint, **changes: Any) -> Chosen:
    policy = make_policy("deepest", {"temperatures": (1.0,) * 3})
    return Chosen("mine", policy, certified_on(here, **changes))


@pytest.mark.parametrize(
    ("changes", "max_ms", "halted", "says"),
    [
        ({}, None, 0, "is guaranteed: on images like the 1000 held back and in times like those"),
        (
            {},
            5.0,
            20,
            "images like the 1000 held back and in times like those of 500 measured",
        ),
        ({}, 5.0, 60, "may end 2.0 % of images and here ended 6.0 %"),
        ({}, 5.0, 0, "at most 1 % of answers"),
        ({}, 9.0, 0, "at most 1 % of answers"),
        ({}, 4.9, 0, "this shorter one voids the guarantee"),
        ({"max_ms": None}, 5.0, 0, "which this deadline voids"),
        ({"max_ms": None}, None, 0, "a deadline voids this"),
        ({"delta": None}, 5.0, 20, "on average over such sets of 1000"),
        ({"loss": "differs"}, None, 0, "other ones than the last exit's"),
        ({"device": {"cpu": "a"}}, 5.0, 0, "here nothing is guaranteed"),
        ({"measured": "2026-11-29"}, 5.0, 0, "rest on others of 2026-11-30: nothing is"),
        ({"measured": None}, 5.0, 0, "at most 1 % of answers"),  # of a version before
        ({"effect": 20.0}, 5.0, 60, "at most 1 % of answers"),  # three slow segments
        ({"effect": 2.0}, 5.0, 60, "and here ended 6.0 %"),
    ],
)
def test_what_holds_is_said_in_one_line(
    changes: dict[str, Any], max_ms: float | None, halted: int, says: str, predictor: Predictor
) -> None:
    here = fingerprint(predictor.engine)
    line = standing(chosen(here, **changes), max_ms, rounds_of(here), 1000, halted)
    assert says in line
    assert "\n" not in line


def test_a_guarantee_of_another_device_names_what_differs(predictor: Predictor) -> None:
    here = fingerprint(predictor.engine)
    other = msgspec.structs.replace(here, power_mode="15W")
    line = standing(chosen(other), 5.0, rounds_of(here), 1000, 0)
    assert "power_mode: 15W, then" in line
    assert "nothing is guaranteed" in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"delta": 1.0},
        {"losses": 1001},
        {"max_ms": -1.0},
        {"device": None},
        {"halted": 2000},
        {"rounds": None},
        {"rounds": 0},
        {"effect": 0.5},
    ],
)
def test_a_guarantee_that_makes_no_sense_is_not_read(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"loss": "worse", "epsilon": 0.01, "delta": 0.05, "n": 1000,
                              "losses": 3, "max_ms": 5.0, "device": {}, "halted": 2,
                              "rounds": 500}  # fmt: skip
    assert msgspec.convert(fields, Guarantee).n == 1000
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields | wrong, Guarantee)


def test_the_counts_of_clones_are_joined(
    bundle_folder: Path, golden: dict[str, np.ndarray]
) -> None:
    with Predictor.load(bundle_folder) as one, one.clone() as other, one.clone() as alone:
        frames = list(golden["images"]) * 20
        for frame in frames[:110]:
            one.predict(frame, max_ms=0.001)
            alone.predict(frame, max_ms=0.001)
        for frame in frames[110:]:
            other.predict(frame)
            alone.predict(frame)
        joined = Tally.joined([one.tally, other.tally]).stats(one.chosen)
        whole = alone.stats()
        assert joined.predictions == whole.predictions == len(frames)
        assert joined.misses == whole.misses == 110
        assert joined.drift is not None
        assert joined.drift == whole.drift
        assert one.stats().predictions == 110
