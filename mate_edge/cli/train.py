"""`mate-edge train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mate_edge.cli.complete import one_of
from mate_edge.cli.shared import app
from mate_edge.cli.training_options import takes_training_options
from mate_edge.errors import UsageError
from mate_edge.extras import extra

if TYPE_CHECKING:
    from mate_edge.runs import OptionValue


@app.command()
@takes_training_options
def train(
    options: dict[str, Any],
    method: Annotated[
        str | None,
        typer.Option(help="mate, or a baseline such as ce.", autocompletion=one_of("method")),
    ] = None,
    method_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, such as beta=0.6; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and variations.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that prepare images; default: chosen.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest run, or --out.")] = False,
) -> None:
    """Train a multi-exit network; writes a run folder.

    Example: mate-edge train --data digits --arch resnet8 --epochs 3

    --data takes a folder too: DIR/train/CLASS/*.jpg. What is left out has a default for the data
    set; a run that was stopped goes on with --resume.
    """
    with extra("train"):
        from mate_edge.report.text import print_results
        from mate_edge.train.options import Options
        from mate_edge.train.start import is_main_process, run_training

    chosen = Options(**options, method=method, method_options=_pairs(method_option), seed=seed)
    folder, run = run_training(chosen, out, resume, workers)
    if is_main_process():
        print_results(folder, run)


def _pairs(given: list[str] | None) -> dict[str, OptionValue]:
    pairs: dict[str, OptionValue] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--method-option takes NAME=VALUE, not {pair!r}")
        pairs[name.strip()] = value.strip()
    return pairs
