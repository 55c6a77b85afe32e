"""A CSV file of answers, a row as soon as each comes: whatever ends the run, they are in it."""

from __future__ import annotations

import csv
from pathlib import Path

from mate_edge.files import write_errors
from mate_edge.runtime.outputs.answer import Answer, Output
from mate_edge.runtime.sources.images import shown

COLUMNS = (
    *("source", "frame", "time_s", "label", "steady", "index", "confidence", "exit", "halted_by"),
    *("elapsed_ms", "deadline_missed"),
)


class CsvFile(Output):
    """Rows of `COLUMNS`, each flushed to the system before the next image is looked at.

    An older file stays until the first row comes.

    Args:
        path: of the file.
        patient: whether a steady label is kept; that column stays empty otherwise.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path, patient: bool) -> None:
        self._path, self._patient = path, patient
        self._was_there = path.exists()
        self._rows = 0
        with write_errors(path):
            self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.writer(self._file)

    def add(self, answer: Answer) -> None:
        """Write a row."""
        shot, found = answer.shot, answer.prediction
        with write_errors(self._path):
            if not self._rows:
                if self._path.is_file():  # a pipe or a device has nothing to be cut
                    self._file.truncate(0)
                self._writer.writerow(COLUMNS)
            self._rows += 1
            self._writer.writerow(
                (
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
            )
            self._file.flush()

    def close(self) -> None:
        """Close it; a file without rows that was not there before goes again."""
        with write_errors(self._path):
            self._file.close()
        if not self._rows and not self._was_there:
            self._path.unlink()
