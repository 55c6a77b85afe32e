"""The pages under docs/: every command and program in them runs as it is written.

The fenced blocks `sh` and `python` of a page run in order, in a folder that has a trained run, its
bundle and a few images. What cannot run here has a comment `<!-- not run: REASON -->` before it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from clips import write_clip
from PIL import Image
from warm import Warm

import mate_edge
from mate_edge import bundle, runs
from mate_edge.decide.risk import samples_needed
from mate_edge.report.tuned import TunedPoint
from mate_edge.runtime.latencies import Latencies

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run."""

    language: str
    code: str
    reason: str | None


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    return [Block(m["language"], m["code"], m["reason"]) for m in FENCE.finditer(read(page))]


def to_run(page: Path) -> list[Block]:
    found = [b for b in blocks(page) if b.language in ("sh", "python") and b.reason is None]
    programs: list[Block] = []
    for block in found:  # Python without a command in between is one program
        if programs and (programs[-1].language, block.language) == ("python", "python"):
            block = Block("python", f"{programs.pop().code}\n{block.code}", None)
        programs.append(block)
    return programs


ELSEWHERE = {
    "reports": "tests/report/conftest.py",  # its report is then looked at in a browser
    "serving": "tests/serve/test_serving_page.py",  # its first command serves until it is stopped
}
"""Pages whose blocks another test runs."""

RUNNABLE = [page for page in PAGES if to_run(page) and page.stem not in ELSEWHERE]


@pytest.fixture
def workplace(home: Path, tmp_path: Path) -> Path:
    """A folder with what the pages name: a run, its bundle, images, two classes of photos."""
    for name in ("runs", "bundles"):
        shutil.copytree(home / name, tmp_path / name)
    Image.new("RGB", (320, 240), (90, 160, 30)).save(tmp_path / "image.jpg")
    write_clip(tmp_path / "clip.mp4", 10)
    rng = np.random.default_rng(0)
    for label in "37":
        folder = tmp_path / "labelled" / label
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * number).save(folder / f"{number}.png")
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / "train" / name
        folder.mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def run(block: Block, folder: Path, warm: Warm) -> str:
    """Run a block in `folder`; returns what it prints."""
    if block.language == "python":
        (folder / "program.py").write_text(block.code, encoding="utf-8")
        command = [str(warm.python), "program.py"]
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    paths = [str(warm.folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": os.pathsep.join(paths), "MATE_EDGE_STATE": str(folder / "state"),
             "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_commands_and_programs_of_a_page_run_as_written(
    page: Path, workplace: Path, warm: Warm
) -> None:
    if page.stem == "fleet" and shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine")
    if page.stem == "quickstart":  # it makes its own
        for name in ("runs", "bundles"):
            shutil.rmtree(workplace / name)
    printed = [run(block, workplace, warm) for block in to_run(page)]
    assert len(printed) == len(to_run(page)) > 0
    if page.stem == "api":
        assert "accurate carries a guarantee: False" in printed[0]
        assert "missing.jpg cannot be read" in printed[0]
    if page.stem == "formats":
        assert re.search(r"^\d exit \d, 0\.\d+$", printed[0], re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_is_run_or_says_why_not_or_is_no_command(page: Path) -> None:
    text, found = read(page), blocks(page)
    if page.stem in ELSEWHERE:
        assert page.name in read(CHECKOUT / ELSEWHERE[page.stem])
    fences = re.findall(r"^ *```", text, re.MULTILINE)
    assert len(fences) == 2 * len(found), "a fence that the tests do not see"
    assert text.count("<!-- not run:") == sum(block.reason is not None for block in found)
    assert "<!-- slow" not in text
    for block in found:
        if block.language not in ("sh", "python"):
            assert block.language not in ("bash", "shell", "console", "py"), "write sh or python"
            commands = re.findall(r"^(?:\$ )?(?:mate-edge|pip|torchrun) .*", block.code, re.M)
            assert not commands, f"mark this block as sh: {commands}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_and_to_the_checkout_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)", read(page)):
        made = link in ("commands.md", "messages.md")  # by docs/site.py
        assert made or (DOCS / link).exists(), link


def test_the_page_on_thresholds_states_the_smallest_n_that_is_needed() -> None:
    rows = re.findall(
        r"^\| (\d+) % \| (\d+) % \| (\d+) \|$", read(DOCS / "thresholds.md"), re.MULTILINE
    )
    assert len(rows) == 4
    for epsilon, delta, n in rows:
        assert samples_needed(int(epsilon) / 100, int(delta) / 100) == int(n)


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("run.json", runs.Run),
        ("manifest.json", bundle.Manifest),
        ("An operating point", bundle.OperatingPoint),
        ("The guarantee", bundle.Guarantee),
        ("The file of tune", TunedPoint),
        ("latencies.json", Latencies),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_page_on_formats_names_every_field_and_no_other(heading: str, struct: Any) -> None:
    section = re.split(rf"^##+ {heading}$", read(DOCS / "formats.md"), flags=re.MULTILINE)[1]
    table = section.partition("\n\n| field |")[2].partition("\n\n")[0]
    named = [
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(named) == sorted(field.name for field in msgspec.structs.fields(struct))


def test_kserves_manifests_are_what_kserve_reads() -> None:
    runtime, service = (
        yaml.safe_load(block.code)
        for block in blocks(DOCS / "fleet.md")
        if block.language == "yaml"
    )
    assert (runtime["apiVersion"], runtime["kind"]) == (
        "serving.kserve.io/v1alpha1", "ServingRuntime")  # fmt: skip
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1", "InferenceService")  # fmt: skip
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container", "the name that KServe gives the model to"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in runtime["spec"]["volumes"]}
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {
        known["name"] for known in runtime["spec"]["supportedModelFormats"]
    }
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    port = container["ports"][0]["containerPort"]
    assert str(port) == container["args"][container["args"].index("--port") + 1]
    probes = (container["readinessProbe"], container["livenessProbe"])
    assert {probe["httpGet"]["port"] for probe in probes} == {port}


def test_contributing_names_tables_that_are_there() -> None:
    text = read(CHECKOUT / "CONTRIBUTING.md")
    rows = re.findall(r"^\| an? [^|]+\|([^|]+)\|([^|]+)\|$", text, re.MULTILINE)
    assert len(rows) >= 10
    last = ""
    for write, enter in rows:
        paths = re.findall(r"`([\w/]+(?:/|\.\w+))`", write + enter)
        assert all((CHECKOUT / path).exists() for path in paths), paths
        last = next((path for path in reversed(paths) if path.endswith(".py")), last)
        for table in re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", enter):
            assert re.search(rf"^{table}\b", (CHECKOUT / last).read_text(), re.MULTILINE), table


def test_the_changelog_begins_with_this_version() -> None:
    version = re.search(r"^## (\d+\.\d+\.\d+) - ", read(CHECKOUT / "CHANGELOG.md"), re.MULTILINE)
    assert version is not None
    assert version[1] == mate_edge.__version__
