"""The end of an epoch: validate, write, and stop when a signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator

from mate_edge.errors import TrainingStopped
from mate_edge.runs import Run
from mate_edge.stop import StopSignal
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.evaluate import compute_logits, exit_accuracy
from mate_edge.train.network import MultiExitNet
from mate_edge.train.progress import TrainingProgress, percentages
from mate_edge.train.state import Row, write_metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """What is done when the steps of an epoch are done.

    A machine may be taken away sooner than an evaluation ends, so a signal breaks it off. All
    processes call each method and agree on whether to stop; the first one evaluates and writes.

    Attributes:
        accelerator: of the training.
        folder: of the run.
        run: what is trained.
        network: not wrapped, since the other processes take no part.
        dataset: with the images to evaluate on.
        rows: those of `metrics.csv` so far.
        progress: where each epoch is told.
        stop: entered.
    """

    accelerator: Accelerator
    folder: Path
    run: Run
    network: MultiExitNet
    dataset: Dataset
    rows: list[Row]
    progress: TrainingProgress
    stop: StopSignal

    def conclude(self, row: Row) -> None:
        """Validate the epoch that `row` is of and write the row, unless it is there already.

        Raises:
            TrainingStopped: a signal came; the state that was kept has the row.
        """
        epoch = row["epoch"]
        written = any(str(other.get("epoch")) == str(epoch) for other in self.rows)
        if self.accelerator.is_main_process and not written:
            validated = self._until_signal(lambda: self._validate(epoch))
            if validated is not None:
                self.rows.append(row | validated)
                write_metrics(self.folder, self.rows)
                self.progress.say(self._line(self.rows[-1]))
        if should_stop(self.accelerator, self.stop):
            raise stopped(f"epoch {epoch}", self.folder, self.stop)

    def _until_signal(self, evaluate: Callable[[], T]) -> T | None:
        """Return what `evaluate` does; None as soon as there is a signal."""
        try:
            with self.stop.interrupts():
                return evaluate()
        except KeyboardInterrupt:
            return None

    def _validate(self, epoch: int) -> dict[str, float]:
        """Return the validation accuracies, if it is an epoch to validate after."""
        if epoch % self.run.validate_every and epoch < self.run.recipe.epochs:
            return {}
        images, device = self.dataset.val, self.accelerator.device
        logits = compute_logits(self.network, images, self.dataset.preprocessing, device)
        accuracies, ensemble = exit_accuracy(logits, images.labels)
        return {
            **{f"val_accuracy_{k}": a for k, a in enumerate(accuracies, start=1)},
            "val_ensemble": ensemble,
        }

    def _line(self, row: Row) -> str:
        split = "val" if "val_accuracy_1" in row else "train"
        exits = range(1, self.network.num_exits + 1)
        accuracies = [row[f"{split}_accuracy_{k}"] for k in exits]
        name = "validation" if split == "val" else "training"
        return (
            f"epoch {row['epoch']}/{self.run.recipe.epochs}  loss {row['loss']:.3f}  "
            f"{name} {percentages(accuracies)} %  {row['images_per_s']:.0f} images/s"
        )


def should_stop(accelerator: Accelerator, stop: StopSignal) -> bool:
    """Say whether any of the processes got a signal; all of them must ask."""
    if accelerator.num_processes == 1:
        return stop.received is not None
    if stop.received:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())


def stopped(after: str, folder: Path, stop: StopSignal) -> TrainingStopped:
    """Return the error that says how to go on, for a state that is saved."""
    return TrainingStopped(
        f"stopped after {after}: go on with mate-edge train --resume --out {folder}",
        stop.received or signal.SIGTERM,
    )
