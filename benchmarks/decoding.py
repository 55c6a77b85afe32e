"""What decoding a JPEG photograph at reduced size saves, and by how much the pixels differ.

    python benchmarks/decoding.py [--images FOLDER] [--size 224] [--rounds 20]

From encoded bytes to what the network sees, uint8 [size, size, 3]: all of the file decoded and
then scaled, against `reducing_gap` 2, of every new run's, and 1, in turn. Without `--images` the
photographs are scikit-learn's two samples: cut to the first of `SIDES`, and enlarged to the others
with the grain that a camera adds (else they would compress to less than a photograph of that size
does), quality 90.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median

import msgspec
import numpy as np
from machine import describe, quantile
from PIL import Image
from sklearn.datasets import load_sample_images

from mate_edge.images import Preprocessing, crop, decode
from mate_edge.report.text import print_table
from mate_edge.runtime.sources.images import find_images

SIDES = ((640, 424), (1280, 720), (1920, 1080), (4032, 3024))
GRAIN = 3.0
"""The standard deviation of the noise, in levels of 255."""
GAPS = (None, 2.0, 1.0)


def samples(width: int, height: int) -> list[bytes]:
    """Return scikit-learn's photographs as JPEG files of this size."""
    files = []
    for number, pixels in enumerate(load_sample_images().images):
        image = Image.fromarray(pixels)
        if width > image.width:
            enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
            noise = np.random.default_rng(number).normal(0, GRAIN, (height, width, 3))
            image = Image.fromarray((enlarged + noise).clip(0, 255).astype(np.uint8))
        image = image.crop((0, 0, width, height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def measure(files: Iterable[bytes], size: int, rounds: int) -> list[list[str]]:
    """Return a table row for each gap."""
    whole = Preprocessing(
        channels=3, size=size, resize=round(size * 256 / 224), mean=(0,) * 3, std=(1,) * 3
    )
    ways = {gap: msgspec.structs.replace(whole, reducing_gap=gap) for gap in GAPS}
    times: dict[float | None, list[float]] = {gap: [] for gap in GAPS}
    ratios: dict[float | None, list[float]] = {gap: [] for gap in GAPS}
    differences: dict[float | None, list[float]] = {gap: [] for gap in GAPS}
    for data in files:
        seen = {}
        for _ in range(rounds):
            for gap, preprocessing in ways.items():
                started = time.perf_counter()
                image = decode(data, preprocessing=preprocessing)
                seen[gap] = crop(image, preprocessing).astype(int)
                times[gap].append(1000 * (time.perf_counter() - started))
                ratios[gap].append(times[None][-1] / times[gap][-1])
        for gap, pixels in seen.items():
            differences[gap].append(float(np.abs(pixels - seen[None]).mean()))
    return [
        [
            "all" if gap is None else f"gap {gap:g}",
            f"{median(times[gap]):.1f} ({quantile(times[gap], 0.9):.1f})",
            f"{median(ratios[gap]):.2f}",
            f"{mean(differences[gap]):.2f}",
        ]
        for gap in GAPS
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, help="a folder of your own JPEG files")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print(describe("pillow", "numpy"))
    given = {f"{width} x {height}": partial(samples, width, height) for width, height in SIDES}
    if arguments.images is not None:
        found = find_images([str(arguments.images)])
        given = {str(arguments.images): lambda: [path.read_bytes() for path in found]}
    rows = []
    for name, load in given.items():
        files = load()
        kilobytes = f"{mean(map(len, files)) / 1000:.0f}"
        rows += [
            [name, kilobytes, *row] for row in measure(files, arguments.size, arguments.rounds)
        ]
    headers = ["JPEG", "kB", "decoded", "ms: median (p90)", "times faster", "differs by, of 255"]
    print_table(f"to {arguments.size} pixels", headers, rows)


if __name__ == "__main__":
    main()
