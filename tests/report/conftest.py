"""Reports for the tests: a run's and a benched bundle's page, and a subject counted by hand."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mate_edge.bundle import read_bundle
from mate_edge.cli import main
from mate_edge.decide.policy import Confidence
from mate_edge.report.content import Content, make_content
from mate_edge.report.subject import ExitCost, NamedPolicy, Subject
from mate_edge.runtime.reported import gather_bundle

DOCS = Path(__file__).parents[2] / "docs" / "reports.md"


def type_command(line: str) -> str:
    """Run a command in this process, and return what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", shlex.split(line))
        patch.setattr(sys, "stdout", printed)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, line
    return printed.getvalue()


@dataclass(frozen=True)
class Documented:
    """What the commands of docs/reports.md left in `folder`, and what each printed."""

    folder: Path
    printed: dict[str, str]

    def page(self, name: str) -> Path:
        """Return the page of the `run`, of the benched `bundle`, or of one's `own` images."""
        places = {
            "run": "reports/digits-resnet8-mate.html",
            "bundle": "reports/digits-resnet8-mate-cpu.html",
            "own": "mine.html",
        }
        return self.folder / places[name]


@pytest.fixture(scope="session")
def documented(
    home: Path, golden: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Documented:
    """The commands of docs/reports.md, typed as they are written."""
    folder = tmp_path_factory.mktemp("documented")
    for part in ("runs", "bundles"):
        shutil.copytree(home / part, folder / part)
    for number, pixels in enumerate(golden["images"]):
        label = str(golden["logits"][number, -1].argmax())  # as the last exit answers
        (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(folder / "labelled" / label / f"{number}.png")
    (folder / "labelled" / label / "broken.png").write_bytes(b"not an image")
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MATE_EDGE_STATE", str(folder / "state"))
        lines = [line for block in blocks for line in block.splitlines()]
        return Documented(folder, {line: type_command(line) for line in lines})


NAMES = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "$\\frac{",
    "a|b `c` *d* [e](javascript:1)",
    "_hidden",
    "]]>&amp;",
    "\u202eevil\u0000",
    "{{ 7 * 7 }}",
    "x" * 5000,
    "图\n# heading",
)


@pytest.fixture(scope="session")
def hostile(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The report of a bundle whose names were chosen to break pages, never benched here."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(bundle_folder, folder / "own.mate")
    manifest = json.loads((folder / "own.mate" / "manifest.json").read_bytes())
    manifest["classes"] = list(NAMES)
    manifest["name"] = "</title><script>window.hacked=1</script>"
    nested: Any = "deep"
    for _ in range(50):
        nested = {"<b>": nested}
    manifest["provenance"] |= {"data": "<img src=x onerror=window.hacked=1>", "<i>": nested}
    (folder / "own.mate" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATE_EDGE_STATE", str(folder / "state"))
        opened = read_bundle(folder / "own.mate")
        subject = gather_bundle(opened, None, None, None, lambda line: None)
    return make_content(subject)[0]


MakeSubject = Callable[..., Subject]


@pytest.fixture(scope="session")
def make_subject() -> MakeSubject:
    """Make a subject of answers: `answers[i][k]` is exit k + 1's of image i, with its confidence.

    All other classes share what the confidence leaves. Temperatures are 1, so that what is written
    is what the policy sees.
    """

    def make(
        answers: list[list[tuple[int, float]]],
        labels: list[int],
        thresholds: tuple[float, ...],
        classes: tuple[str, ...] = ("cat", "dog", "owl"),
        **changes: Any,
    ) -> Subject:
        n, num_exits, num_classes = len(answers), len(answers[0]), len(classes)
        logits = np.zeros((n, num_exits, num_classes), np.float32)
        for i, row in enumerate(answers):
            for k, (answer, confidence) in enumerate(row):
                logits[i, k] = np.log((1 - confidence) / (num_classes - 1))
                logits[i, k, answer] = np.log(confidence)
        temperatures = (1.0,) * num_exits
        given: dict[str, Any] = {
            "kind": "run",
            "name": "mine",
            "about": "a network",
            "classes": classes,
            "logits": logits,
            "labels": np.asarray(labels, np.int64),
            "images": "test images",
            "caution": "",
            "temperatures": temperatures,
            "fitted_on": "others",
            "costs": tuple(ExitCost(100 * (k + 1)) for k in range(num_exits)),
            "unsplit_flops": None,
            "points": {"balanced": NamedPolicy(Confidence(thresholds, temperatures), "a goal")},
            "judged": "balanced",
            "times": None,
            "no_times": "No times.",
            "training": None,
            "no_training": "No training.",
            "pictures": None,
            "no_pictures": "No pictures.",
            "provenance": (("seed", "0"),),
        }
        return Subject(**(given | changes))

    return make
