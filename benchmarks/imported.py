"""What early exits bring on a network that was trained without them.

    python benchmarks/imported.py [--train-images 20000] [--epochs 10]
        [--ways frozen,tuned,scratch] [--out FOLDER]

A plain PyTorch loop trains a plain ResNet-20 (He et al., arXiv:1512.03385) on Fashion-MNIST, the
network that a user comes with. Then, each a run of `mate-edge train` with exits at 0.2 and 0.5 of
its FLOPs:

* frozen: `--weights --freeze-backbone`, 20 epochs that train the early heads alone;
* tuned: `--weights`, 20 epochs of fine-tuning all of it;
* scratch: the same network with its exits from the start, for `--epochs`.

Each is measured as `fashion_mnist.py` does: all test images as PNG files, beside the network
without early exits, which under `frozen` is the plain one. Processes may share the trainings
(`--ways`); what is trained already is only measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from fashion_mnist import compare
from machine import describe
from torch import nn
from torch.nn.functional import cross_entropy
from trained import find_or_train
from untrained import export_here

from mate_edge.report.text import percent, print_results
from mate_edge.train.backbones import make_parts
from mate_edge.train.data import load_dataset
from mate_edge.train.data.loader import make_loader
from mate_edge.train.options import Options, choose_recipe
from mate_edge.train.recipe import learning_rate

DATA, EXITS = "fashion-mnist", "0.2,0.5"
WAYS = ("frozen", "tuned", "scratch")


def resnet20(channels: int, size: int) -> nn.Sequential:
    """Return the network: three stages, the mean over the pixels, one linear layer."""
    stages = make_parts("resnet20", channels, size, None).stages
    return nn.Sequential(
        *stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-images", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--out", type=Path, default=Path("benchmark-imported"))
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))}; choose from {', '.join(WAYS)}")
    print(describe("torch", "torchvision", "onnxruntime", "numpy"))

    sys.path.insert(0, str(Path(__file__).parent))  # where `imported:resnet20` is
    plain = Options(
        data=DATA,
        arch="imported:resnet20",
        exits=EXITS,
        train_images=arguments.train_images,
        seed=arguments.seed,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = arguments.out / "plain.pth"
    if not weights.exists() and ways != ["scratch"]:
        train_plainly(plain, arguments.epochs, weights)
    for way in ways:
        options = options_of(way, plain, arguments.epochs, weights)
        folder, run = find_or_train(None, arguments.out / way, options)
        print(f"\n{way}")
        print_results(folder, run)
        bundle = arguments.out / f"{way}.mate"
        export_here(folder, run, bundle)
        compare(folder, bundle, arguments.out / "png" / DATA)


def options_of(way: str, plain: Options, epochs: int, weights: Path) -> Options:
    """Return what is trained in one of `WAYS`."""
    if way == "scratch":
        return replace(plain, epochs=epochs)
    return replace(plain, weights=weights, freeze_backbone=way == "frozen")


def train_plainly(options: Options, epochs: int, file: Path) -> None:
    """Train the network alone and keep its state dict, as a user's own script would have done."""
    assert options.data is not None
    dataset = load_dataset(options.data, None, options.train_images)
    recipe = choose_recipe(dataset.recipe, Options(epochs=epochs), imported=False)
    torch.manual_seed(options.seed or 0)
    network = resnet20(dataset.preprocessing.channels, dataset.preprocessing.size)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    loader, order = make_loader(dataset, recipe, options.seed or 0)
    for epoch in range(epochs):
        order.epoch = epoch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, epoch)
        right = seen = 0
        for images, labels in loader:
            logits = network(images)
            optimizer.zero_grad()
            cross_entropy(logits, labels).backward()
            optimizer.step()
            right, seen = right + int((logits.argmax(1) == labels).sum()), seen + len(labels)
        print(f"plain, epoch {epoch + 1} of {epochs}: training {percent(right / seen)} %")
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")  # another process may wait for it
    torch.save(network.state_dict(), unfinished)
    unfinished.replace(file)


if __name__ == "__main__":
    main()
