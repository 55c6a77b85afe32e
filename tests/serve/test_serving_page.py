"""The commands and examples of docs/serving.md, run as they are written but for the port."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
PORT = "127.0.0.1:8000"
SERVE = "mate-edge serve"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands(start: str) -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


@pytest.fixture(scope="module")
def workplace(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and one bundle, where the page says."""
    folder: Path = tmp_path_factory.mktemp("workplace")
    Image.new("RGB", (320, 240), (90, 160, 30)).save(folder / "image.jpg")
    shutil.copytree(bundle_folder, folder / "bundles" / "digits-resnet8-mate-cpu.mate")
    (folder / "bundles" / "latest").write_text("digits-resnet8-mate-cpu.mate")
    for line in [*commands("mkdir"), *commands("cp")[:1]]:
        subprocess.run(["bash", "-c", line], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def running(start: Any, workplace: Path, state: Path) -> Iterator[Any]:
    """The server of the last command that starts one."""
    options = commands(SERVE)[-1].removeprefix(SERVE).split()
    with start(workplace, state, *options) as server:
        yield server


def test_the_python_examples_run(running: Any, workplace: Path) -> None:
    for line in [*commands("cp")[1:], *commands("mv")]:
        subprocess.run(["bash", "-c", line], cwd=workplace, check=True)
    program = "\n".join(blocks("python")).replace(PORT, f"127.0.0.1:{running.port}")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"\d [01]\.\d+ exit \d (policy|deadline|last-exit)", lines[0])
    assert lines[1] == "True True"
    assert "'halted_by'" in lines[2]
    assert lines[-2:] == ["['2']", "['1']"]


def test_the_commands_with_curl_run(running: Any, workplace: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = commands("curl")
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line.replace(PORT, f"127.0.0.1:{running.port}")],
            cwd=workplace,
            capture_output=True,
            text=True,
        )
        assert '"halted_by"' in done.stdout


def test_every_command_on_the_page_is_one_that_is_run() -> None:
    starts = ("mkdir", "cp", "mv", "curl", SERVE)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert [line for line in lines if not line.startswith(starts)] == []


def test_the_options_that_the_page_names_exist(typed: Any, tmp_path: Path) -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", re.sub(r"```sh.*?```", "", PAGE, flags=re.DOTALL)))
    shown = typed("serve", "--help", cwd=tmp_path).stdout
    assert {"--max-queue", "--token-file", "--read-timeout"} <= named
    assert all(option in shown for option in named), named


def test_links_lead_somewhere() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for link in re.findall(r"\]\(((?!http)[^)#]+)", PAGE):
        assert (docs / link).exists(), link
