"""`mate-edge export`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of, words
from mate_edge.cli.shared import app
from mate_edge.errors import UsageError
from mate_edge.extras import extra


@app.command()
def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder; default: the newest.")] = None,
    target: Annotated[
        str, typer.Option(help="cpu, cuda, jetson or rtx.", autocompletion=one_of("target"))
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp16, fp32 or int8 on NVIDIA, fp32 or int8 on a cpu.",
            autocompletion=words("fp32", "fp16", "int8"),
        ),
    ] = None,
    exits: Annotated[str | None, typer.Option(help="Keep these, such as 1,3.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle folder, NAME.mate.")] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of accuracy that an exit may lose to the precision.")
    ] = 1.0,
    max_batch: Annotated[
        int, typer.Option(help="The largest batch that engines are built for.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the cuts.")] = False,
) -> None:
    """Export a run: one ONNX file a segment, in a bundle.

    Example: mate-edge export --target jetson --precision fp16

    Checks each file against the trained network on real images, and chooses three operating points:
    fast, balanced and accurate.
    """
    with extra("train"):
        from mate_edge.export.export import check_exits, export_run
        from mate_edge.export.measure import check_max_drop
        from mate_edge.export.profile import profile_network
        from mate_edge.export.targets import check_max_batch, choose
        from mate_edge.report.text import (
            print_operating_points,
            print_precision,
            print_profile,
        )
        from mate_edge.runtime.build_command import build_at_once
        from mate_edge.train.network import load_network
    from mate_edge import runs
    from mate_edge.bundle import read_bundle

    kind, precision = choose(target, precision)
    check_max_batch(target, max_batch)
    check_max_drop(max_drop)
    try:
        keep = [int(k) for k in exits.split(",")] if exits is not None else None
    except ValueError:
        raise UsageError(f"--exits takes numbers such as 1,3, not {exits!r}") from None
    folder = runs.find_run(run, finished=True)
    trained = runs.read_finished_run(folder)
    if dry_run:
        pre = trained.preprocessing
        network = load_network(folder, trained).keep_exits(check_exits(keep, trained.exits))
        title = f"{folder} would be cut into these segments"
        print_profile(title, profile_network(network, pre.channels, pre.size), None)
        return
    say = partial(print, file=sys.stderr)
    path, manifest = export_run(
        folder,
        trained,
        target,
        precision,
        keep,
        out,
        say,
        max_drop=max_drop,
        max_batch=max_batch,
    )
    print_precision(manifest)
    print_operating_points(manifest)
    print(f"bundle: {path}")
    if not build_at_once(read_bundle(path), kind.machine, say):
        for line in kind.next_steps(path):
            print(line)
