"""`mate-edge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.shared import ENGINE_HELP, app, say


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Accept a bundle on this device: its golden inputs against the exported network."""
    import msgspec

    from mate_edge.report.verification import print_verification
    from mate_edge.runtime.verify import verify as run_verification

    found = run_verification(bundle, engine, say)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_verification(found)
    raise typer.Exit(0 if found.accepted else 1)
