"""A million predictions in one process: does its memory stay flat?

    python benchmarks/endurance.py [--predictions 1000000] [--bundle TRAINED.mate] [--out FOLDER]

One predictor answers frames, encoded PNG and JPEG images and, one time in a hundred, an image that
is damaged, under a deadline. Every thousandth time the policy changes, a batch of 2 to 64 images
is answered beside, the largest first since its memory is kept, and the stats are asked for as a
service would. Resident memory is read at 1, 10, 50 and 100 % of the way. The bundle is
untrained unless one is given: memory does not depend on the weights. 8 to 30 minutes a million on
one core, by machine.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import describe
from PIL import Image

from mate_edge.errors import ImageError
from mate_edge.report.text import print_table
from mate_edge.runtime.inputs import Frame
from mate_edge.runtime.predictor import Predictor

SHARES = (0.01, 0.1, 0.5, 1.0)
POLICIES = ("exit-1", "deepest", "balanced")
BATCHES = range(2, 65)
MAX_MS = 5.0
LIMIT = 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    bundle = arguments.bundle or untrained(arguments.out)
    print(describe("onnxruntime", "numpy", "pillow"))
    rows = []
    n = arguments.predictions
    with Predictor.load(bundle, max_ms=MAX_MS, threads=1) as predictor:
        frames = make_frames(predictor.manifest.preprocessing.size)
        readable = [frame for frame in frames[1:] if isinstance(frame, np.ndarray)][: BATCHES[-1]]
        marks = [max(1, round(share * n)) for share in SHARES]
        unreadable, began = 0, time.perf_counter()
        for number in range(1, n + 1):
            try:
                predictor.predict(frames[number % len(frames)], max_ms=MAX_MS)
            except ImageError:
                unreadable += 1
            if number % 1000 == 0:
                predictor.set_policy(POLICIES[number // 1000 % len(POLICIES)])
                predictor.predict_batch(readable[: BATCHES[-(number // 1000) % len(BATCHES)]])
                predictor.stats()
            if number in marks:
                stats = predictor.stats()
                rows.append((number, resident_bytes(), stats.predictions, stats.misses, unreadable))
        seconds = time.perf_counter() - began
    base = rows[0][1]
    print_table(
        f"{n} predictions in {seconds:.0f} s",
        ["after", "resident MB", "against 1 %", "answered", "missed", "unreadable"],
        [
            [
                f"{number}",
                f"{resident / 1e6:.2f}",
                f"{100 * (resident / base - 1):+.2f} %",
                *(str(figure) for figure in figures),
            ]
            for number, resident, *figures in rows
        ],
    )
    grown = max(resident for _, resident, *_ in rows) / base - 1
    print(f"flat within {100 * LIMIT:.0f} %: {'yes' if grown <= LIMIT else 'NO'}")


def untrained(folder: Path) -> Path:
    """Make a bundle in a process of its own: torch would take 700 MB here, and hide any growth."""
    program = (
        "from untrained import *; "
        f"print(make_bundle(Path({str(folder)!r}), 'resnet8', 32, 10), end='')"
    )
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": here}
    command = [sys.executable, "-c", program]
    return Path(subprocess.check_output(command, env=environment, text=True))


def make_frames(size: int) -> list[Frame]:
    """Return frames of the network's size, larger encoded images, and 1 % damaged ones."""
    rng = np.random.default_rng(0)
    found: list[Frame] = []
    for number in range(100):
        side = size if number % 2 else 2 * size
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        if number % 10 in (3, 7):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG" if number % 10 == 3 else "JPEG")
            found.append(buffer.getvalue())
        else:
            found.append(pixels)
    damaged = next(frame for frame in found if isinstance(frame, bytes))
    found[0] = damaged[: len(damaged) // 2]
    return found


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
