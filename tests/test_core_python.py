"""The core alone, on the oldest Python and the oldest libraries that a Jetson brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
OLDEST = ["numpy==1.26.4", "onnxruntime==1.23.2"]


def find_python() -> str | None:
    """Return a Python 3.10 that runs, from PATH or from pyenv."""
    candidates = [shutil.which("python3.10")]
    candidates += map(str, sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python")))
    for candidate in filter(None, candidates):
        asked = subprocess.run([candidate, "-m", "venv", "--help"], capture_output=True)
        if asked.returncode == 0:
            return candidate
    return None


FEWER = ("predictor", "run_command", "verify")
"""Of the runtime's tests those that are the usual way through it."""


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 10), reason="the whole suite runs on Python 3.10 already"
)
@pytest.mark.parametrize(
    "files",
    [
        [f"test_{name}.py" for name in FEWER],
        pytest.param([""], id="all", marks=pytest.mark.slow),
    ],
)
def test_the_core_passes_its_tests_without_torch_on_python_3_10(
    files: list[str], built: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    python = find_python()
    if python is None:
        pytest.skip("there is no Python 3.10 on this machine")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    # this Python's pip, and nothing compiled that is not imported: it takes a third of the time
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv" / "bin" / "python", "install",
           "--no-compile", "--quiet", "--disable-pip-version-check"]  # fmt: skip
    subprocess.run([*pip, *built.glob("*.whl"), *OLDEST, "pytest", "hypothesis"], check=True)
    bundle_folder = request.getfixturevalue("bundle_folder")  # made meanwhile by another process
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-m", "pytest", "-q", "--rootdir", CHECKOUT,
         "-p", "no:cacheprovider", "--hypothesis-profile", "few examples",
         # long, and the same on any Python
         "-k", "not thousand and not call_that_fails and not joint_guarantees and not drift",
         CHECKOUT / "tests" / "core", *(CHECKOUT / "tests" / "runtime" / file for file in files)],
        cwd=tmp_path,
        env={**os.environ, "MATE_EDGE_TEST_BUNDLE": str(bundle_folder)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
