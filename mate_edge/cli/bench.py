"""`mate-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of
from mate_edge.cli.shared import ENGINE_HELP, app, say
from mate_edge.machine import check_threads


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="The deadline to judge, ms.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Pace it like a camera too, such as 30 a second.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Of each contender; default: 500, in a minute at most.")
    ] = None,
    load: Annotated[int, typer.Option(help="Run so many busy processes beside it.")] = 0,
    images: Annotated[
        str | None,
        typer.Option(help="Measure with these, a folder or glob; default: golden images."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help=ENGINE_HELP, autocompletion=one_of("engine"))
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="all: compare every engine that can be had here.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON line an engine.")] = False,
) -> None:
    """Measure a bundle beside its unsplit network; the verdict first.

    Example: mate-edge bench --max-ms 5

    Says whether exits pay here at all, which to merge away, and what disturbed the measurement.
    """
    check_threads(threads)
    import msgspec

    from mate_edge.report.bench import print_bench, print_engines
    from mate_edge.runtime.bench.bench import bench as run_bench
    from mate_edge.runtime.bench.options import Options
    from mate_edge.runtime.build_command import Bar

    bar = Bar(say)
    options = Options(rounds=rounds, fps=fps, load=load, max_ms=max_ms)
    found = run_bench(
        bundle,
        options,
        engine=engine,
        engines=engines,
        images=images,
        say=bar.say,
        progress=bar.show,
        threads=threads,
    )
    bar.clear()
    for one in found:
        if json:
            print(msgspec.json.encode(one).decode())
        else:
            print_bench(one)
    if len(found) > 1 and not json:
        print_engines(found)
