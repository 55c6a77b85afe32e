"""What fp16 and int8 cost in accuracy: every exit, before and after, on the validation images.

    python benchmarks/precision.py [--run FOLDER] [--epochs 10] [--out FOLDER]

Takes a finished run with its data set at hand, or trains resnet8 on Fashion-MNIST; exports it for
`cuda` in each precision, and prints the accuracy of every exit (ONNX Runtime on the CPU, all
validation images), how often an exit answers as in fp32, and the size of the segments. It says
nothing of the speed on a GPU nor of TensorRT's own rounding, for which `mate-edge verify` is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from machine import describe, mark_of
from trained import find_or_train

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.export.export import export_run
from mate_edge.report.text import count, percent, print_table
from mate_edge.train.options import Options

TARGET = "cuda"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmark-precision"))
    arguments = parser.parse_args()
    print(describe("torch", "onnx", "onnxruntime", "numpy"))

    options = Options(data="fashion-mnist", arch="resnet8", epochs=arguments.epochs)
    folder, run = find_or_train(arguments.run, arguments.out / "run", options)
    bundles: dict[str, Bundle] = {}
    for precision in ("fp32", "fp16", "int8"):
        out = arguments.out / f"{precision}-{mark_of(folder)}.mate"
        if not out.exists():
            export_run(folder, run, TARGET, precision, None, out, print, max_drop=100)
        bundles[precision] = read_bundle(out)
    logits: dict[str, Any] = {
        precision: bundle.arrays(bundle.manifest.calibration)["logits"]
        for precision, bundle in bundles.items()
    }
    rows = []
    for k, exit_ in enumerate(bundles["fp32"].manifest.exits):
        answers = {precision: found[:, k].argmax(-1) for precision, found in logits.items()}
        row = [f"exit {k + 1}", percent(exit_.val_accuracy)]
        for precision in ("fp16", "int8"):
            accuracy = bundles[precision].manifest.exits[k].val_accuracy
            same = float((answers[precision] == answers["fp32"]).mean())
            row += [percent(accuracy), f"{100 * (accuracy - exit_.val_accuracy):+.2f}",
                    percent(same)]  # fmt: skip
        sizes = [bundle.manifest.segments[k].file.bytes for bundle in bundles.values()]
        rows.append([*row, *(f"{count(size)}B" for size in sizes)])
    n = len(logits["fp32"])
    title = (
        f"{run.arch} on {Path(run.data).name}, {run.method}, seed {run.seed}, "
        f"{n} validation images, top-1 %"
    )
    headers = ["", "fp32", "fp16", "points", "same answer", "int8", "points", "same answer",
               "fp32 segment", "fp16", "int8"]  # fmt: skip
    print_table(title, headers, rows)
    worst = max(
        abs(exit_.val_accuracy - before.val_accuracy)
        for precision in ("fp16", "int8")
        for exit_, before in zip(
            bundles[precision].manifest.exits, bundles["fp32"].manifest.exits, strict=True
        )
    )
    print(f"largest change of an exit: {100 * worst:.2f} points")


if __name__ == "__main__":
    main()
