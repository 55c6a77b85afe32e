"""The run folder's document: what cannot be is said, whatever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mate_edge.errors import RunError
from mate_edge.runs import read_run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.update(exits=0), "0 exits"),
        (lambda run: run.update(exits=-1), "-1 exits"),
        (lambda run: run.update(exits=10**9), "1000000000 exits"),
        (lambda run: run.update(cuts=[1]), "3 exits and 1 cuts"),
        (lambda run: run.update(classes=["one"]), "two classes"),
        (lambda run: run["results"].update(test_accuracy=[0.5]), "not those of 3 exits"),
        (lambda run: run["results"].update(cumulative_flops=[1]), "not those of 3 exits"),
    ],
)
def test_a_run_that_makes_no_sense_is_a_clear_error(
    change: Callable[[Any], object], says: str, run_folder: Path, tmp_path: Path
) -> None:
    run = json.loads((run_folder / "run.json").read_bytes())
    change(run)
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunError, match=f"damaged: .*{says}"):
        read_run(tmp_path)
