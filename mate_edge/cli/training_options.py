"""The options of a training on the command line, shared by the commands that train."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mate_edge.cli.complete import one_of, words

EXITS_HELP = (
    "How many (as many as the backbone has stages: at their ends), or at which fractions of its "
    "FLOPs, such as 0.25,0.5,0.75."
)


def training_options(
    data: Annotated[
        str | None,
        typer.Option(
            help="A data set's name or a folder of images.", autocompletion=one_of("data")
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="The backbone, or your own: package.module:name.", autocompletion=one_of("arch")
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="pooled, sepconv, bottleneck or linear.", autocompletion=one_of("head")),
    ] = None,
    exits: Annotated[str | None, typer.Option(help=EXITS_HELP)] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from torchvision's ImageNet weights.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Start from your network's state dict.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, in your network's order.")
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Train the early heads alone.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Split each batch into so many parts, computed one by one.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="sgd or adamw; adamw: a hundredth of the rate, weight decay 0.05.",
            autocompletion=words("sgd", "adamw"),
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The first learning rate, after any warm-up.")
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="SGD's, or AdamW's first beta; 0.9.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of the network's weights; never of a method's own.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of the rate: step, tenfold down at each milestone, or cosine, down to 0.",
            autocompletion=words("step", "cosine"),
        ),
    ] = None,
    milestones: Annotated[
        str | None,
        typer.Option(help="With step: rising fractions of the epochs, such as 0.5,0.75."),
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Epochs in which the rate rises to --lr; 0.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16.", autocompletion=words("fp32", "bf16", "fp16")),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input pixels, for sets in files.")] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            help="The shorter side before --size (128 or more) is cut; default: 256 / 224 of it."
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Of a channel or of each, pixels from 0 to 1; default: the data's."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="The deviation, likewise.")] = None,
    train_images: Annotated[
        int | None, typer.Option(help="Train on this many of the training images.")
    ] = None,
    randaugment: Annotated[
        int | None, typer.Option(help="RandAugment's magnitude, 1 to 30.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="The share of a label that goes to all classes.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="MixUp's alpha, such as 0.2.")] = None,
    flip: Annotated[
        bool | None,
        typer.Option(help="Mirror images at random; default: yes, except for digits."),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Validate each so many epochs, and after the last.")
    ] = None,
) -> dict[str, Any]:
    """Return the options as `mate_edge.train.options.Options` takes them."""
    given = dict(locals())
    for flag in ("pretrained", "freeze_backbone"):  # not given: whatever a run to resume has
        given[flag] = given[flag] or None
    return given


def takes_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first argument is `options`, those of `training_options`."""
    shared = inspect.signature(training_options, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        options = training_options(**{name: given.pop(name) for name in shared})
        command(options, **given)

    parameters = [*shared.values(), *list(own.values())[1:]]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped
