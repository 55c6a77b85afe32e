"""The run that a benchmark is of: the user's own, or one that is trained once."""

from __future__ import annotations

from pathlib import Path

from mate_edge.runs import Run, read_finished_run
from mate_edge.train.options import Options, check_options
from mate_edge.train.start import run_training


def find_or_train(own: Path | None, folder: Path, options: Options) -> tuple[Path, Run]:
    """Return the user's run, or the one in `folder`, trained there when there is none yet.

    Raises:
        RunError: the run is not finished.
        UsageError: the one in `folder` was trained with other options.
    """
    if own is not None:
        return own, read_finished_run(own)
    if not folder.exists():
        run_training(options, folder, resume=False)
    run = read_finished_run(folder)
    check_options(folder, run, options)
    return folder, run
