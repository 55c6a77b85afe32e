"""The state that a training resumes from: one folder an epoch, written whole, the last one kept."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mate_edge import files
from mate_edge.errors import RunError
from mate_edge.train.network import MultiExitNet

STATE = "state"
INITIAL = "initial.safetensors"
METRICS = "metrics.csv"
Row = dict[str, Any]


def save_state(accelerator: Accelerator, folder: Path, epochs_done: int) -> None:
    """Keep model, method and optimiser after `epochs_done` epochs; drop the states before."""
    final = folder / STATE / f"epoch-{epochs_done}"
    temporary = folder / STATE / ".writing"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files.publish(temporary, final)
        for old in (folder / STATE).glob("epoch-*"):
            if old != final:
                shutil.rmtree(old)


def load_state(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest state, if there is one, and return how many epochs are done.

    Raises:
        RunError: it is damaged or of another network.
    """
    states = {int(path.name[6:]): path for path in (folder / STATE).glob("epoch-*")}
    if not states:
        return 0
    epochs_done = max(states)
    try:
        accelerator.load_state(str(states[epochs_done]))  # weights_only: never unpickles code
    except Exception as error:  # torch, safetensors and zipfile raise a dozen types on damage
        raise RunError(
            f"{states[epochs_done]} cannot be loaded ({str(error).splitlines()[0]}): "
            f"remove it to train from the beginning"
        ) from None
    return epochs_done


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
    """Return the rows of `metrics.csv` up to the epoch that the state is of."""
    path = folder / METRICS
    if epochs_done == 0 or not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[:epochs_done]


def write_metrics(folder: Path, rows: list[Row]) -> None:
    """Write `metrics.csv`, one row an epoch, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]))
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(folder / METRICS, text.getvalue().encode())
