"""What a training step of each method costs beside plain cross-entropy: time and peak memory.

    python benchmarks/step_cost.py [--rounds 15] [--batch-size 128]

Times: all methods of a network in one process, in turn, a step each a round; the ratio is the
median over the rounds of a method's step over that round's step of `ce`. Memory: each method in a
process of its own; on a CPU what the process's peak is above its size before the network is
built, on a GPU the allocator's peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from statistics import median, quantiles

import torch
from machine import describe
from torch import Tensor

from mate_edge.report.text import print_table
from mate_edge.runs import Recipe
from mate_edge.train.heads import DEFAULT_HEAD
from mate_edge.train.losses import METHODS, make_method
from mate_edge.train.network import build_network
from mate_edge.train.recipe import Objective, make_optimizer

NETWORKS = (("resnet18", 32, 3, 100), ("resnet8", 28, 1, 10))
MEMORY_STEPS = 3
RECIPE = Recipe(epochs=1)


class Training:
    """One network with one method, and a batch to step on again and again."""

    def __init__(self, network: tuple[str, int, int, int], method: str, batch_size: int) -> None:
        arch, size, channels, classes = network
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device(
            "cpu"
        )
        torch.manual_seed(0)
        built = build_network(arch, DEFAULT_HEAD, channels, size, classes)
        self.objective = Objective(
            built.to(memory_format=torch.channels_last),
            make_method(method, built.num_exits, classes, {}),
        ).to(self.device)
        self.optimizer = make_optimizer(self.objective, RECIPE)
        images = torch.randn(batch_size, channels, size, size, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels: Tensor = torch.randint(classes, (batch_size,), device=self.device)

    def step(self) -> float:
        """Take a step; return its milliseconds."""
        started = time.perf_counter()
        loss, _ = self.objective(self.images, self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return 1000 * (time.perf_counter() - started)


def peak_mib(network: tuple[str, int, int, int], method: str, batch_size: int) -> float:
    """Return the peak memory of a few steps, in MiB; for a process of its own."""
    before = resident_mib("VmRSS")
    training = Training(network, method, batch_size)
    for _ in range(MEMORY_STEPS):
        training.step()
    if training.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_mib("VmHWM") - before


def resident_mib(name: str) -> float:
    """Return this process's `VmRSS` (now) or `VmHWM` (peak) from Linux, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 2**10


def measure(network: tuple[str, int, int, int], rounds: int, batch_size: int) -> list[list[str]]:
    """Return a table row for each method."""
    trainings = {method: Training(network, method, batch_size) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(rounds + 1):
        for method, training in trainings.items():
            elapsed = training.step()
            if number:  # the first round allocates and chooses kernels
                times[method].append(elapsed)
    del trainings
    spawn = multiprocessing.get_context("spawn")
    peaks = {}
    for method in METHODS:
        with spawn.Pool(1) as pool:
            peaks[method] = pool.apply(peak_mib, (network, method, batch_size))
    rows = []
    for method, own in times.items():
        ratios = [a / b for a, b in zip(own, times["ce"], strict=True)]
        rows.append(
            [
                method,
                f"{median(own):.1f} ({quantiles(own, n=10)[-1]:.1f})",
                f"{median(ratios):.3f}",
                f"{peaks[method]:.0f}",
                f"{peaks[method] / peaks['ce']:.3f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    print(describe("torch"))
    for network in NETWORKS:
        arch, size, *_ = network
        rows = measure(network, arguments.rounds, arguments.batch_size)
        title = (
            f"{arch} at {size}, batch {arguments.batch_size}, {torch.get_num_threads()} threads, "
            f"{arguments.rounds} rounds"
        )
        headers = ["method", "ms: median (p90)", "/ ce", "peak MiB", "/ ce"]
        print_table(title, headers, rows)


if __name__ == "__main__":
    main()
