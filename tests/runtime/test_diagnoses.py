"""What bench says is wrong with a measurement, in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mate_edge.runtime.bench.diagnoses import Observed, diagnose
from mate_edge.runtime.bench.rounds import Sample
from mate_edge.runtime.doctor.machine import Machine, Ran


def sample(*segment_ms: float, before_ms: float = 0.1) -> Sample:
    elapsed = before_ms + sum(segment_ms)
    return Sample(len(segment_ms), elapsed, before_ms / 2, before_ms / 2, segment_ms)


QUIET = Observed(
    deepest=[sample(1.0, 1.0)] * 100,
    unpaced=[sample(1.0, 1.0)] * 100,
    fps=None,
    busy_share=0.9,
    threads=1,
    own_cpus=0.95,
    other_cpus=0.05,
    judged="balanced",
    shares=(0.5, 0.5),
    on_gpu=False,
    machine=Machine(root=Path("/nowhere"), run=lambda command: Ran(127)),
)


def test_nothing_is_said_of_a_machine_on_which_all_is_well() -> None:
    assert diagnose(QUIET) == ()


def governed(folder: Path, mode: str) -> Machine:
    file = folder / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(mode)
    return Machine(root=folder, run=lambda command: Ran(127))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"deepest": [sample(1.0)] * 50 + [sample(1.3)] * 50}, "1.30 times slower during the run"),
        ({"deepest": [sample(1.3)] * 50 + [sample(1.0)] * 50}, "1.30 times faster during the run"),
        ({"other_cpus": 1.0}, "other processes used 1.0 CPUs"),
        ({"own_cpus": 2.0}, "threads spin"),
        ({"fps": 30.0, "deepest": [sample(1.5, 1.5)] * 100}, "at 30 a second .* 1.50 times"),
        ({"deepest": [sample(1.0, before_ms=3.0)] * 100}, "decoding and preprocessing take 3.00"),
        ({"shares": (0.0, 0.0, 1.0)}, "exits 1, 2 are never used at balanced"),
        ({"shares": (0.4, 0.001, 0.6)}, "exit 2 is never used at balanced"),
    ],
)
def test_each_thing_that_is_wrong_is_said_alone(change: dict[str, Any], says: str) -> None:
    (said,) = diagnose(replace(QUIET, **change))
    assert re.search(says, said)


def test_a_governor_or_power_mode_that_saves_power_is_said(tmp_path: Path) -> None:
    (said,) = diagnose(replace(QUIET, machine=governed(tmp_path, "powersave")))
    assert "governor is powersave" in said
    assert not diagnose(replace(QUIET, machine=governed(tmp_path, "performance")))
    tree = tmp_path / "proc/device-tree/compatible"
    tree.parent.mkdir(parents=True)
    tree.write_text("nvidia,tegra234")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=MAXN >\n")
    jetson = Machine(root=tmp_path, run=lambda command: Ran(0, "NV Power Mode: 15W\n2"))
    said, *more = diagnose(replace(QUIET, machine=jetson, on_gpu=True))
    assert "power mode 15W" in said
    assert "sudo nvpmodel -m 0" in said
    assert "sudo jetson_clocks" in more[0]


def test_a_few_rounds_prove_no_slow_down() -> None:
    deepest = [sample(1.0)] * 6 + [sample(2.0)] * 6
    assert diagnose(replace(QUIET, deepest=deepest)) == ()
