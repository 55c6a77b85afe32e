"""`mate-edge demo`: the whole way, in one command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from warm import Warm

ONE_ROUND = """
from mate_edge import demo
from mate_edge.cli import main

demo.ROUNDS = 1
main()
"""


def test_the_demo_goes_the_whole_way_and_compares_with_the_unsplit_network(
    cli: Any, warm: Warm, tmp_path: Path
) -> None:
    (tmp_path / "one_round.py").write_text(ONE_ROUND)
    command = [warm.python, "one_round.py", "demo", "--epochs", "1", "--out", "there"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("1. train", "2. profile", "3. export", "4. run", "5. what exiting early saved",
                 "unsplit", "fast", "balanced", "accurate", "faster"):  # fmt: skip
        assert text in done.stdout
    assert (tmp_path / "there" / "digits.mate" / "manifest.json").exists()
    assert len(list((tmp_path / "there" / "images").glob("*.png"))) > 300
    wrong = cli("demo", "--epochs", "0", "--out", "other", cwd=tmp_path)
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    again = cli("demo", "--out", "there", cwd=tmp_path)
    assert again.returncode == 2
    assert "there exists already" in again.stderr
