"""Train on Fashion-MNIST, export, and classify PNG files of the test set.

    python benchmarks/fashion_mnist.py [--arch resnet8] [--exits 0.2,0.5] [--head pooled]
        [--epochs 10] [--data cifar10] [--run FOLDER] [--out FOLDER]

`--data` takes another set whose images have one size, `--run` a run of one that is trained already.

Prints the speed of training, the accuracy of each exit on the test split, and whether the runtime
gives the very predictions of training's evaluation (without early exits) and of the simulation
(with them), on all 10,000 test images as PNG files. Draws the training curve and accuracy over
FLOPs to FOLDER/curve.png.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from machine import describe, mark_of
from PIL import Image
from trained import find_or_train
from untrained import export_here

from mate_edge.decide.simulate import simulate
from mate_edge.report.text import percent, print_results, print_table
from mate_edge.runs import read_finished_run, read_outputs
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.predictor import Predictor
from mate_edge.train.data import load_dataset
from mate_edge.train.options import Options


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--method", default="mate")
    parser.add_argument("--arch", default="resnet8")
    parser.add_argument("--exits", help="As in mate-edge train; default: the stages' ends.")
    parser.add_argument("--head", help="As in mate-edge train.")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmark-fashion"))
    arguments = parser.parse_args()
    print(describe("torch", "torchvision", "accelerate", "onnxruntime", "numpy"))

    options = Options(
        data=arguments.data,
        arch=arguments.arch,
        exits=arguments.exits,
        head=arguments.head,
        train_images=arguments.train_images,
        method=arguments.method,
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    folder, run = find_or_train(arguments.run, arguments.out / "run", options)
    print_results(folder, run)
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row["images_per_s"]) for row in rows]
    print(
        f"training: median {median(speeds):.0f} images/s over {len(speeds)} epochs "
        f"({min(speeds):.0f} to {max(speeds):.0f}), "
        f"{sum(float(row['seconds']) for row in rows) / 60:.1f} minutes in all"
    )
    bundle = arguments.out / f"{run.arch}-{mark_of(folder)}.mate"
    export_here(folder, run, bundle)
    found = compare(folder, bundle, arguments.out / "png" / Path(run.data).name)
    draw(rows, bundle, found, arguments.out / "curve.png")


def compare(folder: Path, bundle: Path, pictures: Path) -> dict[str, tuple[float, float]]:
    """Classify every test image as a PNG file; hold the answers against the cached logits.

    Returns:
        Of each contender its mean FLOPs and its accuracy on the test images.
    """
    run = read_finished_run(folder)
    outputs: dict[str, Any] = read_outputs(folder, run)
    paths = write_pictures(run.data, pictures)
    labels = outputs["test_labels"]
    with Predictor.load(bundle) as predictor:
        manifest = predictor.manifest
        unsplit = Predictor(make_engine(None, predictor.bundle.unsplit(), None, False), "deepest")
        unsplit.warm_up()
        names = ["deepest", *manifest.operating_points]
        policies = {name: predictor.clone() for name in names}
        for name, own in policies.items():
            own.set_policy(name)
        contenders = {"unsplit": unsplit, **policies}
        answers: dict[str, list[tuple[int, int]]] = {name: [] for name in contenders}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        network: dict[str, list[float]] = {name: [] for name in contenders}
        order, shuffle = list(contenders.items()), np.random.default_rng(0).shuffle
        for path in paths:
            shuffle(order)
            for name, own in order:
                own.predict(path)  # another contender has just filled the caches
                found = own.predict(path)
                answers[name].append((found.index, found.exit))
                times[name].append(found.elapsed_ms - found.decode_ms)
                network[name].append(times[name][-1] - found.preprocess_ms)
    table, found = [], {}
    flops = manifest.cumulative_flops
    for name in contenders:
        indices, exits = np.array(answers[name]).T
        if name == "unsplit":
            same = np.array_equal(indices, outputs["test_logits"][:, -1].argmax(-1))
            cost = float(manifest.unsplit_flops)
        else:
            expected = simulate(policies[name].policy, outputs["test_logits"])
            same = np.array_equal(indices, expected.predictions) and np.array_equal(
                exits, expected.exits
            )
            cost = mean(flops[k - 1] for k in exits)
        found[name] = (cost, float((indices == labels).mean()))
        table.append(
            [
                name,
                percent(found[name][1]),
                f"{cost / 1e6:.2f}",
                f"{mean(times[name]):.3f}",
                f"{median(times[name]):.3f}",
                f"{mean(times['unsplit']) / mean(times[name]):.2f}",
                f"{mean(network[name]):.3f}",
                f"{mean(network['unsplit']) / mean(network[name]):.2f}",
                "yes" if same else "NO",
            ]
        )
        if not same:
            print(f"{name}: the runtime differs from the simulation", file=sys.stderr)
    title = f"{len(paths)} PNG files, batch 1, in turn; ms from decoded pixels to label"
    headers = ["", "accuracy %", "mean MFLOPs", "mean ms", "median ms", "speed-up"]
    headers += ["network alone, mean ms", "speed-up", "as simulated"]
    print_table(title, headers, table)
    return found


def write_pictures(data: str, folder: Path) -> list[Path]:
    """Write the test split as PNG files, once."""
    dataset = load_dataset(data)
    count = len(dataset.test.labels)
    paths = [folder / f"{number:05}.png" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    if not paths[-1].exists():
        pixels = dataset.test.plain(range(count), dataset.preprocessing)
        for path, picture in zip(paths, pixels, strict=True):
            Image.fromarray(picture.squeeze()).save(path)
    return paths


def draw(
    rows: list[dict[str, str]], bundle: Path, found: dict[str, tuple[float, float]], path: Path
) -> None:
    """Draw validation accuracy over epochs, and test accuracy over FLOPs."""
    from mate_edge.bundle import read_bundle

    manifest = read_bundle(bundle).manifest
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = [row for row in rows if row["val_accuracy_1"]]  # not each epoch was validated
    epochs = [int(row["epoch"]) for row in rows]
    for k in range(1, len(manifest.exits) + 1):
        left.plot(
            epochs, [100 * float(row[f"val_accuracy_{k}"]) for row in rows], label=f"exit {k}"
        )
    left.set(xlabel="epoch", ylabel="validation accuracy, %", title="training")
    left.legend()
    left.grid(alpha=0.3)
    millions = [exit_.cumulative_flops / 1e6 for exit_ in manifest.exits]
    right.plot(millions, [100 * e.test_accuracy for e in manifest.exits], "o-", label="fixed exit")
    for name, (flops, accuracy) in found.items():
        if name != "deepest":
            right.plot(flops / 1e6, 100 * accuracy, "s", label=name)
    right.set(xlabel="mean MFLOPs (one multiply-add = 1)", ylabel="test accuracy, %", title="exits")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    print(f"curve: {path}")


if __name__ == "__main__":
    main()
