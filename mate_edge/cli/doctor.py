"""`mate-edge doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from mate_edge.cli.shared import app


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to get it.

    Example: mate-edge doctor

    Marks with x what is lacking, with ! what is advice. Exit code 1 when a piece is lacking.
    """
    from mate_edge.runtime.doctor.doctor import doctor

    raise typer.Exit(doctor(json))
