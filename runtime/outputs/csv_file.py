"""A CSV file of answers, a row as soon as each comes: whatever ends the run, they are in it."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mate_edge.errors import UsageError
from mate_edge.files import shown
from mate_edge.runtime.outputs.answer import Answer, Output

COLUMNS = (
    *("source", "frame", "time_s", "label", "steady", "index", "confidence", "exit", "halted_by"),
    *("elapsed_ms", "deadline_missed"),
)
HEADER = f"{','.join(COLUMNS)}\r\n".encode()


class CsvFile(Output):
    """Rows of `COLUMNS`, each handed to the system before the next image is looked at.

    An older file stays until the first row comes. A row that does not fit on the disk leaves no
    part of itself.

    Args:
        path: of the file.
        patient: whether a steady label is kept; that column stays empty otherwise.

    Raises:
        UsageError: it cannot be written, another run writes it, or it holds something other than
            such rows.
    """

    def __init__(self, path: Path, patient: bool) -> None:
        self._path, self._patient = path, patient
        self._was_there = path.exists()
        self._is_file = path.is_file() or not self._was_there
        with _writing(path):
            if path.is_file() and not _may_be_replaced(path):
                raise UsageError(
                    f"{path} is there and holds no answers of run: write to another file"
                )
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            if self._is_file and not _is_ours_alone(self._file.fileno()):
                self._file.close()
                raise UsageError(f"{path} is written by another run just now: take another file")
        self._bytes = 0

    def add(self, answer: Answer) -> None:
        """Write a row."""
        shot, found = answer.shot, answer.prediction
        row = (
            shown(shot.source),
            shot.number,
            None if shot.time_s is None else f"{shot.time_s:.3f}",
            found.label,
            answer.label if self._patient else None,
            found.index,
            f"{found.confidence:.6f}",
            found.exit,
            found.halted_by,
            f"{found.elapsed_ms:.3f}",
            str(found.deadline_missed).lower(),
        )
        text = io.StringIO()
        csv.writer(text).writerow(row)
        data = text.getvalue().encode()
        with _writing(self._path):
            if not self._bytes:
                self._cut()
                data = HEADER + data
            try:
                self._write(data)
            except OSError:
                self._cut()
                raise
            self._bytes += len(data)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def _cut(self) -> None:
        """Keep the rows of this run alone."""
        if self._is_file:  # a pipe or a device has nothing to be cut
            self._file.truncate(self._bytes)

    def close(self) -> None:
        """Close it, once or more; a file without rows that was not there before goes again."""
        with _writing(self._path):
            self._file.close()
        if not self._bytes and not self._was_there:
            self._path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn whatever keeps it from being written into a line: it may be a pipe or a socket, too."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _is_ours_alone(descriptor: int) -> bool:
    """Lock a file until it is closed; False when another process has; some disks know no locks."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def _may_be_replaced(path: Path) -> bool:
    """Say whether a file is empty or begins like one of `CsvFile`."""
    with open(path, "rb") as file:
        return file.read(len(HEADER)) in (b"", HEADER)
