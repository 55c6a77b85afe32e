"""Reports for the tests: a run's and a benched bundle's page, and a subject counted by hand."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mate_edge.bundle import read_bundle
from mate_edge.cli import main
from mate_edge.decide.policy import Confidence
from mate_edge.report.content import Content, make_content
from mate_edge.report.subject import ExitCost, NamedPolicy, Subject
from mate_edge.runtime.reported import gather_bundle

CHROMIUM = shutil.which("chromium")


def type_command(*arguments: str | Path, cwd: Path, state: Path) -> None:
    """Run `mate-edge ARGUMENTS` in this process, as a session's fixture can."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["mate-edge", *map(str, arguments)])
        patch.chdir(cwd)
        patch.setenv("MATE_EDGE_STATE", str(state))
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, arguments


@pytest.fixture(scope="session")
def pages(
    run_folder: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The page of a run, and of a bundle that was benched here."""
    folder = tmp_path_factory.mktemp("pages")
    state = folder / "state"
    type_command("report", run_folder, "--out", folder / "run.html", cwd=folder, state=state)
    type_command("bench", bundle_folder, "--rounds", "40", cwd=folder, state=state)
    type_command("report", bundle_folder, "--out", folder / "bundle.html", cwd=folder, state=state)
    return {name: folder / f"{name}.html" for name in ("run", "bundle")}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


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
