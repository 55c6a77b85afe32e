"""Errors meant for users: one line that says what was wrong, with which value, and what to do.

The command line prints them and exits with code 2. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations


class MateEdgeError(Exception):
    """The base of every error that a user can mend."""

    exit_code = 2


class UsageError(MateEdgeError):
    """An option, a name or a combination of them that makes no sense."""


class DataError(MateEdgeError):
    """A data set that is missing, empty or malformed."""


class ImageError(MateEdgeError):
    """An image that cannot be read."""


class RunError(MateEdgeError):
    """A run folder that is missing, unfinished, altered or of a newer schema."""


class TrainingStopped(MateEdgeError):  # noqa: N818 - no error: somebody asked for it
    """A training that a signal ended; its state is saved.

    Args:
        message: how to go on.
        signal_number: the exit code is the shell's for this signal, 128 above it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class BundleError(MateEdgeError):
    """A bundle that is missing, altered, truncated or of a newer schema."""


class ExportError(MateEdgeError):
    """A segment that cannot be exported as asked, or that does not compute what it should."""


class EngineError(MateEdgeError):
    """An engine that cannot be had on this device, or that failed."""


class EngineNotBuilt(EngineError):  # noqa: N818 - the state of the engine, named as users see it
    """An engine that must be built on this device first."""


BROKEN_PIPE = 141
"""The shell's exit code of a process whose reader went away."""


def first_line(error: BaseException) -> str:
    """Return the first line of what somebody else's exception says, or else its kind."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
