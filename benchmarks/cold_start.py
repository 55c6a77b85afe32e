"""One image, one process: `mate-edge run image.jpg` against a minimal script with the whole model.

    python benchmarks/cold_start.py [--runs 15] [--out FOLDER]

The script imports onnxruntime and PIL, loads `unsplit.onnx` in a default session, preprocesses,
runs and prints: the least that a user would write. `mate-edge run` leaves at exit 1 (threshold 0),
checks hashes and prints its table. Both are timed as whole processes, in turn; the ratio is the
median over the pairs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe, quantile
from PIL import Image
from untrained import make_bundle

SCRIPT = """
import sys
import numpy as np
import onnxruntime
from PIL import Image

size, resize = int(sys.argv[3]), int(sys.argv[4])
image = Image.open(sys.argv[2]).convert("RGB")
scale = resize / min(image.size)
image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BILINEAR)
left, top = (image.width - size) // 2, (image.height - size) // 2
pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0]
print(int(logits.argmax()))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("onnxruntime", "numpy", "pillow", "typer"))
    print(f"{arguments.runs} pairs of whole processes; ms: median (p90)\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    image = arguments.out / "image.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((640, 480)).save(image)
    print("| network | mate-edge run, exit 1 | script, unsplit | ratio |")
    print("|---|---|---|---|")
    for arch, size, resize in (("resnet8", 32, 32), ("resnet18", 224, 256), ("resnet50", 224, 256)):
        bundle = make_bundle(arguments.out, arch, size, 10 if size == 32 else 1000)
        ours = [str(Path(sys.executable).parent / "mate-edge"), "run", "--bundle", str(bundle),
                "--threshold", "0", str(image)]  # fmt: skip
        theirs = [sys.executable, "-c", SCRIPT, str(bundle / "unsplit.onnx"), str(image),
                  str(size), str(resize)]  # fmt: skip
        pairs = [(clock(ours), clock(theirs)) for _ in range(arguments.runs + 1)][1:]
        columns = [
            f"{median(column):.0f} ({quantile(column, 0.9):.0f})"
            for column in zip(*pairs, strict=True)
        ]
        ratio = median(a / b for a, b in pairs)
        print(f"| {arch} at {size} | {' | '.join(columns)} | {ratio:.2f} |", flush=True)


def clock(command: list[str]) -> float:
    """Return how long a command took, in ms."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
