"""What is counted while an epoch trains."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mate_edge.errors import RunError
from mate_edge.train.progress import percentages
from mate_edge.train.state import Position, Row

Batch = tuple[Tensor, Tensor]


class Diverged(RunError):  # noqa: N818 - what became of the training
    """A training whose loss or weights are no longer numbers, and never will be with its recipe."""


@dataclass
class EpochSums:
    """Sums over the batches of this process, kept on the device so that adding never waits.

    Attributes:
        epoch: from 0.
        steps: of the optimiser; with gradient accumulation a step has several batches.
        batches: how many were added.
        loss: their sum, a scalar.
        correct: how many images each exit classified rightly, [K]; [1] before the first.
        seen: how many images there were.
        bad_batch: the first batch whose loss was no number, from 1; 0 for none.
        earlier_s: seconds spent before an interruption.
        waited_s: seconds that this process spent on getting batches. A GPU may still be busy with
            the batch before, so there it is an upper bound of what more workers can save.
    """

    epoch: int
    steps: int
    batches: int
    loss: Tensor
    correct: Tensor
    seen: int
    bad_batch: Tensor
    earlier_s: float
    waited_s: float
    started: float

    @classmethod
    def begin(cls, position: Position, accelerator: Accelerator) -> EpochSums:
        """Start an epoch, or go on in the midst of one.

        Raises:
            RunError: in the midst, and with another number of processes.
        """
        device = accelerator.device
        batches, seen, seconds, waited, loss, *correct = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        if position.step:
            processes = len(position.sums)
            if processes != accelerator.num_processes:
                raise RunError(
                    f"the training stopped within an epoch of {processes} processes and cannot go "
                    f"on with {accelerator.num_processes}: resume it with {processes}"
                )
            batches, seen, seconds, waited, loss, *correct = position.sums[
                accelerator.process_index
            ]
        return cls(
            epoch=position.epoch,
            steps=position.step,
            batches=int(batches),
            loss=torch.tensor(loss, device=device),
            correct=torch.tensor(correct, device=device),
            seen=int(seen),
            bad_batch=torch.zeros((), dtype=torch.int64, device=device),
            earlier_s=seconds,
            waited_s=waited,
            started=time.perf_counter(),
        )

    @property
    def seconds(self) -> float:
        """How long the epoch has been trained."""
        return self.earlier_s + time.perf_counter() - self.started

    @property
    def waiting(self) -> float:
        """The share of this time that passed without a batch to train on."""
        return self.waited_s / self.seconds

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, noting how long each but the first, for which workers start, took."""
        batches = iter(loader)
        yield from itertools.islice(batches, 1)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its loss, a scalar, logits [B, K, C], and labels [B] or [B, C]."""
        classes = labels.argmax(dim=-1) if labels.is_floating_point() else labels
        self.batches += 1
        self.loss = self.loss + loss
        self.correct = self.correct + (logits.argmax(dim=-1) == classes[:, None]).sum(dim=0)
        self.seen += len(labels)
        is_first = (self.bad_batch == 0) & ~loss.isfinite()
        self.bad_batch = torch.where(is_first, self.batches, self.bad_batch)

    def check(self, accelerator: Accelerator) -> None:
        """Refuse to go on once the loss of any process was no number; all of them must ask.

        Raises:
            Diverged: with the step.
        """
        found = [bad for bad in accelerator.gather(self.bad_batch[None]).tolist() if bad]
        if found:
            bad = min(found)
            step = -(-bad * self.steps // self.batches) if self.steps else 1
            raise Diverged(f"the loss is no number at step {step} of epoch {self.epoch + 1}")

    def line(self, accelerator: Accelerator) -> str:
        """Return what the progress bar shows.

        Raises:
            Diverged: as `check`.
        """
        self.check(accelerator)
        exits = percentages((self.correct / self.seen).tolist())
        speed = self.seen * accelerator.num_processes / self.seconds
        mean = float(self.loss) / self.batches
        return f"loss {mean:.3f}  exits {exits} %  {speed:.0f} images/s"

    def row(self, accelerator: Accelerator) -> Row:
        """Return the epoch's row: mean loss and accuracies over all processes, and the speed."""
        counts = torch.tensor([self.batches, self.seen], device=accelerator.device)
        sums = torch.cat([counts, self.loss[None], self.correct])
        batches, seen, loss, *correct = accelerator.reduce(sums).tolist()
        seconds = self.seconds
        return {
            "loss": loss / batches,
            **{f"train_accuracy_{k}": count / seen for k, count in enumerate(correct, start=1)},
            "images_per_s": seen / seconds,
            "seconds": seconds,
            "waiting": self.waited_s / seconds,
        }

    def position(self, accelerator: Accelerator) -> Position:
        """Return where the training stands, for `save_state`; all processes must call it."""
        times = (self.seconds, self.waited_s)
        own = (self.batches, self.seen, *times, float(self.loss), *self.correct.tolist())
        return Position(epoch=self.epoch, step=self.steps, sums=tuple(gather_object([own])))
