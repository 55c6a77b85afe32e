"""`mate-edge report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mate_edge.cli.complete import one_of, words
from mate_edge.cli.shared import ENGINE_HELP, app, say
from mate_edge.extras import extra
from mate_edge.machine import check_threads

if TYPE_CHECKING:
    from mate_edge.report.subject import Subject


@app.command()
def report(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN or BUNDLE]", help="Default: the newest run, else bundle."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file, or the folder of md, svg and png; default: in reports."),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="html (one page), md, svg or png.",
            autocompletion=words("html", "md", "svg", "png"),
        ),
    ] = "html",
    images: Annotated[
        Path | None,
        typer.Option(help="With a bundle: labelled images, DIR/CLASS/*.jpg, to count on and show."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"With a bundle: {ENGINE_HELP}", autocompletion=one_of("engine")),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="With a bundle: of the CPU engine, as when benched.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Write a page about a run or a bundle: verdict, costs, classes, images.

    Example: mate-edge report --out mine.html
    """
    check_threads(threads)
    with extra("report"):
        import jinja2  # noqa: F401 - what it lacks is said before anything takes its time
        import matplotlib  # noqa: F401

        from mate_edge.names import look_up
        from mate_edge.report.content import make_content
        from mate_edge.report.summary import summarize
        from mate_edge.report.write import FORMATS, choose_out, find_source, write_report

    look_up("--format", kind, FORMATS)
    folder, is_bundle = find_source(source, (images, engine, threads) != (None,) * 3)
    where = choose_out(folder.resolve().name.removesuffix(".mate"), kind, out)
    if is_bundle:
        from mate_edge.bundle import read_bundle
        from mate_edge.runtime.reported import gather_bundle

        subject = gather_bundle(read_bundle(folder), images, engine, threads, say)
    else:
        subject = _of_run(folder)
    content, found = make_content(subject)
    write_report(content, kind, where)
    if json:
        import msgspec

        print(msgspec.json.encode(summarize(content, found, where)).decode())
        return
    print(content.verdict.headline)
    print(f"report: {where}")


def _of_run(folder: Path) -> Subject:
    """Gather a run: its costs are counted anew, and its data set is looked for."""
    with extra("train"):
        from mate_edge.export.profile import profile_network
        from mate_edge.report.subject import ExitCost
        from mate_edge.train.network import load_network
        from mate_edge.train.reported import gather_run
    from mate_edge import runs

    trained = runs.read_finished_run(folder)
    pre = trained.preprocessing
    profile = profile_network(load_network(folder, trained), pre.channels, pre.size)
    costs = [
        ExitCost(cost.cumulative_flops, cost.parameters, cost.border_bytes)
        for cost in profile.exits
    ]
    return gather_run(folder, trained, costs, profile.unsplit_flops)
