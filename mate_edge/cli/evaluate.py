"""`mate-edge evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mate_edge.cli.complete import one_of
from mate_edge.cli.shared import ENGINE_HELP, app, say
from mate_edge.errors import UsageError
from mate_edge.extras import extra


@app.command()
def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN or BUNDLE]",
            help="Default: the newest run, or with DIR alone the newest bundle.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Labelled images, DIR/CLASS/*.jpg."),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="With DIR: the deadline of each image, ms.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="With DIR: write a CSV row for each image.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help=f"With DIR: {ENGINE_HELP}", autocompletion=one_of("engine"))
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count accuracy: of a run, or of a bundle on labelled images.

    Example: mate-edge evaluate

    Of a run: each exit, calibration and budgets, from the logits that training kept. Of a bundle:
    each exit and policy on this device, as in mate-edge evaluate [BUNDLE] DIR, with
    DIR/CLASS/*.jpg.
    """
    import msgspec

    from mate_edge.report.labelled import LabelledFigures, print_labelled
    from mate_edge.runtime.evaluate import choose_sources, evaluate_folder

    chosen = choose_sources(source, images)
    if chosen is None:
        if (max_ms, save, engine) != (None,) * 3:
            raise UsageError("--max-ms, --save and --engine go with a bundle and labelled images")
        _evaluate_run(source, json)
        return

    def show(found: LabelledFigures) -> None:
        if json:
            print(msgspec.json.encode(found).decode())
        else:
            print_labelled(found)

    found = evaluate_folder(*chosen, max_ms=max_ms, save=save, engine=engine, say=say, show=show)
    raise typer.Exit(1 if found.unreadable else 0)


def _evaluate_run(run: Path | None, json: bool) -> None:
    """Print exits, calibration and budgets; nothing runs again."""
    import msgspec

    from mate_edge import files, runs
    from mate_edge.decide.curves import evaluate_outputs

    with extra("train"):
        from mate_edge.report.evaluation import draw_evaluation, print_evaluation

        folder = runs.find_run(run, finished=True)
        trained = runs.read_finished_run(folder)
        flops = runs.read_flops(folder, trained)
        outputs = runs.read_outputs(folder, trained)
        found = evaluate_outputs(
            outputs["val_logits"],
            outputs["val_labels"],
            outputs["test_logits"],
            outputs["test_labels"],
            flops,
        )
        title = f"{trained.arch} on {Path(trained.data).name}, {trained.method}"
        if json:
            print(msgspec.json.encode(found).decode())
        else:
            print_evaluation(title, found)
        files.write_whole(folder / "evaluation.png", draw_evaluation(title, found))
    files.write_json(folder / "evaluation.json", found)
    if not json:
        print(f"curves: {folder / 'evaluation.png'}, figures: {folder / 'evaluation.json'}")
