"""Batches for training: shuffled, augmented, and the same again for the same seed and epoch."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from mate_edge.images import normalize
from mate_edge.machine import cpu_count
from mate_edge.runs import Recipe
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.data.images import FileImages
from mate_edge.train.data.regularize import RandAugment, mix_up, smooth

Key = tuple[int, int]
"""(epoch, index): what a batch is made of, so that workers need no state."""


class TrainingImages(TorchDataset[tuple[Tensor, int]]):
    """Augmented training images, fetched a batch at a time."""

    def __init__(self, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        self.dataset, self.recipe, self.seed = dataset, recipe, seed
        self.vary = RandAugment(recipe.randaugment) if recipe.randaugment else None

    def __len__(self) -> int:
        return len(self.dataset.train.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, C, H, W] and labels.

        Labels are int64 [B], or probabilities float32 [B, classes] when the recipe softens them.
        """
        dataset, recipe, seed = self.dataset, self.recipe, self.seed
        epoch, indices = keys[0][0], [index for _, index in keys]
        flip = dataset.flip if recipe.flip is None else recipe.flip
        pixels = dataset.train.augmented(
            indices, dataset.preprocessing, flip=flip, seed=seed, epoch=epoch
        )
        if self.vary:
            pixels = self.vary(pixels, seed, epoch, indices)
        images = torch.from_numpy(normalize(pixels, dataset.preprocessing))
        labels = torch.from_numpy(dataset.train.labels[indices])
        if recipe.label_smoothing or recipe.mixup:
            labels = smooth(labels, len(dataset.classes), recipe.label_smoothing)
        if recipe.mixup:  # an epoch has each index once, so the first one tells batches apart
            images, labels = mix_up(images, labels, recipe.mixup, (seed, epoch, indices[0]))
        return images, labels


class EpochOrder(Sampler[Key]):
    """The indices of an epoch's whole steps, in an order that depends on the seed and `epoch`.

    The loop sets `epoch`, and `start` when it goes on in the midst of an epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.used = length - length % batch_size
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.used - self.start

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch, self.length]).permutation(self.length)
        return ((self.epoch, int(index)) for index in order[self.start : self.used])


def make_loader(
    dataset: Dataset, recipe: Recipe, seed: int, workers: int | None = None
) -> tuple[DataLoader[tuple[Tensor, int]], EpochOrder]:
    """Return a loader of training batches, and its sampler, whose `epoch` must be set.

    With gradient accumulation a batch is a part of a step's.

    Args:
        dataset: whose training images are wanted.
        recipe: its batch size and variations.
        seed: decides order and variations.
        workers: processes that prepare batches, which are the same whatever this is; see
            `choose_workers` when None.
    """
    order = EpochOrder(len(dataset.train.labels), recipe.batch_size, seed)
    if workers is None:
        workers = choose_workers(dataset, recipe)
    if workers > cpu_count():
        _note_workers(workers)
    loader = DataLoader(
        TrainingImages(dataset, recipe, seed),
        recipe.batch_size // recipe.accumulate,
        sampler=order,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_is,
        worker_init_fn=_leave_the_group,
        generator=torch.Generator(),  # else each new epoch draws from what dropout draws from
    )
    return loader, order


def _note_workers(workers: int) -> None:
    """Say that there are more workers than CPUs, once: torch warns in each loader that is made."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    if os.environ.get("RANK", "0") == "0":
        print(
            f"--workers {workers} is more than the CPUs here, {cpu_count()}: that pays only where "
            "images come over a network",
            file=sys.stderr,
        )


def choose_workers(dataset: Dataset, recipe: Recipe) -> int:
    """Return how many workers pay: none for a quick crop and flip in memory.

    Files and RandAugment get one a core, but for the core that trains; where several processes of
    one machine train together, each gets its share.
    """
    slow = isinstance(dataset.train, FileImages) or recipe.randaugment > 0
    share = cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, share - 1) if slow else 0


def waiting_advice(share: float, workers: int) -> str:
    """Say what to do when a `share` of an epoch's time passed without a batch to train on."""
    if workers == 0:
        remedy = "give --workers 1 or more"
    else:
        remedy = (
            "scale large files down to about the input's size, vary them less, or, where cores "
            f"are free, give more than --workers {workers}"
        )
    return f"{share:.0%} of this epoch was spent waiting for images: {remedy}"


def _leave_the_group(worker: int) -> None:
    """Go on when the whole group gets a signal: the main process still ends its step and saves."""
    os.setpgid(0, 0)


def _as_is(batch: Any) -> Any:
    return batch
