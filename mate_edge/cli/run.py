"""`mate-edge run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of, policies
from mate_edge.cli.shared import ENGINE_HELP, app
from mate_edge.errors import UsageError
from mate_edge.machine import check_threads


@app.command()
def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images, videos, folders, globs, - for paths on stdin, camera:0, csi:0, "
            "rtsp://..., gst:PIPELINE."
        ),
    ],
    bundle: Annotated[Path | None, typer.Option(help="Default: the newest.")] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="The deadline of each image or frame, ms.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a deadline that exit 1 may miss.")
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            help="A name, a file of tune, deepest, exit-1 or patience-2.", autocompletion=policies
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Instead of --policy: leave at this confidence, 0 to 1.")
    ] = None,
    patience_frames: Annotated[
        int | None,
        typer.Option(help="Show another label only when so many frames in a row agree on it."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(help="Show so many of the likeliest classes, in the table and in JSON."),
    ] = None,
    every_frame: Annotated[
        bool,
        typer.Option("--every-frame", help="Of a live source: never drop one for a newer one."),
    ] = False,
    frame: Annotated[
        str | None, typer.Option(help="Ask camera: or csi: for frames of this size: 1280x720.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Ask camera: or csi: for so many frames a second.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row an answer into this file, as they come.")
    ] = None,
    save_video: Annotated[
        Path | None, typer.Option(help="Write the frames with their answers drawn: FILE.mp4.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics there, on 127.0.0.1; 0: any.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help=ENGINE_HELP, autocompletion=one_of("engine"))
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Classify images, videos and cameras, stopping early under a deadline or a confidence.

    Example: mate-edge run --max-ms 5 image.jpg

    Ctrl-C ends it with the summary and exit code 130; what was answered is written.
    """
    if policy is not None and threshold is not None:
        raise UsageError("give --policy or --threshold, not both")
    if policy is not None and policy.replace(".", "", 1).isdigit():
        raise UsageError(f"--policy takes a name: a threshold is given by --threshold {policy}")
    check_threads(threads)
    from mate_edge.runtime.classify import ClassifyOptions, classify
    from mate_edge.runtime.sources import Wanted

    code = classify(
        sources,
        bundle,
        ClassifyOptions(
            policy=policy if threshold is None else threshold,
            max_ms=max_ms,
            strict=strict,
            engine=engine,
            threads=threads,
            wanted=Wanted(_size(frame), fps, every_frame),
            patience=patience_frames,
            top=top,
            json=json,
            csv=csv,
            save_video=save_video,
            metrics_port=metrics_port,
        ),
    )
    # nothing is left to do, and taking interpreter and engine apart in order costs 80 ms
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _size(frame: str | None) -> tuple[int, int] | None:
    if frame is None:
        return None
    from mate_edge.runtime.frames import parse_frame

    return parse_frame(frame)
