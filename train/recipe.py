"""From a recipe to an optimiser and a learning rate for each epoch."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from mate_edge.errors import UsageError
from mate_edge.runs import Recipe
from mate_edge.train.losses.method import Method
from mate_edge.train.network import MultiExitNet

FINE_TUNING = {"epochs": 20, "lr": 0.01}
"""What a data set's recipe changes to when the weights are imported."""


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


def make_optimizer(objective: Objective, recipe: Recipe) -> SGD:
    """Return SGD over both; the method's own parameters get no weight decay."""
    groups = [
        {"params": list(objective.network.parameters()), "weight_decay": recipe.weight_decay},
        {"params": list(objective.method.parameters()), "weight_decay": 0.0},
    ]
    return SGD([g for g in groups if g["params"]], lr=recipe.lr, momentum=recipe.momentum)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the rate of an epoch (from 0): divided by 10 at each milestone passed."""
    return float(recipe.lr * 0.1 ** sum(epoch >= drop for drop in recipe.drops))


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
    if not 0 < recipe.lr < 100:
        raise UsageError(f"--lr must lie between 0 and 100, not {recipe.lr:g}")
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
