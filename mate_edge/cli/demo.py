"""`mate-edge demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.shared import app
from mate_edge.extras import extra


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where to put everything; default: demo.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
) -> None:
    """Go the whole way on handwritten digits, in about a minute.

    Example: mate-edge demo --epochs 2

    Trains, profiles, exports and runs, and compares with the unsplit network. Needs no data.
    """
    with extra("train"):
        from mate_edge.demo import run_demo
    run_demo(out, epochs)
