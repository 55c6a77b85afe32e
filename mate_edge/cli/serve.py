"""`mate-edge serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.shared import ENGINE_HELP, app, say
from mate_edge.extras import extra


@app.command()
def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE ...]", help="Default: the newest.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="A folder of models: NAME/VERSION/ or NAME.mate.")
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is every one.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which a proxy passes requests to localhost; repeatable."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds what clients must send; else $MATE_EDGE_TOKEN, else nothing."),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="The deadline of a request that names none, ms.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Of a request that names none: see run --policy.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Requests that may wait; more are told to come again.")
    ] = 64,
    max_mb: Annotated[float, typer.Option(help="The largest request, in MB.")] = 32,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds for a request's headers, and for its body, to come in.")
    ] = 10,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    threads: Annotated[int, typer.Option(help="Of a segment on the CPU.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Images at the same time; default: as many as fill the cores, 1 on GPUs."
        ),
    ] = None,
) -> None:
    """Serve bundles over HTTP by the Open Inference Protocol v2.

    Example: mate-edge serve --max-ms 20 --port 8000

    KServe, Triton's clients and browsers can ask it; at / is a page to try it. SIGTERM answers
    what was accepted, then ends it.
    """
    with extra("serve"):
        from mate_edge.runtime.serve.serve import ServeOptions
        from mate_edge.runtime.serve.serve import serve as run_server

    still_loading = run_server(
        ServeOptions(
            bundles=bundles or [],
            repository=repository,
            host=host,
            port=port,
            allow_hosts=allow_host or [],
            token_file=token_file,
            max_queue=max_queue,
            max_mb=max_mb,
            read_timeout_s=read_timeout,
            max_ms=max_ms,
            policy=policy,
            engine=engine,
            threads=threads,
            workers=workers,
        ),
        say,
    )
    if still_loading:
        os._exit(0)  # no signal ends an engine that is being built, in its thread
