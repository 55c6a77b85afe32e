"""The examples of docs/api.md, docs/sources.md and docs/thresholds.md, run as written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clips import write_clip
from PIL import Image

from mate_edge.decide.risk import samples_needed
from mate_edge.runtime.sources import KINDS

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def workplace(bundle_folder: Path, tmp_path: Path) -> Path:
    """A folder with an image and one bundle, where the pages say."""
    Image.new("RGB", (320, 240), (90, 160, 30)).save(tmp_path / "image.jpg")
    bundles = tmp_path / "bundles"
    shutil.copytree(bundle_folder, bundles / "digits-resnet8-mate-cpu.mate")
    (bundles / "latest").write_text("digits-resnet8-mate-cpu.mate")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    state = str(folder / "state")
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "MATE_EDGE_STATE": state},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_program_of_the_api_page_runs(workplace: Path) -> None:
    program = "\n".join(blocks("api.md", "python"))
    (workplace / "program.py").write_text(program, encoding="utf-8")
    printed = run([sys.executable, "program.py"], workplace)
    assert "accurate carries a guarantee: False" in printed
    assert "missing.jpg cannot be read" in printed


def test_the_commands_of_the_page_on_thresholds_run(workplace: Path) -> None:
    lines = [line for block in blocks("thresholds.md", "sh") for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        run(["bash", "-c", line], workplace)


def test_the_commands_of_the_page_on_sources_run(workplace: Path) -> None:
    write_clip(workplace / "clip.mp4", 10)
    (workplace / "photos" / "inside").mkdir(parents=True)
    for name in ("photos/1.png", "photos/inside/2.png"):
        Image.new("RGB", (64, 64), (200, 20, 30)).save(workplace / name)
    lines = [line for block in blocks("sources.md", "sh") for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        run(["bash", "-c", line], workplace)
    assert len((workplace / "answers.csv").read_text().splitlines()) == 11
    assert len((workplace / "answers.jsonl").read_text().splitlines()) == 2
    assert (workplace / "answers.mp4").exists()


def test_the_page_on_sources_names_every_kind() -> None:
    page = (DOCS / "sources.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"`{kind}:" in page, kind


def test_the_page_on_thresholds_states_the_smallest_n_that_is_needed() -> None:
    rows = re.findall(
        r"^\| (\d+) % \| (\d+) % \| (\d+) \|$",
        (DOCS / "thresholds.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 4
    for epsilon, delta, n in rows:
        assert samples_needed(int(epsilon) / 100, int(delta) / 100) == int(n)


@pytest.mark.parametrize("page", ["api.md", "thresholds.md"])
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / link).exists(), link
