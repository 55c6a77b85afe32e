"""From a recipe to an optimiser and a learning rate for each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.runs import Recipe
from mate_edge.train.losses.method import Method
from mate_edge.train.network import MultiExitNet

FINE_TUNING = {"epochs": 20, "lr": 0.01}
"""What a data set's recipe changes to when the weights are imported."""

ADAMW_LR, ADAMW_WEIGHT_DECAY = 0.01, 0.05
"""The share of SGD's rate that AdamW takes, whose steps do not shrink with the gradient, and its
weight decay: from 0.1 that leads to torchvision's recipe for ConvNeXt."""


class Objective(nn.Module):
    """The network and its training method as one module, so that both are synchronised alike."""

    def __init__(self, network: MultiExitNet, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, images, labels):  # type: ignore[no-untyped-def]
        """Return the loss, a scalar, and the logits [B, K, C]."""
        logits = self.network(images).float()
        with torch.autocast(images.device.type, enabled=False):  # losses are differences: fp32
            return self.method(logits, labels), logits


Groups = list[dict[str, Any]]
"""Parameters with options of their own, as `torch.optim` takes them."""


def _sgd(groups: Groups, recipe: Recipe) -> Optimizer:
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def _adamw(groups: Groups, recipe: Recipe) -> Optimizer:
    return AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}
"""By name, from groups of parameters and the recipe to the optimiser."""


def make_optimizer(objective: Objective, recipe: Recipe) -> Optimizer:
    """Return the optimiser of both; the method's own parameters get no weight decay."""
    groups = [
        {"params": list(objective.network.parameters()), "weight_decay": recipe.weight_decay},
        {"params": list(objective.method.parameters()), "weight_decay": 0.0},
    ]
    return OPTIMIZERS[recipe.optimizer]([g for g in groups if g["params"]], recipe)


def _step(recipe: Recipe, epoch: int) -> float:
    return float(0.1 ** sum(epoch >= drop for drop in recipe.drops))


def _cosine(recipe: Recipe, epoch: int) -> float:
    """Half a wave after the warm-up, without restarts (Loshchilov & Hutter, arXiv:1608.03983)."""
    done = max(0, epoch - recipe.warm_up) / (recipe.epochs - recipe.warm_up)
    return (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Callable[[Recipe, int], float]] = {"step": _step, "cosine": _cosine}
"""By name, from the recipe and an epoch (from 0) to the share of the first rate."""


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the rate of an epoch (from 0); it depends on nothing else, so a resume has it too.

    In the epochs of the warm-up it rises by equal steps (Goyal et al., arXiv:1706.02677).
    """
    rate = recipe.lr * SCHEDULES[recipe.schedule](recipe, epoch)
    return rate * min(1.0, (epoch + 1) / (recipe.warm_up + 1))


def parse_milestones(text: str) -> tuple[float, ...]:
    """Return the fractions of `0.5,0.75`.

    Raises:
        UsageError: they are no rising numbers between 0 and 1.
    """
    try:
        milestones = tuple(float(part) for part in text.split(","))
    except ValueError:
        milestones = (math.nan,)
    if not all(a < b for a, b in pairwise((0.0, *milestones, 1.0))):
        raise UsageError(
            "--milestones takes rising fractions of the epochs between 0 and 1 such as 0.5,0.75, "
            f"not {text!r}"
        )
    return milestones


def check_recipe(recipe: Recipe, train_images: int, processes: int = 1) -> None:
    """Refuse a recipe that cannot work on so many images with so many processes.

    Raises:
        UsageError: with the option to change.
    """
    if recipe.epochs < 1:
        raise UsageError(f"--epochs must be 1 or more, not {recipe.epochs}")
    if recipe.batch_size < 2:
        raise UsageError(f"--batch-size must be 2 or more, not {recipe.batch_size}")
    shares = recipe.accumulate * processes
    if recipe.accumulate < 1 or recipe.batch_size % shares or recipe.batch_size < 2 * shares:
        raise UsageError(
            f"--batch-size {recipe.batch_size} cannot be shared out to {processes} processes in "
            f"--accumulate {recipe.accumulate} parts of 2 images or more"
        )
    look_up("--optimizer", recipe.optimizer, OPTIMIZERS)
    look_up("--schedule", recipe.schedule, SCHEDULES)
    if not 0 < recipe.lr < 100:
        raise UsageError(f"--lr must lie between 0 and 100, not {recipe.lr:g}")
    if not 0 <= recipe.momentum < 1:
        raise UsageError(f"--momentum must be 0 or more and below 1, not {recipe.momentum:g}")
    if not 0 <= recipe.weight_decay < 1:
        raise UsageError(
            f"--weight-decay must be 0 or more and below 1, not {recipe.weight_decay:g}"
        )
    if not 0 <= recipe.warm_up < recipe.epochs:
        raise UsageError(
            f"--warm-up must be 0 or more and below --epochs {recipe.epochs}, not {recipe.warm_up}"
        )
    if not 0 <= recipe.randaugment <= 30:
        raise UsageError(f"--randaugment must lie between 0 and 30, not {recipe.randaugment}")
    if not 0 <= recipe.label_smoothing < 1:
        raise UsageError(
            f"--label-smoothing must be 0 or more and below 1, not {recipe.label_smoothing}"
        )
    if not 0 <= recipe.mixup < float("inf"):
        raise UsageError(f"--mixup must be 0 or more, not {recipe.mixup}")
    if train_images < recipe.batch_size:
        raise UsageError(
            f"there are {train_images} training images, fewer than a batch of "
            f"{recipe.batch_size}: give --batch-size {max(2, train_images)} or less"
        )
