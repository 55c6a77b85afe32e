"""`mate-edge bench`: its logic on a clock of its own, the command on a real bundle."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from timed import Clock, TimedEngine

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import Deepest
from mate_edge.errors import UsageError
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench.bench import measure
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.rounds import Contender, Pace, run_rounds
from mate_edge.runtime.bench.subjects import Subject
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines.blocked import read_blocked
from mate_edge.runtime.latencies import read_latencies
from mate_edge.runtime.predictor import Predictor

CONTENDERS = ["exit 1", "exit 2", "deepest", "fast", "balanced", "accurate", "unsplit"]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), 90).save(buffer, "PNG")
    return buffer.getvalue()


def subject(
    bundle: Bundle, clock: Clock, segments_ms: list[float], unsplit_ms: float, name: str = "a test"
) -> Subject:
    pair = [
        Predictor(TimedEngine(one, clock, ms), "deepest", clock)
        for one, ms in ((bundle, segments_ms), (bundle.unsplit(), [unsplit_ms]))
    ]
    return Subject(name, *pair)


def with_shares(bundle: Bundle, *shares: float) -> Bundle:
    """Return the bundle with operating points whose images left so on the validation split."""
    points = {
        name: msgspec.structs.replace(point, val_exit_shares=shares)
        for name, point in bundle.manifest.operating_points.items()
    }
    return replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, operating_points=points)
    )


Measure = Callable[..., Bench]


@pytest.fixture
def bench_of(bundle_folder: Path, tmp_path: Path) -> Measure:
    """Bench a bundle on a device on which segments take what is said."""

    def run(
        segments_ms: list[float],
        unsplit_ms: float,
        shares: tuple[float, ...] = (0.6, 0.3, 0.1),
        **options: Any,
    ) -> Bench:
        clock = Clock()
        bundle = with_shares(read_bundle(bundle_folder), *shares)
        (found,) = measure(
            [subject(bundle, clock, segments_ms, unsplit_ms)],
            [png()],
            "a test's",
            Options(**{"rounds": 12, **options}),
            say=lambda line: None,
            sleep=lambda seconds: clock.pass_ms(1000 * seconds),
            machine=Machine(root=tmp_path),
        )
        return found

    return run


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


# the verdict


def test_the_verdict_says_first_when_no_exits_are_needed(bench_of: Measure) -> None:
    found = bench_of([1.0, 1.0, 1.0], 2.8, max_ms=5.0, rounds=460)
    assert found.verdict[0] == (
        "unsplit p99 is 2.8 ms, under your 5 ms: you need no exits for this deadline; they would "
        "save 1.3 ms on average"
    )  # 1.5 ms at 60, 30 and 10 %
    assert found.points["balanced"].expected_ms == pytest.approx(1.5)


def test_where_no_exit_pays_the_verdict_says_how_to_export_without(bench_of: Measure) -> None:
    text = " ".join(bench_of([4.0, 1.0, 1.0], 2.0).verdict)
    assert "no exit pays on this device" in text
    assert re.search("without early exits, .*: mate-edge export .*--exits 3 --target cpu", text)


def test_the_verdict_names_the_deepest_exit_that_is_in_time(bench_of: Measure) -> None:
    (first, *_) = bench_of([2.0, 2.0, 2.0], 5.6, max_ms=5.0).verdict
    assert (
        "unsplit max of 12 is 5.6 ms (459 rounds show the p99), over your 5 ms: you need" in first
    )
    assert "exit 2 answers in time (max of 12: 4 ms)" in first
    (first, *_) = bench_of([6.0, 2.0, 2.0], 9.6, max_ms=5.0).verdict
    assert "so is exit 1 (max of 12: 6 ms)" in first


def test_few_rounds_with_a_late_one_do_not_say_that_no_exit_is_in_time(
    bundle_folder: Path, tmp_path: Path
) -> None:
    clock, bundle = Clock(), read_bundle(bundle_folder)

    class Stumbling(TimedEngine):
        calls = 0

        def run(self, k: int) -> np.ndarray:
            self.calls += 1
            clock.pass_ms(9.0 if self.calls % 50 == 0 else 0.0)
            return super().run(k)

    whole = Predictor(Stumbling(bundle, clock, [2.0, 2.0, 2.0]), "deepest", clock)
    bench = replace(subject(bundle, clock, [1.0], 5.6), whole=whole)

    def first(rounds: int) -> str:
        options = Options(rounds=rounds, max_ms=5.0)
        (found,) = measure([bench], [png()], "", options, say=lambda line: None,
                           machine=Machine(root=tmp_path))  # fmt: skip
        return found.verdict[0]

    assert "exit 1 (max of 100: 11 ms), but the median of exit 1 is 2 ms: so few" in first(100)
    assert "no exit of this network meets this deadline here" in first(460)


def test_without_a_deadline_it_says_what_exits_save_or_cost(bench_of: Measure) -> None:
    (first, *_) = bench_of([1.0, 1.0, 1.0], 2.8).verdict
    assert first == (
        "at balanced the exits save 1.3 ms on average: 1.5 ms against 2.8 ms unsplit, 1.87 times "
        "faster"
    )
    (first, *_) = bench_of([1.0, 1.0, 1.0], 2.0, shares=(0.1, 0.1, 0.8)).verdict
    assert "at balanced the exits cost 0.7 ms on average" in first


def test_an_exit_that_does_not_pay_comes_with_the_command_that_merges_it(
    bench_of: Measure,
) -> None:
    found = bench_of([3.0, 2.0, 3.0], 5.6, shares=(0.5, 0.02, 0.48))
    assert found.keep == (1, 3)
    text = "\n".join(found.verdict)
    assert "exit 1 pays: 50 % of the images leave there at balanced" in text
    assert "exit 2 does not pay: 2 % of the images" in text
    assert re.search(r"mate-edge export runs/\S+ --exits 1,3 --target cpu --precision fp32", text)
    assert "more than 1.87 times faster than the unsplit network" in text
    assert found.ceiling == pytest.approx(5.6 / 3)
    found = bench_of([2.0, 1.0, 2.0], 4.8, shares=(0.5, 0.3, 0.2))
    assert found.keep == (1, 2, 3)
    assert "mate-edge export" not in "\n".join(found.verdict)


def test_an_exit_that_noise_might_decide_about_is_kept_and_said_to_be_so(
    bench_of: Measure,
) -> None:
    found = bench_of([2.0, 1.0, 2.0], 4.8, shares=(0.5, 0.02, 0.48))
    (_, second) = found.exits
    assert 0 > second.saved_ms > -0.05 * 4.8
    assert found.keep == (1, 2, 3)
    text = "\n".join(found.verdict)
    assert "exit 2 makes no difference beyond noise: 2 % of the images leave there" in text
    assert "it costs 0.010 ms of an image" in text
    assert "mate-edge export" not in text


def test_of_exits_that_together_cost_more_than_noise_one_is_said_not_to_pay(
    bench_of: Measure,
) -> None:
    found = bench_of([3.0, 3.3, 4.3], 10.0, shares=(0.0, 0.0, 1.0))  # each head takes 0.3 ms
    assert [one.saved_ms for one in found.exits] == pytest.approx([-0.3, -0.3])
    text = "\n".join(found.verdict)
    assert text.count("makes no difference beyond noise") == text.count("does not pay:") == 1
    assert f"--exits {found.keep[0]},3 --target cpu" in text


def test_a_network_that_takes_just_the_deadline_is_not_said_to_need_exits(
    bench_of: Measure,
) -> None:
    (first, *_) = bench_of([1.0, 2.0, 1.9], 5.1, max_ms=5.0).verdict
    assert "over your 5 ms, but with all exits it is 4.9 ms" in first
    assert "need" not in first


def test_the_ceiling_is_that_of_the_medians_shown(bundle_folder: Path, tmp_path: Path) -> None:
    clock, rng = Clock(), np.random.default_rng(0)

    class Uneven(TimedEngine):
        def run(self, k: int) -> np.ndarray:
            clock.pass_ms(rng.uniform(0, 1))
            return super().run(k)

    bundle = with_shares(read_bundle(bundle_folder), 0.6, 0.3, 0.1)
    pair = [
        Predictor(Uneven(one, clock, ms), "deepest", clock)
        for one, ms in ((bundle, [1.0, 1.0, 1.0]), (bundle.unsplit(), [2.8]))
    ]
    (found,) = measure(
        [Subject("a test", *pair)], [png()], "", Options(rounds=12), say=lambda line: None,
        machine=Machine(root=tmp_path),
    )  # fmt: skip
    shown = found.parts.unsplit.median_ms / found.parts.segments[0].median_ms
    assert found.ceiling == shown
    assert f"more than {shown:.2f} times faster" in found.verdict[-1]


def test_a_first_segment_that_is_slower_than_the_unsplit_network_is_no_speed_up(
    bench_of: Measure,
) -> None:
    assert bench_of([6.0, 2.0, 2.0], 4.8).verdict[-1] == (
        "no policy can be faster than the unsplit network here: segment 1 alone takes 1.25 times "
        "its time"
    )


def test_exits_that_a_deadline_needs_are_not_said_to_be_merged_away(bench_of: Measure) -> None:
    for segments, shares in (
        ([2.0, 2.0, 2.0], (0.5, 0.02, 0.48)),
        ([3, 1.5, 2], (0.02, 0.03, 0.95)),
    ):
        text = "\n".join(bench_of(segments, 5.6, shares=shares, max_ms=5.0).verdict)
        assert "exit 2 answers in time" in text
        assert "mate-edge export" not in text
        assert "run the unsplit network" not in text


def test_the_command_that_merges_counts_the_exits_of_the_run(
    bundle_folder: Path, tmp_path: Path
) -> None:
    clock = Clock()
    bundle = with_shares(read_bundle(bundle_folder), 0.5, 0.02, 0.48)
    build = msgspec.structs.replace(bundle.manifest.build, max_batch=16)
    for provenance, says in (
        ({"run": "mine", "exits": [1, 3, 4]}, "export runs/mine --exits 1,4 --target"),
        ({"run": "mine", "exits": [1, 3, 4]}, "--precision fp32 --max-batch 16"),
        ({"run": "my own; run", "exits": [1, 3, 4]}, "export 'runs/my own; run' --exits 1,4 --t"),
        ({"run": 3, "exits": [1, "x", 4]}, "export --exits 1,3 --target"),
        ({}, "export --exits 1,3 --target"),
    ):
        manifest = msgspec.structs.replace(bundle.manifest, provenance=provenance, build=build)
        of_run = replace(bundle, manifest=manifest)
        (found,) = measure(
            [subject(of_run, clock, [3.0, 2.0, 3.0], 5.6)], [png()], "", Options(rounds=12),
            say=lambda line: None, machine=Machine(root=tmp_path),
        )  # fmt: skip
        assert says in "\n".join(found.verdict)


def test_too_few_rounds_for_a_percentile_say_max_of_n(bench_of: Measure) -> None:
    found = bench_of([1.0, 1.0, 1.0], 2.8, max_ms=5.0, rounds=40)
    assert found.verdict[0].startswith(
        "unsplit max of 40 is 2.8 ms (459 rounds show the p99), under your 5 ms"
    )
    assert found.back_to_back["unsplit"].times.p99_ms is None


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
