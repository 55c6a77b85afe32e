"""The command line. A command imports its stage only when it is called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mate_edge import __version__
from mate_edge.errors import MateEdgeError, UsageError

app = typer.Typer(
    help="Train multi-exit image classifiers and run them under a deadline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line: exit code 2 and one line on stderr for a mistake of the user."""
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    try:
        sys.exit(app(prog_name="mate-edge", standalone_mode=False))
    except MateEdgeError as error:
        sys.exit(_complain(str(error)))
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own usage errors
            sys.exit(_complain(error.format_message()))
        raise


def _complain(message: str) -> int:
    print(f"mate-edge: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing optional dependency into a line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install 'mate-edge[{name}]'") from None


@app.callback()
def _global(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    data: Annotated[
        str | None, typer.Option(help="A data set's name or a folder of images.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="The backbone.")] = None,
    method: Annotated[str | None, typer.Option(help="mate or ce.")] = None,
    head: Annotated[str | None, typer.Option(help="sepconv, bottleneck or linear.")] = None,
    method_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, such as beta=0.6; repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="The first learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and variations.")] = None,
    size: Annotated[int | None, typer.Option(help="Input pixels, for folders.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest run, or --out.")] = False,
) -> None:
    """Train a multi-exit network; writes a run folder."""
    with _extra("train"):
        from mate_edge.report.text import print_results
        from mate_edge.train.start import Options, run_training

    options = Options(
        data, arch, head, method, _pairs(method_option), epochs, batch_size, lr, seed, size,
        precision,
    )  # fmt: skip
    folder, run = run_training(options, out, resume)
    print_results(folder, run)


def _pairs(given: list[str] | None) -> dict[str, float]:
    pairs = {}
    for pair in given or []:
        name, _, value = pair.partition("=")
        try:
            pairs[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--method-option takes NAME=NUMBER, not {pair!r}") from None
    return pairs
