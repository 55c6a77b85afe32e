"""`mate-edge build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import words
from mate_edge.cli.shared import app


@app.command()
def build(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="The largest batch; default: as exported, mostly 1.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="For rtx, on any machine: GPUs such as 8.6,8.9.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="Preprocess frames of this size on the GPU: 1280x720.")
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(help="With --frame: rgb or bgr; rgb.", autocompletion=words("rgb", "bgr")),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build what is built already, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Compile a bundle's segments for this device.

    Example: mate-edge build NAME-jetson.mate --max-batch 8

    What is built already stays. For --target cpu the segments are made to hand features over as
    this CPU computes on them; of several CPU engines the faster one here is taken from then on.
    """
    from mate_edge.runtime.build_command import build_bundle

    build_bundle(bundle, max_batch, compute_capability, frame, color, force, json)
