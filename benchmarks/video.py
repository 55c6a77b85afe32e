"""A video through `mate-edge run`: is memory constant, and are deadlines kept as for images?

    python benchmarks/video.py [--frames 1000] [--rounds 3] [--max-ms MS] [--arch resnet8]

A window of 640x480 moves over scikit-learn's two photographs: encoded as H.264, and each frame as a
JPEG file of its own. `mate-edge run` gets the video and the folder in turn, under one deadline, in
a process each; by default twice the median of a frame of the video, measured first. A frame
counts from when it is decoded (turning it into RGB counts), a JPEG from when it is in memory. The
weights are untrained and the policy is `deepest`: times do not depend on the weights.

Resident memory is read when frame 100 and the last but one are answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av
import numpy as np
from machine import describe, quantile
from PIL import Image
from sklearn.datasets import load_sample_images
from untrained import make_bundle

from mate_edge.report.text import print_table

SIZE = (640, 480)
EARLY = 100


@dataclass(frozen=True)
class Ran:
    """What one process did."""

    elapsed_ms: list[float]
    misses: int
    early_bytes: int
    late_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-ms", type=float)
    parser.add_argument("--arch", default="resnet8")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    bundle = make_bundle(arguments.out, arguments.arch, arguments.size, 10)
    video, folder = make_video(arguments.out, arguments.frames)
    print(describe("onnxruntime", "av", "pillow"))
    max_ms = arguments.max_ms
    if max_ms is None:
        first = run(bundle, video, arguments.frames, 1e6)
        max_ms = round(2 * median(first.elapsed_ms), 1)
    contenders = {"the video": video, "its frames as JPEG": folder}
    found: dict[str, list[Ran]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, source in contenders.items():
            found[name].append(run(bundle, source, arguments.frames, max_ms))
    print_table(
        f"{arguments.arch} at {arguments.size}, deadline {max_ms:g} ms, {arguments.rounds} rounds "
        f"of {arguments.frames} frames of {SIZE[0]}x{SIZE[1]}",
        ["", "missed %", "each round", "median ms", "p99 ms", f"MB at {EARLY}", "MB at the end"],
        [cells(name, rounds) for name, rounds in found.items()],
    )


def cells(name: str, rounds: list[Ran]) -> list[str]:
    """Return a row."""
    times = [ms for ran in rounds for ms in ran.elapsed_ms]
    shares = [100 * ran.misses / len(ran.elapsed_ms) for ran in rounds]
    return [
        name,
        f"{sum(shares) / len(shares):.2f}",
        " ".join(f"{share:.1f}" for share in shares),
        f"{median(times):.2f}",
        f"{quantile(times, 0.99):.2f}",
        " ".join(f"{ran.early_bytes / 1e6:.1f}" for ran in rounds),
        " ".join(f"{ran.late_bytes / 1e6:.1f}" for ran in rounds),
    ]


def make_video(folder: Path, frames: int) -> tuple[Path, Path]:
    """Write the video, and the folder of its decoded frames as JPEG, once."""
    video, images = folder / f"moving-{frames}.mp4", folder / f"moving-{frames}"
    if images.exists():
        return video, images
    width, height = SIZE
    photos = [np.asarray(Image.fromarray(photo).resize((960, 720)))
              for photo in load_sample_images().images]  # fmt: skip
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            photo = photos[number // 250 % len(photos)]
            left = abs(number % 640 - 320)
            top = abs(number % 480 - 240)
            window = np.ascontiguousarray(photo[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, "rgb24")))
        container.mux(stream.encode(None))
    images.mkdir()
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(images / f"{number:06}.jpg", quality=90)
    return video, images


def run(bundle: Path, source: Path, frames: int, max_ms: float) -> Ran:
    """Type `mate-edge run` and read its lines as they come."""
    command = [
        *(sys.executable, "-m", "mate_edge", "run", "--json", "--policy", "deepest"),
        *("--bundle", str(bundle), "--max-ms", f"{max_ms:g}", "--threads", "1", str(source)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    elapsed: list[float] = []
    late = frames - 1  # after the last one the process may be gone
    misses, resident = 0, {EARLY: 0, late: 0}
    for line in process.stdout:
        answer = json.loads(line)
        elapsed.append(answer["elapsed_ms"])
        misses += answer["deadline_missed"]
        if len(elapsed) in resident:
            resident[len(elapsed)] = resident_bytes(process.pid)
    assert process.wait() == 0, command
    assert len(elapsed) == frames, (source, len(elapsed))
    return Ran(elapsed, misses, resident[EARLY], resident[late])


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
