"""`mate-edge compare`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mate_edge.cli.complete import some_of, words
from mate_edge.cli.shared import app
from mate_edge.cli.training_options import takes_training_options
from mate_edge.extras import extra


@app.command()
@takes_training_options
def compare(
    options: dict[str, Any],
    methods: Annotated[
        str,
        typer.Option(
            help="Such as ce,mate,mate+alpha=2: options of a method after +.",
            autocompletion=some_of("method"),
        ),
    ] = "ce,byot,dbt,eed,beed,okddip,mate",
    seeds: Annotated[str, typer.Option(help="How many, or which, such as 0,1,2.")] = "3",
    workers: Annotated[
        int | None, typer.Option(help="Processes that prepare images; default: chosen.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Images of the tables: test, or val while options are chosen by them.",
            autocompletion=words("test", "val"),
        ),
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="The comparison's folder; what is done there stays.")
    ] = None,
) -> None:
    """Train methods with several seeds; print paired differences.

    Example: mate-edge compare --data digits --methods ce,mate --seeds 2

    What is finished is never trained again: type the same to go on, or name more methods or seeds.
    """
    with extra("train"):
        from mate_edge.names import look_up
        from mate_edge.report import comparison
        from mate_edge.report.text import print_table
        from mate_edge.train.compare import (
            SPLITS,
            default_folder,
            parse_methods,
            parse_seeds,
            run_comparison,
            write_report,
        )
        from mate_edge.train.options import Options

        look_up("--split", split, SPLITS)
        contenders, numbers, chosen = parse_methods(methods), parse_seeds(seeds), Options(**options)
        folder = out or default_folder(chosen)
        say = partial(print, file=sys.stderr)
        busy, failed = run_comparison(folder, contenders, numbers, chosen, workers, say)
        tables = write_report(folder, contenders, numbers, split)
    for table in tables:
        print_table("", *table)
    print(comparison.NOTE)
    if busy:
        print(f"other processes are at {busy} of the runs: type the same again when they are done")
    if failed:
        print(f"{failed} of the runs failed, see above: the tables are without them")
    print(f"comparison: {folder}")
    raise typer.Exit(1 if failed else 0)
