"""What the commands share: the application, its errors and its exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from typing import Annotated

import typer

from mate_edge import __version__
from mate_edge.cli.groups import HELP, InOrder
from mate_edge.errors import MateEdgeError
from mate_edge.stop import was_interrupted

app = typer.Typer(
    cls=InOrder,
    help=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ENGINE_HELP = "onnxruntime, openvino, tensorrt or tensorrt_rtx; default: the bundle's."


def main() -> None:
    """Run the command line: exit code 2 and one line on stderr for a mistake of the user."""
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    # a service may start with closed streams, for which Python has None
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a class or file name may not fit the terminal's code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(prog_name="mate-edge", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except MateEdgeError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if was_interrupted(error):
            sys.exit(130)
        if hasattr(error, "format_message"):  # Typer's own usage errors
            sys.exit(_complain(error.format_message()))
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            sys.exit(_complain(f"no file can have so long a name: {error.filename!s:.80}…"))
        if isinstance(error, OSError) and not _can_print():
            # what is flushed at the end must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_complain(f"cannot write to stdout: {error.strerror}"))
        raise


def _can_print() -> bool:
    """Say whether stdout takes what is printed; what it did not take is tried again."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _complain(message: str) -> int:
    say(" ".join(message.split()))
    return 2


def say(message: str) -> None:
    """Print a line for the user beside the answers."""
    print(f"mate-edge: {message}", file=sys.stderr, flush=True)


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
