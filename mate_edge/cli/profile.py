"""`mate-edge profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of
from mate_edge.cli.shared import app
from mate_edge.cli.training_options import EXITS_HELP
from mate_edge.errors import UsageError
from mate_edge.extras import extra

CLASSES = 1000
"""ImageNet's, where nothing says how many."""


@app.command()
def profile(
    run: Annotated[Path | None, typer.Argument(help="A run folder; default: the newest.")] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="A backbone, untrained, instead.", autocompletion=one_of("arch")),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="With --arch; pooled.", autocompletion=one_of("head"))
    ] = None,
    exits: Annotated[str | None, typer.Option(help=f"With --arch. {EXITS_HELP}")] = None,
    size: Annotated[int | None, typer.Option(help="With --arch: input pixels; 224.")] = None,
    channels: Annotated[int | None, typer.Option(help="With --arch: 1 or 3; 3.")] = None,
    classes: Annotated[
        int | None, typer.Option(help="With --arch; your own classifier's, or 1000.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count FLOPs, parameters and border bytes of each exit.

    Example: mate-edge profile --arch resnet18 --exits 0.25,0.5,0.75

    Of a run, or of a network that is not trained yet. FLOPs: fvcore's, one multiply-add = 1.
    """
    if arch is not None and run is not None:
        raise UsageError("give a run or --arch, not both")
    if arch is None and (head, exits, size, channels, classes) != (None,) * 5:
        raise UsageError("--head, --exits, --size, --channels and --classes go with --arch")
    with extra("train"):
        from mate_edge.export.profile import profile_network
        from mate_edge.report.text import print_profile
        from mate_edge.train.backbones import make_parts
        from mate_edge.train.data.layout import check_size
        from mate_edge.train.exits import choose_cuts
        from mate_edge.train.heads import DEFAULT_HEAD
        from mate_edge.train.network import assemble, load_network
    from mate_edge import files, runs

    accuracies = None
    if arch is not None:
        head, size = head or DEFAULT_HEAD, 224 if size is None else size
        channels = 3 if channels is None else channels
        check_size(size)
        if channels not in (1, 3) or (classes is not None and classes < 2):
            raise UsageError("--channels must be 1 or 3, --classes 2 or more")
        parts = make_parts(arch, channels, size, classes)
        classes = classes or parts.outputs or CLASSES
        cuts = choose_cuts(arch, parts.stages, exits, channels, size)
        network = assemble(arch, parts, head, channels, size, classes, cuts)
        found = profile_network(network, channels, size)
        title = f"{arch}, {head} heads, {channels}x{size}x{size}"
    else:
        folder = runs.find_run(run, finished=True)
        trained = runs.read_finished_run(folder)
        pre = trained.preprocessing
        found = profile_network(load_network(folder, trained), pre.channels, pre.size)
        title = f"{folder}: {trained.arch}, {trained.head} heads"
        accuracies = trained.results.test_accuracy if trained.results else None
    if json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        print_profile(title, found, accuracies)
    if arch is None:
        files.write_json(folder / "profile.json", found)
