"""The README's commands, run as they are written, in order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from first import COMMANDS
from PIL import Image
from warm import Warm

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SETUP = ("make ", "git ", "cd ", "pip ", "apt-get ", "python3 -m venv")
"""What sets a machine up, or needs the checkout: `make test` is what runs this very test."""

WITHOUT = {"CUDA_VISIBLE_DEVICES": "", "MATE_EDGE_STATE": "state"}
"""A GPU, whose libraries may be missing, and the user's own device state."""


def commands(*, slow: bool) -> list[str]:
    """Return the commands of the README's `sh` blocks; slow ones follow a comment `slow`."""
    found = []
    for marker, block in re.findall(r"(<!-- slow -->\n)?```sh\n(.*?)```", README, re.DOTALL):
        if bool(marker) == slow:
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if line and not line.startswith(("#", *SETUP))]
    return found


def run_all(lines: list[str], folder: Path, warm: Warm) -> None:
    """Run each line in a shell that finds this environment's commands first."""
    Image.new("RGB", (320, 240), (90, 160, 30)).save(folder / "image.jpg")
    for images in (folder / "photos", folder / "labelled" / "3"):
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64), (200, 20, 30)).save(images / "one.png")
    path = os.pathsep.join([str(warm.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env={**os.environ, "PATH": path, **WITHOUT},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_there_are_commands_and_every_stage_is_shown() -> None:
    shown = " ".join(commands(slow=False) + commands(slow=True))
    for command in ("train", "profile", "export", "run", "verify", "evaluate"):
        assert f"mate-edge {command}" in shown


def test_the_readmes_commands_work_as_written(home: Path, warm: Warm, tmp_path: Path) -> None:
    lines, begun = commands(slow=False), len(COMMANDS)
    assert tuple(lines[:begun]) == COMMANDS, "what was typed in `home`"
    run_all(lines[begun:], shutil.copytree(home, tmp_path / "home"), warm)


@pytest.mark.slow
def test_the_readmes_long_commands_work_as_written(warm: Warm, tmp_path: Path) -> None:
    run_all(commands(slow=True), tmp_path, warm)


def test_the_readmes_python_examples_work_as_written(bundle_folder: Path, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    Image.new("RGB", (320, 240), (90, 160, 30)).save(tmp_path / "image.jpg")
    for example in examples:
        (tmp_path / "example.py").write_text(
            example.replace("bundles/digits-resnet8-mate-cpu.mate", str(bundle_folder))
        )
        subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True)


def test_links_to_files_of_the_checkout_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)", README)
    assert links
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
