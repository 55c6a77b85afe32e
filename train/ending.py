"""The end of an epoch and of a training: evaluate, write, and stop when a signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors

from mate_edge import files
from mate_edge.errors import TrainingStopped
from mate_edge.runs import Results, Run, write_run
from mate_edge.stop import StopSignal
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.images import Images
from mate_edge.train.evaluate import (
    compute_logits,
    cumulative_flops,
    exit_accuracy,
    is_chance,
    spread,
)
from mate_edge.train.network import WEIGHTS, MultiExitNet
from mate_edge.train.progress import TrainingProgress, percentages
from mate_edge.train.state import Row, remove_state, write_metrics

SAMPLE_IMAGES = 64
"""How many validation images the run keeps, for the check of an export."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """What is done when the steps of an epoch are done, and when those of all epochs are.

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
        validated: the validation split's logits [n, K, C] of the last epoch that was validated.
    """

    accelerator: Accelerator
    folder: Path
    run: Run
    network: MultiExitNet
    dataset: Dataset
    rows: list[Row]
    progress: TrainingProgress
    stop: StopSignal
    validated: list[NDArray[np.float32]] = field(default_factory=list)

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

    def finish(self) -> None:
        """Write weights, outputs and results; drop the state.

        Raises:
            TrainingStopped: a signal came before there was anything to write; the state is kept.
        """
        logits = None
        if self.accelerator.is_main_process:
            logits = self._until_signal(
                lambda: (self._val_logits(), self._logits(self.dataset.test))
            )
        if should_stop(self.accelerator, self.stop):
            raise stopped("the last epoch", self.folder, self.stop)
        if logits is not None:
            results = self._write(*logits)
            remove_state(self.folder)
            self._warn(results)

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
        self.validated.clear()
        accuracies, ensemble = exit_accuracy(self._val_logits(), self.dataset.val.labels)
        return {
            **{f"val_accuracy_{k}": a for k, a in enumerate(accuracies, start=1)},
            "val_ensemble": ensemble,
        }

    def _val_logits(self) -> NDArray[np.float32]:
        """Return those of the weights that were validated last, or else of those of now."""
        if not self.validated:
            self.validated.append(self._logits(self.dataset.val))
        return self.validated[0]

    def _logits(self, images: Images) -> NDArray[np.float32]:
        preprocessing, device = self.dataset.preprocessing, self.accelerator.device
        return compute_logits(self.network, images, preprocessing, device)

    def _write(self, val_logits: NDArray[np.float32], test_logits: NDArray[np.float32]) -> Results:
        """Write what a finished run has, from the logits [n, K, C] of both splits."""
        dataset, preprocessing = self.dataset, self.dataset.preprocessing
        val_accuracy, val_ensemble = exit_accuracy(val_logits, dataset.val.labels)
        test_accuracy, test_ensemble = exit_accuracy(test_logits, dataset.test.labels)
        sample = spread(len(dataset.val.labels), SAMPLE_IMAGES)
        weights = {name: t.contiguous().cpu() for name, t in self.network.state_dict().items()}
        outputs: dict[str, Any] = {
            "val_logits": val_logits,
            "val_labels": dataset.val.labels,
            "val_images": dataset.val.plain(sample.tolist(), preprocessing),
            "val_image_indices": sample,
            "test_logits": test_logits,
            "test_labels": dataset.test.labels,
        }
        contents = {
            WEIGHTS: save_safetensors(weights),
            "outputs.npz": files.arrays_to_bytes(outputs),
        }
        for name, data in contents.items():
            files.write_whole(self.folder / name, data)
        results = Results(
            val_accuracy=val_accuracy,
            val_ensemble=val_ensemble,
            test_accuracy=test_accuracy,
            test_ensemble=test_ensemble,
            cumulative_flops=cumulative_flops(self.network, preprocessing),
        )
        hashes = {name: files.sha256(data) for name, data in contents.items()}
        write_run(self.folder, msgspec.structs.replace(self.run, results=results, files=hashes))
        return results

    def _warn(self, results: Results) -> None:
        """Say that a training came to nothing, as one that diverged may without a NaN."""
        classes, images = len(self.run.classes), len(self.dataset.val.labels)
        if all(is_chance(accuracy, classes, images) for accuracy in results.val_accuracy):
            self.progress.say(
                f"no exit is better than chance among {classes} classes: lower --lr, or give more "
                "--epochs"
            )

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
