"""`mate-edge bench`: its logic on a clock of its own, the command on a real bundle."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timed import Clock, TimedEngine
from timed_bench import Measure, png, subject

from mate_edge.bundle import read_bundle
from mate_edge.decide.policy import Deepest
from mate_edge.errors import UsageError
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench.bench import measure
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.rounds import Contender, Pace, run_rounds
from mate_edge.runtime.deadline import rounds_needed
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines.blocked import read_blocked
from mate_edge.runtime.latencies import read_latencies
from mate_edge.runtime.predictor import Predictor

CONTENDERS = ["exit 1", "exit 2", "deepest", "fast", "balanced", "accurate", "unsplit"]


# rounds


def test_contenders_take_turns_and_nobody_always_follows_the_same(bundle_folder: Path) -> None:
    clock, order = Clock(), []
    bundle = read_bundle(bundle_folder)

    class Noting(TimedEngine):
        name = ""

        def run(self, k: int) -> np.ndarray:
            order.append(self.name)
            return super().run(k)

    contenders = []
    for name in ("a", "b", "c"):
        engine = Noting(bundle.unsplit(), clock, [1.0])
        engine.name = name
        contenders.append(Contender(name, Predictor(engine, "deepest", clock), Deepest((1.0,))))
    found = run_rounds(contenders, [png()], Pace(rounds=12, least=1, limit_s=1e9))
    assert {name: len(samples) for name, samples in found.items()} == {"a": 12, "b": 12, "c": 12}
    # who follows another predicts once before, unmeasured
    measured = [name for name, same in groupby(order) for _ in list(same)[1:]]
    rounds = [tuple(measured[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) == 6  # all orders


def test_paced_predictions_begin_on_ticks_and_late_ones_skip_some(bundle_folder: Path) -> None:
    clock, begun = Clock(), []
    began = clock()
    engine = TimedEngine(read_bundle(bundle_folder).unsplit(), clock, [1.0])
    predictor = Predictor(engine, "deepest", clock)

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        clock.pass_ms(1000 * seconds)
        begun.append((clock() - began) / 1e6)
        engine.ms = [25.0 if len(begun) == 3 else 1.0]  # longer than two pauses

    contender = Contender("a", predictor, Deepest((1.0,)))
    run_rounds([contender], [png()], Pace(5, 5, 1e9, fps=100.0), sleep=sleep)
    assert begun == pytest.approx([10.0, 20.0, 30.0, 60.0, 70.0])


def test_it_stops_when_the_time_is_over_but_not_before_enough(bundle_folder: Path) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder).unsplit(), clock, [100.0])
    contender = Contender("a", Predictor(engine, "deepest", clock), Deepest((1.0,)))
    for limit_s, rounds in ((1.05, 11), (0.1, 5), (60, 50)):
        found = run_rounds([contender], [png()], Pace(rounds=50, least=5, limit_s=limit_s))
        assert len(found["a"]) == rounds


# what is measured and kept


def test_every_contender_is_measured_and_each_part_apart(bench_of: Measure) -> None:
    found = bench_of([1.0, 2.0, 4.0], 6.0)
    assert list(found.back_to_back) == CONTENDERS
    medians = {name: one.times.median_ms for name, one in found.back_to_back.items()}
    assert medians["exit 1"] == pytest.approx(1.0)
    assert medians["exit 2"] == pytest.approx(3.0)
    assert medians["deepest"] == pytest.approx(7.0)
    assert medians["unsplit"] == pytest.approx(6.0)
    assert [one.median_ms for one in found.parts.segments] == pytest.approx([1.0, 2.0, 4.0])
    assert found.parts.unsplit.median_ms == pytest.approx(6.0)
    assert not found.paced


def test_of_a_large_network_deadlines_rest_on_what_a_minute_measures(
    bundle_folder: Path, tmp_path: Path
) -> None:
    clock, bundle, machine = Clock(), read_bundle(bundle_folder), Machine(root=tmp_path)
    bench = subject(bundle, clock, [20.0, 20.0, 20.0], 55.0)
    (found,) = measure([bench], [png()], "", Options(), say=lambda line: None, machine=machine)
    assert found.kept
    kept = read_latencies(bundle, bench.whole.engine, machine)
    assert kept is not None
    assert 100 < kept.rounds < rounds_needed(3)


def test_the_latencies_that_deadlines_rest_on_are_the_paced_ones(
    bundle_folder: Path, tmp_path: Path
) -> None:
    clock, bundle, machine = Clock(), read_bundle(bundle_folder), Machine(root=tmp_path)
    bench = subject(bundle, clock, [1.0, 2.0, 4.0], 6.0)
    engine = bench.whole.engine
    assert isinstance(engine, TimedEngine)

    def sleep(seconds: float) -> None:
        engine.ms = [2.0, 3.0, 5.0]  # clocks fall in the pauses
        clock.pass_ms(1000 * seconds)

    def run(**options: Any) -> Bench:
        (found,) = measure([bench], [png()], "", Options(**options), say=said.append, sleep=sleep,
                           machine=machine)  # fmt: skip
        return found

    said: list[str] = []
    assert not run(rounds=9, fps=30.0).kept, "fewer than are measured when there are none"
    assert "9 rounds are not kept for deadlines" in said[-1]
    assert read_latencies(bundle, engine, machine) is None
    engine.ms = [1.0, 2.0, 4.0]
    assert run(rounds=220, fps=30.0).kept
    kept = read_latencies(bundle, engine, machine)
    assert kept is not None
    assert (kept.fps, kept.rounds) == (30.0, 220)
    assert [row[0] for row in kept.segments_ms] == pytest.approx([2.0, 3.0, 5.0])
    later = Predictor(engine, "deepest", clock)
    later.timing.use(kept)
    assert later.timing.latencies is not None
    assert later.timing.latencies.median_ms == pytest.approx((2.0, 3.0, 5.0))
    assert not run(rounds=3, load=1).kept
    assert "beside --load" in said[-1]
    assert not run(rounds=10).kept
    assert "go on resting on the 220 rounds" in said[-1]
    assert read_latencies(bundle, engine, machine) == kept
    assert run(rounds=200).kept
    assert re.search("replace those of .* at 30 a second: bench --fps 30 if", said[-1])


@pytest.mark.parametrize("fps", [0.1, 2.0, 100.0])
@pytest.mark.parametrize("rounds", [None, 40])
def test_pacing_takes_as_long_as_it_says(
    fps: float, rounds: int | None, bundle_folder: Path, tmp_path: Path
) -> None:
    clock, slept, said = Clock(), [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.pass_ms(1000 * seconds)

    engines = [subject(read_bundle(bundle_folder), clock, [0.01] * 3, 0.01)]
    measure(engines, [png()], "", Options(rounds=rounds, fps=fps), say=said.append, sleep=sleep,
            machine=Machine(root=tmp_path))  # fmt: skip
    (line,) = [line for line in said if line.startswith("pacing")]
    assert float(line.split()[-2]) == pytest.approx(sum(slept), rel=0.02, abs=1)


def test_several_engines_run_in_the_same_rounds(bundle_folder: Path, tmp_path: Path) -> None:
    clock, bundle = Clock(), read_bundle(bundle_folder)
    subjects = [
        subject(bundle, clock, [1.0] * 3, 2.0, "slow"),
        subject(bundle, clock, [0.5] * 3, 1.0, "quick"),
    ]
    slow, quick = measure(subjects, [png()], "", Options(rounds=20), say=lambda line: None,
                          machine=Machine(root=tmp_path))  # fmt: skip
    assert (slow.engine, quick.engine) == ("slow", "quick")
    assert slow.back_to_back["deepest"].times.median_ms == pytest.approx(3.0)
    assert quick.back_to_back["deepest"].times.median_ms == pytest.approx(1.5)


# the command


def test_the_command_prints_the_verdict_first_and_then_the_figures(
    cli: Any, bundle_folder: Path
) -> None:
    done = cli("bench", bundle_folder, "--rounds", "200", "--max-ms", "100000")
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines()
    assert first.startswith("unsplit max of 200 is ")
    assert "you need no exits for this deadline" in first
    for text in (*CONTENDERS, "segment 3", "decode", "preprocess", "8, the bundle's golden images",
                 "the back-to-back rounds from now on", "more than"):  # fmt: skip
        assert text in done.stdout
    assert read_blocked(read_bundle(bundle_folder)) is not None  # it was built for this CPU
    ran = cli("run", "--bundle", bundle_folder, "--max-ms", "1000", bundle_folder.parent / "no.png")
    assert ran.returncode == 2


def test_json_is_one_line_an_engine_and_nothing_else(
    cli: Any, bundle_folder: Path, pictures: Path
) -> None:
    done = cli("bench", bundle_folder, "--rounds", "3", "--fps", "200", "--load", "1", "--json",
               "--engine", "onnxruntime", "--images", pictures)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["engine"], found["fps"], found["load"]) == ("onnxruntime", 200.0, 1)
    assert list(found["back_to_back"]) == list(found["paced"]) == CONTENDERS
    assert all(one["times"]["samples"] == 3 for one in found["paced"].values())
    assert (found["images"], found["kept"]) == (8, False)


def test_deadlines_then_rest_on_what_was_benched(
    cli: Any, bundle_folder: Path, pictures: Path
) -> None:
    assert cli("bench", bundle_folder, "--rounds", "200", "--fps", "5000").returncode == 0
    done = cli("run", "--bundle", bundle_folder, "--max-ms", "1000", pictures)
    assert "the deadline rests on 200 rounds, 5000 a second, measured here at 20" in done.stderr
    assert "never measured" not in done.stderr


def test_images_in_a_folder_of_any_name_are_measured_and_kept(
    typed: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = pictures.rename(tmp_path / "p\udcff")
    done = typed("bench", bundle_folder, "--images", folder, "--rounds", "199")
    assert done.returncode == 0, done.stderr
    with Predictor.load(bundle_folder, engine="onnxruntime") as predictor:
        kept = read_latencies(predictor.bundle, predictor.engine)
    assert kept is not None
    assert kept.images == f"of {tmp_path / 'p'}\ufffd"


def test_all_engines_that_are_here_are_compared(cli: Any, bundle_folder: Path) -> None:
    done = cli("bench", bundle_folder, "--rounds", "2", "--engines", "all", "--json")
    assert done.returncode == 0, done.stderr
    engines = [json.loads(line)["engine"] for line in done.stdout.splitlines()]
    assert "onnxruntime" in engines
    assert ("openvino" in engines) == (find_spec("openvino") is not None)
    assert not {"tensorrt", "tensorrt_rtx"} & set(engines)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fps": 0.0}, "--fps"),
        ({"fps": 1e-10}, "--fps"),
        ({"fps": float("nan")}, "--fps"),
        ({"rounds": 0}, "--rounds"),
        ({"rounds": 10**9}, "--rounds"),
        ({"load": -1}, "--load"),
        ({"load": 10_000}, "--load"),
        ({"max_ms": -5.0}, "deadline"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options(**options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fps", "0"], "--fps"),
        (["--threads", "0"], "--threads"),
        (["--engines", "some"], "--engines takes all"),
        (["--engines", "all", "--engine", "onnxruntime"], "not both"),
        (["--images", "none.jpg"], "none.jpg does not exist"),
        (["--images", str(Path(__file__).parents[1] / "ru*")], "ru*' matches holds no images"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    done = typed("bench", bundle_folder, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line
