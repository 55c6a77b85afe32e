"""Latencies in the device state: kept whole, and never believed of another device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mate_edge.bundle import read_bundle
from mate_edge.errors import UsageError
from mate_edge.runtime.doctor.machine import Machine, Ran
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.latencies import (
    MOST_ROUNDS,
    keep_latencies,
    read_latencies,
    record_latencies,
)
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.state import state_folder
from mate_edge.runtime.tune import mean_ms

SEGMENTS = [[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]]
REST = [0.1, 0.2, 0.3]


@pytest.fixture
def engine(bundle_folder: Path) -> Engine:
    return make_engine("onnxruntime", read_bundle(bundle_folder), 1, shared_pool=False)


def file_of(engine: Engine) -> Path:
    (found,) = state_folder(engine.bundle.id, engine.device_key).glob("latencies-*.json")
    return found


def test_what_is_nested_without_end_counts_as_never_kept(engine: Engine) -> None:
    keep_latencies(record_latencies(engine, SEGMENTS, REST, decode_ms=REST, fps=30.0))
    file = file_of(engine)
    file.write_text('{"unknown": ' + "[" * 100_000 + file.read_text()[1:])
    assert read_latencies(engine.bundle, engine) is None


def test_what_was_kept_is_read_again_round_by_round(engine: Engine) -> None:
    assert read_latencies(engine.bundle, engine) is None
    kept = record_latencies(engine, SEGMENTS, REST, decode_ms=REST, fps=30.0)
    keep_latencies(kept)
    found = read_latencies(engine.bundle, engine)
    assert found == kept
    assert found is not None
    assert [list(row) for row in found.segments_ms] == SEGMENTS
    assert (list(found.rest_ms), found.rounds, found.fps) == (REST, 3, 30.0)


def test_of_very_many_rounds_the_last_ones_are_kept(engine: Engine) -> None:
    rows = [[1.0] * 5 + [float(i + 1) for i in range(MOST_ROUNDS)]] * 3
    kept = record_latencies(engine, rows, rows[0])
    assert kept.rounds == MOST_ROUNDS
    assert kept.segments_ms[0][-1] == MOST_ROUNDS


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"\xff\xfe",
        {"schema": 2},
        {"rest_ms": [0.1]},
        {"rest_ms": []},
        {"rest_ms": [0.1, 0.2, -0.3]},
        {"segments_ms": [[1.0, 1.0, 1.0]]},
        {"segments_ms": [[0.0, 1.0, 1.0]] * 3},
        {"segments_ms": "many"},
        {"bundle_id": "another"},
        {"fingerprint": None},
    ],
)
def test_a_damaged_or_foreign_record_counts_as_absent(damage: Any, engine: Engine) -> None:
    keep_latencies(record_latencies(engine, SEGMENTS, REST))
    if isinstance(damage, bytes):
        file_of(engine).write_bytes(damage)
    else:
        document = json.loads(file_of(engine).read_bytes())
        file_of(engine).write_text(json.dumps({**document, **damage}))
    assert read_latencies(engine.bundle, engine) is None


def jetson(root: Path, mode: str, lowest_mhz: int) -> Machine:
    clocks = root / "sys/class/devfreq/17000000.gpu"
    for file, text in (
        (root / "proc/device-tree/compatible", "nvidia,p3768\0nvidia,tegra234"),
        (root / "proc/cpuinfo", "model name : Cortex-A78AE"),
        (clocks / "min_freq", f"{lowest_mhz}000000"),
        (clocks / "max_freq", "1300000000"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Machine(root=root, run=lambda command: Ran(0, f"NV Power Mode: {mode}\n0"))


def test_another_power_mode_or_clock_lock_is_another_device(engine: Engine, tmp_path: Path) -> None:
    kept = record_latencies(engine, SEGMENTS, REST, machine=jetson(tmp_path, "15W", 306))
    keep_latencies(kept)
    for mode, lowest, same in (("15W", 306, True), ("MAXN", 306, False), ("15W", 1300, False)):
        found = read_latencies(engine.bundle, engine, jetson(tmp_path, mode, lowest))
        assert (found == kept) == same
    assert read_latencies(engine.bundle, engine) is None  # and this machine is a third one
    other = record_latencies(engine, SEGMENTS, REST, machine=jetson(tmp_path, "MAXN", 306))
    keep_latencies(other)
    for mode, was in (("15W", kept), ("MAXN", other)):
        assert read_latencies(engine.bundle, engine, jetson(tmp_path, mode, 306)) == was
    now = record_latencies(engine, SEGMENTS, REST, machine=jetson(tmp_path, "MAXN", 306))
    assert kept.fingerprint.changes(now.fingerprint) == ["power_mode: 15W, then MAXN"]


def test_the_governor_and_another_number_of_threads_count_too(
    engine: Engine, tmp_path: Path, bundle_folder: Path
) -> None:
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("powersave\n")
    keep_latencies(record_latencies(engine, SEGMENTS, REST, machine=Machine(root=tmp_path)))
    assert read_latencies(engine.bundle, engine, Machine(root=tmp_path)) is not None
    governor.write_text("performance\n")
    assert read_latencies(engine.bundle, engine, Machine(root=tmp_path)) is None
    governor.write_text("powersave\n")
    other = make_engine("onnxruntime", read_bundle(bundle_folder), 2, shared_pool=False)
    assert read_latencies(engine.bundle, other, Machine(root=tmp_path)) is None


@pytest.mark.parametrize(
    "rows", [([], []), ([[1.0]], []), ([[1.0, 2.0]], [0.1]), ([[float("nan")]], [0.1])]
)
def test_rounds_that_do_not_fit_together_are_refused(rows: Any, engine: Engine) -> None:
    with pytest.raises(ValueError, match="latenc|rounds"):
        record_latencies(engine, *rows)


def test_a_state_that_cannot_be_written_is_a_clear_error(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot make the folder"):
        keep_latencies(record_latencies(engine, SEGMENTS, REST))


def test_a_mean_counts_the_decisions_up_to_its_exit_alone(engine: Engine) -> None:
    kept = record_latencies(engine, SEGMENTS, REST, decode_ms=[0.4] * 3, preprocess_ms=[0.1] * 3)
    decision = 0.2 / 3  # the mean rest, of three exits
    assert mean_ms(kept) == pytest.approx(
        [0.5 + 1.1 + decision, 0.5 + 3.2 + 2 * decision, 0.5 + 6.3 + 0.2]
    )


def test_what_is_measured_again_counts_anew_and_for_clones_too(bundle_folder: Path) -> None:
    with Predictor.load(bundle_folder, engine="onnxruntime", threads=1) as first:
        frame = np.zeros((8, 8), np.uint8)
        first.predict(frame, max_ms=1e4)
        with first.clone() as twin:
            first.timing.slow_down.factor = twin.timing.slow_down.factor = 3.0
            first.measure()
            assert first.timing.slow_down.factor == 1
            assert twin.timing.measured is not first.timing.measured
            twin.predict(frame, max_ms=1e4)
            assert twin.timing.measured is first.timing.measured
            assert twin.timing.slow_down.factor < 3
