"""How many CPUs a process may use: a container's quota counts, not the host's cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mate_edge.machine import cpu_count


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def write(root: Path, group: str, **values: str) -> Path:
    """Make a process of `group`, a line of /proc/self/cgroup, with files of its control group."""
    for name, value in values.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("-", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(f"{group}\n")
    return root


@pytest.mark.parametrize(
    ("limit", "count"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 8),
     ("1600000 100000", 8), ("nonsense", 8), ("", 8)],
)  # fmt: skip
def test_a_containers_quota_is_rounded_up_and_never_above_the_cores(
    limit: str, count: int, tmp_path: Path
) -> None:
    assert cpu_count(write(tmp_path, "0::/", **{"cpu-max": limit})) == count


def test_the_tightest_of_the_groups_above_a_process_counts(tmp_path: Path) -> None:
    groups = {"cpu-max": "max 100000", "a__cpu-max": "300000 100000", "a__b__cpu-max": "max 100000",
              "c__cpu-max": "100000 100000"}  # fmt: skip
    assert cpu_count(write(tmp_path, "0::/a/b", **groups)) == 3


def test_version_1_has_two_files_in_the_controllers_folder(tmp_path: Path) -> None:
    folder = "cpu,cpuacct__"
    write(tmp_path, "5:memory:/x\n4:cpu,cpuacct:/docker/1", **{
        f"{folder}cpu-cfs_quota_us": "250000", f"{folder}cpu-cfs_period_us": "100000"
    })  # fmt: skip
    assert cpu_count(tmp_path) == 3
    write(tmp_path, "4:cpu,cpuacct:/docker/1", **{f"{folder}cpu-cfs_quota_us": "-1"})
    assert cpu_count(tmp_path) == 8


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpu_count(tmp_path) == 8
