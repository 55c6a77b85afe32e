"""`mate-edge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of
from mate_edge.cli.shared import ENGINE_HELP, app, say


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    engine: Annotated[
        str | None, typer.Option(help=ENGINE_HELP, autocompletion=one_of("engine"))
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Accept a bundle on this device, or refuse it.

    Example: mate-edge verify

    Runs its golden inputs through the engines and compares with the exported network. Exit code 1
    when something differs by more than the precision allows.
    """
    import msgspec

    from mate_edge.report.verification import print_verification
    from mate_edge.runtime.verify import verify as run_verification

    found = run_verification(bundle, engine, say)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_verification(found)
    raise typer.Exit(0 if found.accepted else 1)
