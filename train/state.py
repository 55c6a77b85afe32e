"""The state that a training resumes from: written whole, the last one kept."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils import load as load_safely
from accelerate.utils.constants import RNG_STATE_NAME
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mate_edge import files
from mate_edge.errors import RunError, UsageError, first_line
from mate_edge.runs import METRICS
from mate_edge.train.network import MultiExitNet

STATE = "state"
POSITION = "position.json"
INITIAL = "initial.safetensors"
Row = dict[str, Any]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training stands.

    Attributes:
        epoch: how many are complete.
        step: how many steps of the next one are done.
        sums: of that unfinished epoch, each process's own: see `EpochSums`.
        row: of the last complete epoch, which `metrics.csv` may not have yet.
        answers: of the network, see `probe`; empty: of an earlier version, or no numbers.
    """

    epoch: int = 0
    step: int = 0
    sums: tuple[tuple[float, ...], ...] = ()
    row: Row | None = None
    answers: tuple[float, ...] = ()


def save_state(accelerator: Accelerator, folder: Path, position: Position) -> None:
    """Keep model, method, optimiser and random states; drop the states before.

    Raises:
        UsageError: one of the processes cannot write; the state before is kept.
    """
    name = f"epoch-{position.epoch}" + (f"-step-{position.step}" if position.step else "")
    final, temporary = folder / STATE / name, folder / STATE / ".writing"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def end() -> None:
        files.write_json(temporary / POSITION, position)
        files.publish(temporary, final)
        for old in (folder / STATE).glob("epoch-*"):
            if old != final:  # first out of the way: a half removed state must not be found
                old.rename(temporary)
                shutil.rmtree(temporary)

    def write() -> None:
        accelerator.save_state(str(temporary), safe_serialization=True)

    for part, alone in ((begin, True), (write, False), (end, True)):
        reason = ""
        if accelerator.is_main_process or not alone:
            try:
                part()
            except (OSError, UsageError, RuntimeError, SafetensorError) as error:
                reason = first_line(error)
        if reasons := [found for found in gather_object([reason]) if found]:  # waits for all
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise UsageError(
                f"cannot write {final} ({reasons[0]}): the state before it is kept; make room, "
                f"then type mate-edge train --resume --out {folder}"
            )


def load_state(accelerator: Accelerator, folder: Path) -> Position:
    """Load the newest state, if there is one, and return where it stands.

    Raises:
        RunError: it is damaged or of another network.
    """
    found = []
    for path in (folder / STATE).glob("epoch-*"):
        data = files.read_bytes(path / POSITION, files.MAX_JSON_BYTES, RunError)
        try:
            position = msgspec.json.decode(data, type=Position)
        except msgspec.DecodeError as error:
            raise _damaged(path, error) from None
        found.append((position.epoch, position.step, path, position))
    if not found:
        return Position()
    *_, path, position = max(found)
    try:
        accelerator.load_state(str(path))  # weights_only: never unpickles code
        _check_random(path / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl")
    except Exception as error:  # torch, safetensors and zipfile raise a dozen types on damage
        raise _damaged(path, error) from None
    return position


def _check_random(path: Path) -> None:
    """Raise what is wrong with a random state, of which accelerate tells only its log.

    A process that was not there when the state was written has none.
    """
    if any(path.parent.glob(f"{RNG_STATE_NAME}_*.pkl")) and not path.exists():
        return
    found = load_safely(path)
    if not torch.equal(found["torch_manual_seed"], torch.get_rng_state()):
        raise RunError(f"{path.name} was not loaded")


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path} cannot be loaded ({first_line(error)}): remove it to train from the beginning"
    )


def save_initial(folder: Path, network: MultiExitNet) -> None:
    """Keep imported weights, so that a training starts or resumes without their file."""
    weights = {name: t.contiguous().cpu() for name, t in network.state_dict().items()}
    (folder / STATE).mkdir()
    files.write_whole(folder / STATE / INITIAL, save_safetensors(weights))


def load_initial(folder: Path, network: MultiExitNet) -> None:
    """Load the imported weights that the training starts from.

    Raises:
        RunError: they are missing, damaged or of another network.
    """
    path = folder / STATE / INITIAL
    data = files.read_bytes(path, files.MAX_FILE_BYTES, RunError)
    try:
        network.load_state_dict(load_safetensors(data))
    except (SafetensorError, RuntimeError):
        raise RunError(f"{path} is damaged or of another network: train a new run") from None


def remove_state(folder: Path) -> None:
    """Drop what a finished run no longer needs."""
    shutil.rmtree(folder / STATE, ignore_errors=True)


def read_metrics(folder: Path, epochs_done: int) -> list[Row]:
    """Return the rows of `metrics.csv` up to the epoch that the state is of.

    Raises:
        RunError: it is no text.
    """
    path = folder / METRICS
    if epochs_done == 0 or not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))[:epochs_done]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}): remove it to go on without it") from None


def write_metrics(folder: Path, rows: list[Row]) -> None:
    """Write `metrics.csv`, one row an epoch, whole or not at all.

    A column that a row lacks, such as the accuracy of an epoch without validation, stays empty.
    """
    files.write_csv(folder / METRICS, rows)
