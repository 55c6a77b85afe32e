"""From what the user asked for to a trained run: a new one, or one to resume."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from mate_edge import files
from mate_edge.errors import ImageError, RunError, UsageError, first_line
from mate_edge.runs import Run, find_run, read_run, write_run
from mate_edge.train.data import DATASETS
from mate_edge.train.data.again import load_again
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.loop import make_accelerator, train
from mate_edge.train.network import announce_import
from mate_edge.train.new import new_run
from mate_edge.train.options import Options, check_options
from mate_edge.train.state import remove_state
from mate_edge.train.sums import Diverged

LONGEST_EVALUATION = timedelta(hours=3)


def old_run(options: Options, out: Path | None) -> tuple[Path, Run, Dataset]:
    """Open a run to continue it; options given must say what the run says.

    A folder of images may have moved: `options.data` then names the new one, and the run notes it.

    Raises:
        RunError: there is no such run, or its data set is gone or has changed.
        UsageError: an option that differs from the run's.
    """
    folder = find_run(out)
    run = read_run(folder)
    moved = _moved(run, options.data)
    if moved is not None:
        options = dataclasses.replace(options, data=None)
    elif run.data not in DATASETS and not Path(run.data).is_dir():
        raise RunError(
            f"the images of {folder} are not in {run.data}: give --data FOLDER, where they are now"
        )
    check_options(folder, run, options)
    dataset = load_again(run, moved)
    if dataset is None:
        raise RunError(
            f"the images of {moved or run.data} have changed since {folder} began: train anew"
        )
    if moved is not None:
        data = str(moved.resolve())
        files.check_text((data,))
        run = msgspec.structs.replace(run, data=data)
        write_run(folder, run)
    return folder, run, dataset


def _moved(run: Run, data: str | None) -> Path | None:
    """Return the folder of the run's images if the user names another one than the run does."""
    if data is None or data in DATASETS or run.data in DATASETS:
        return None
    return None if str(Path(data).resolve()) == run.data else Path(data)


def is_main_process() -> bool:
    """Say whether this is the one process, of those training together, that speaks."""
    return bool(PartialState().is_main_process)


def run_training(
    options: Options,
    out: Path | None,
    resume: bool,
    workers: int | None = None,
    check: Callable[[Run], object] = lambda run: None,
) -> tuple[Path, Run]:
    """Do what `mate-edge train` does; return the run folder and the finished run.

    With several processes (`torchrun`, `accelerate launch`) the first one makes the folder; see
    `is_main_process`. `check` is called with the run before it is trained, and may raise.

    Raises:
        MateEdgeError: as `new_run`, `old_run` and `train`.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must be 0 or more, not {workers}")
    # the others wait while the first process evaluates
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_EVALUATION)
    with ExitStack() as held:
        shared = [""]
        if state.is_main_process:
            if resume:
                folder = find_run(out)
                if not read_run(folder).finished:
                    held.enter_context(_alone(folder))
                folder, run, dataset = old_run(options, folder)
                if not run.finished:
                    announce_import(folder, run)
            else:
                try:
                    folder, run, dataset = new_run(options, out, state.num_processes)
                except torch.cuda.OutOfMemoryError as error:  # already of the imported network
                    raise RunError(
                        "the GPU's memory is too small to evaluate the imported network "
                        f"({first_line(error)}): end what else uses it, or train on the CPU with "
                        "CUDA_VISIBLE_DEVICES= before the command"
                    ) from None
                held.enter_context(_alone(folder))
            check(run)
            shared = [str(folder)]
        broadcast_object_list(shared)
        if not state.is_main_process:
            folder, run, dataset = old_run(Options(), Path(shared[0]))
        elif dataset.note:
            print(dataset.note, file=sys.stderr)
        if run.finished:
            remove_state(folder)  # of a process that was killed right at the end
            return folder, run
        try:
            accelerator = make_accelerator(run.precision, run.recipe.accumulate)
            train(folder, run, dataset, accelerator, workers)
            return folder, read_run(folder)
        except Diverged as error:
            raise Diverged(
                f"{error}: --resume would end here again, so train anew with a lower --lr, such as "
                f"{run.recipe.lr / 10:g}, and another --out"
            ) from None
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(
                f"the GPU's memory is too small for this training ({first_line(error)}): train "
                "anew in parts of a batch, such as --accumulate 4, with --precision bf16 or a "
                "smaller --batch-size, and another --out"
            ) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(
                f"a process that prepares images was ended ({first_line(error)}): "
                f"{_helps(str(error))}mate-edge train --resume --out {folder} goes on"
            ) from None
        except ImageError as error:
            reason = str(error).rsplit("ImageError: ", 1)[-1].strip()  # a worker's: a traceback
            raise ImageError(
                f"{reason}: mend it, then type mate-edge train --resume --out {folder}"
            ) from None


def _helps(error: str) -> str:
    """Return what to do about a loader's process that was ended, where the signal tells."""
    if "Bus error" in error:
        return (
            "containers often have too little shared memory, so give it more (docker run "
            "--shm-size 2g), or add --workers 0; "
        )
    return "if memory ran out, add --workers 0; " if "Killed" in error else ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process is training in {folder}: wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
