"""The processes that keep a machine busy beside bench, and what others use of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mate_edge.errors import UsageError
from mate_edge.runtime.bench import load
from mate_edge.runtime.bench.load import CpuUse, busy_processes


def alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):  # the first one: reaped while it is read
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("error", [None, UsageError, KeyboardInterrupt, SystemExit])
def test_busy_processes_are_ended_however_it_ends(error: Any) -> None:
    seen: list[int] = []
    try:
        with busy_processes(2) as processes:
            seen += processes
            assert all(alive(process) for process in seen)
            if error is not None:
                raise error
    except (UsageError, KeyboardInterrupt, SystemExit):
        pass
    assert len(seen) == 2
    assert not any(alive(process) for process in seen)


def test_ctrl_c_in_a_terminal_does_not_reach_them() -> None:
    with busy_processes(1) as (process,):
        assert os.getpgid(process) != os.getpgid(0)


def test_busy_processes_end_with_a_parent_that_was_killed() -> None:
    program = (
        "from mate_edge.runtime.bench.load import busy_processes\nimport time\n"
        "with busy_processes(1) as found:\n    print(*found, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the busy process outlived its parent")


def test_what_other_processes_use_is_told_from_what_this_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(monotonic=lambda: 100.0, process_time=lambda: 7.0)
    monkeypatch.setattr(load, "time", now)
    ticks, stat = os.sysconf("SC_CLK_TCK"), tmp_path / "stat"
    stat.write_text("cpu  100 0 100 5000 0 0 0 0 0 0\ncpu0 1 2\n")
    use = CpuUse(stat)
    now.monotonic, now.process_time = lambda: 104.0, lambda: 10.0
    stat.write_text(f"cpu  {100 + 8 * ticks} 0 100 5000 0 0 0 0 0 0\n")
    assert use.own() == 0.75  # 3 s of the 4
    assert use.others() == 1.25  # 5 of the 8 s that all CPUs computed
    assert use.others(load=1) == 0.25
    assert use.others(load=2) == 0.0
    assert CpuUse(tmp_path / "none").others() is None
