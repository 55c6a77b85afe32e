"""`mate-edge tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of, words
from mate_edge.cli.shared import ENGINE_HELP, app, say
from mate_edge.errors import UsageError
from mate_edge.machine import check_threads


@app.command()
def tune(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Goal: points of accuracy below the last exit, at most.")
    ] = None,
    max_risk: Annotated[
        str | None, typer.Option(help="Goal: a guaranteed share of lost answers: 0.01 or 1%.")
    ] = None,
    budget_flops: Annotated[
        float | None, typer.Option(help="Goal: mean FLOPs of an image, at most, such as 5e6.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Goal: mean ms of an image on this device, at most.")
    ] = None,
    delta: Annotated[
        str | None,
        typer.Option(help="With --max-risk: how often the guarantee may be wrong; 0.05 or 5%."),
    ] = None,
    mean_risk: Annotated[
        bool, typer.Option("--mean-risk", help="With --max-risk: bound the mean only.")
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="With --max-risk: worse (wrong where the last exit is right) or differs.",
            autocompletion=words("worse", "differs"),
        ),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="With --max-risk: certify under this deadline too, ms.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="confidence, entropy, margin or ensemble.", autocompletion=one_of("thresholds")
        ),
    ] = "confidence",
    name: Annotated[
        str | None, typer.Option(help="For run --policy, on this device; default: tuned.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file too, FILE.json.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Labelled images to choose by, DIR/CLASS/*.jpg; default: validation's."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"For ms, and --images. {ENGINE_HELP}", autocompletion=one_of("engine")),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show what is stored for the bundle, and tune nothing.")
    ] = False,
    remove: Annotated[
        str | None, typer.Option(help="Forget the one stored under this name, and tune nothing.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find thresholds for one goal; say what is guaranteed.

    Example: mate-edge tune --max-risk 5% --name certified

    Give one goal: --max-drop, --max-risk, --budget-flops or --budget-ms. The operating point is
    stored on this device under --name, for run --policy, and in a file with --out.
    """
    import msgspec

    from mate_edge.bundle import find_bundle, read_bundle
    from mate_edge.report.tuned import print_kept, print_tuned
    from mate_edge.runtime.points import kept_point, remove_point, stored_names
    from mate_edge.runtime.tune import Goal, tune

    check_threads(threads)
    if show or remove is not None:
        chosen = (max_drop, max_risk, budget_flops, budget_ms, delta, loss, max_ms, name, out)
        if mean_risk or any(one is not None for one in (*chosen, images, engine, threads)):
            raise UsageError("--list and --remove tune nothing: --json alone goes with them")
        opened = read_bundle(find_bundle(bundle))
        if remove is not None:
            remove_point(opened, remove)
        kept = {name: kept_point(opened, name) for name in stored_names(opened)}
        if json:
            print(msgspec.json.encode(kept).decode())
        else:
            print_kept(kept, opened.manifest)
        return
    goal = Goal(
        max_drop=_points(max_drop),
        max_risk=_share("--max-risk", max_risk),
        budget_flops=budget_flops,
        budget_ms=budget_ms,
        delta=_share("--delta", delta),
        mean_risk=mean_risk,
        loss=loss,
        max_ms=max_ms,
    )
    opened = read_bundle(find_bundle(bundle))
    found, stored = tune(
        opened,
        goal,
        policy,
        name=name,
        out=out,
        images=images,
        engine=engine,
        threads=threads,
        say=say,
    )
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_tuned(found, opened.manifest)
        if stored is not None:
            print(f"stored: mate-edge run --policy {stored}")
    if stored is None:  # which was said
        raise typer.Exit(2)


def _points(given: str | None) -> float | None:
    """Read points of accuracy, such as 0.5 or 0.5%."""
    if given is None:
        return None
    try:
        return float(given.removesuffix("%"))
    except ValueError:
        raise UsageError(f"--max-drop takes points such as 0.5, not {given!r}") from None


def _share(option: str, given: str | None) -> float | None:
    """Read a share, such as 0.01 or 1%."""
    if given is None:
        return None
    try:
        return float(given[:-1]) / 100 if given.endswith("%") else float(given)
    except ValueError:
        raise UsageError(f"{option} takes a share such as 0.01 or 1%, not {given!r}") from None
