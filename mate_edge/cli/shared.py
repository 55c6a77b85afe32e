"""What the commands share: the application, its errors and its exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from mate_edge import __version__
from mate_edge.cli.groups import HELP, InOrder, PipeBroke
from mate_edge.errors import BROKEN_PIPE, MateEdgeError, UsageError
from mate_edge.stop import was_interrupted
from mate_edge.warn import MateEdgeWarning

app = typer.Typer(
    cls=InOrder,
    help=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHOW_WARNING = warnings.showwarning
"""Python's own."""
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
"""A path that somebody gave cannot even be looked at; its file is named in the error."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)
"""A stream, which has no name, takes no more."""
ENGINE_HELP = (
    "onnxruntime, openvino, tensorrt or tensorrt_rtx; default: build's fastest, or the bundle's."
)


def main() -> None:
    """Run the command line: exit code 2 and one line on stderr for a mistake of the user."""
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    warnings.showwarning = _show_warning
    # a service may start with closed streams, for which Python has None
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a class or file name may not fit the terminal's code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if "--json" in sys.argv and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's code
    try:
        _check_empty(sys.argv[1:])
        code = app(prog_name="mate-edge", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except MateEdgeError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, PipeBroke) and isinstance(error.__cause__, BrokenPipeError):
            if not _is_of_stdout(error.__cause__):
                raise error.__cause__ from None
            sys.exit(_end_stdout())
        if was_interrupted(error):
            sys.exit(130)
        if hasattr(error, "format_message"):  # Typer's own usage errors
            sys.exit(_complain(error.format_message()))
        if isinstance(error, OSError) and error.filename is not None and error.errno in NO_ACCESS:
            name = error.filename if len(str(error.filename)) < 200 else f"{error.filename!s:.80}…"
            sys.exit(_complain(f"cannot use {name}: {error.strerror}"))
        if isinstance(error, OSError) and _is_of_stdout(error):
            if isinstance(error, BrokenPipeError):
                sys.exit(_end_stdout())
            _end_stdout()
            sys.exit(_complain(f"cannot write to stdout: {error.strerror}"))
        raise


def _end_stdout() -> int:
    """Let what is flushed at the end not fail again; return the exit code if nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as any other line, and not with a place in the code."""
    if issubclass(category, MateEdgeWarning):
        say(str(message))
    else:
        SHOW_WARNING(message, category, filename, lineno, file, line)


def _check_empty(typed: Sequence[str]) -> None:
    """Refuse an argument or a value that is empty: as a path it would mean the working folder.

    Raises:
        UsageError: with what stands before it.
    """
    for before, argument in zip(("mate-edge", *typed), typed, strict=False):
        name, given, value = argument.partition("=")
        if argument == "" or (name.startswith("--") and given and not value):
            what = argument or f"what follows {before}"
            raise UsageError(
                f"{what} is empty, as an unset variable is: give a value, . is the working folder"
            )


def _is_of_stdout(error: OSError) -> bool:
    """Say whether stdout takes no more; what it did not take is tried again, where it is kept."""
    if getattr(sys.stdout, "write_through", False):  # PYTHONUNBUFFERED keeps nothing
        return error.filename is None and error.errno in NO_ROOM
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _complain(message: str) -> int:
    say(" ".join(message.split()))
    return 2


def say(message: str) -> None:
    """Print a line for the user beside the answers."""
    from mate_edge.runtime.outputs.plain import plain, print_aside

    print_aside(f"mate-edge: {plain(message)}")


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
