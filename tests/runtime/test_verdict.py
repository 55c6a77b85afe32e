"""What bench says a measurement means, the answer first."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from timed import Clock, TimedEngine
from timed_bench import Measure, png, subject, with_shares

from mate_edge.bundle import read_bundle
from mate_edge.runtime.bench.bench import measure
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.subjects import Subject
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.predictor import Predictor


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
