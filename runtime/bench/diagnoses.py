"""What a measurement says of the machine, in words. To add one: a function, a line in the table.

Each says nothing when all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from mate_edge.runtime.bench.rounds import Sample
from mate_edge.runtime.doctor.hardware import power_mode, probe_clock_lock, probe_power_mode
from mate_edge.runtime.doctor.machine import Machine

DRIFT = 1.1
"""The last quarter of the rounds may take so many times what the first one takes."""
FEWEST = 20
"""Rounds that must be there for a drift to be one."""
OTHERS = 0.25
"""CPUs that other processes may use."""
SPINNING = 1.3
"""This process may use so many times the CPUs that its threads can use at the most."""
RARELY = 0.005


@dataclass(frozen=True)
class Observed:
    """What was seen during a measurement.

    Attributes:
        deepest: a sample a round, through all segments: the paced ones if there are any.
        unpaced: the same one after another.
        fps: of the paced ones; None when there were none.
        busy_share: of the time, what predictions took of it.
        threads: of the engine; of several, the largest number.
        own_cpus: how many CPUs this process used.
        other_cpus: how many the others used, without the load that was asked for; None: unknown.
        judged: the operating point in question; None: there is none.
        shares: of the validation images that leave at each exit there.
        on_gpu: whether the engine runs on one.
        machine: that was measured.
    """

    deepest: Sequence[Sample]
    unpaced: Sequence[Sample]
    fps: float | None
    busy_share: float
    threads: int
    own_cpus: float
    other_cpus: float | None
    judged: str | None
    shares: Sequence[float]
    on_gpu: bool
    machine: Machine


def slowed_down(seen: Observed) -> str | None:
    """Compare the first rounds with the last ones."""
    n = len(seen.deepest) // 4
    if n < FEWEST // 4:
        return None
    first = median(sum(sample.segment_ms) for sample in seen.deepest[:n])
    last = median(sum(sample.segment_ms) for sample in seen.deepest[-n:])
    if max(first, last) < DRIFT * min(first, last):
        return None
    if last > first:
        return (
            f"the device became {last / first:.2f} times slower during the run: heat (cool it, or "
            "lower the power mode), or another program began; measure again"
        )
    return (
        f"the device became {first / last:.2f} times faster during the run: another program ended, "
        "or its clocks rose; measure again"
    )


def others_compute(seen: Observed) -> str | None:
    """Say how much of the machine others use."""
    if seen.other_cpus is None or seen.other_cpus <= OTHERS:
        return None
    return (
        f"other processes used {seen.other_cpus:.1f} CPUs meanwhile: the high percentiles are "
        "theirs; stop them, or take these figures for a machine that is as busy as this"
    )


def threads_spin(seen: Observed) -> str | None:
    """Compare the CPU time of this process with what its threads can have worked."""
    possible = max(seen.busy_share, 0.05) * seen.threads
    if seen.own_cpus <= SPINNING * possible + 0.1:
        return None
    return (
        f"this process used {seen.own_cpus:.1f} CPUs where {possible:.1f} had work: threads spin "
        "while they wait and take time from the next segment; look for a thread pool beside the "
        "engine's (OMP_NUM_THREADS=1, OMP_WAIT_POLICY=passive)"
    )


def power_is_limited(seen: Observed) -> str | None:
    """Name a power mode that is not the fastest."""
    finding = probe_power_mode(seen.machine)
    if finding is not None:
        shown = finding.found or "unknown"
        return None if finding.fix is None else f"power mode {shown}: {finding.fix}"
    mode = power_mode(seen.machine)
    if mode is None or mode == "performance":
        return None
    return (
        f"the CPU's frequency governor is {mode}: clocks follow the load; for the shortest times "
        "`sudo cpupower frequency-set -g performance`"
    )


def clocks_are_free(seen: Observed) -> str | None:
    """Name a GPU's clocks that are not locked."""
    if not seen.on_gpu:
        return None
    finding = probe_clock_lock(seen.machine)
    if finding is None or finding.fix is None:
        return None
    return f"clock lock {finding.found or 'unknown'}: {finding.fix}"


def pauses_cost(seen: Observed) -> str | None:
    """Compare paced rounds with those that follow each other."""
    if seen.fps is None:
        return None
    paced, unpaced = (
        median(sum(sample.segment_ms) for sample in samples)
        for samples in (seen.deepest, seen.unpaced)
    )
    if paced < DRIFT * unpaced:
        return None
    return (
        f"at {seen.fps:g} a second a prediction takes {paced / unpaced:.2f} times what it takes "
        "back to back: clocks fall and caches cool in the pauses; the paced figures are what a "
        "camera will see"
    )


def decoding_dominates(seen: Observed) -> str | None:
    """Compare the image's way to the network with the network."""
    before = median(sample.decode_ms + sample.preprocess_ms for sample in seen.deepest)
    network = median(sum(sample.segment_ms) for sample in seen.deepest)
    if before <= network:
        return None
    return (
        f"decoding and preprocessing take {before:.2f} ms, the whole network {network:.2f} ms: "
        "smaller images, or raw frames, would save more than any exit"
    )


def exits_unused(seen: Observed) -> str | None:
    """Name the exits that no image takes."""
    unused = [str(k) for k, share in enumerate(seen.shares[:-1], start=1) if share < RARELY]
    if not unused or seen.judged is None:
        return None
    exits = f"exit {unused[0]} is" if len(unused) == 1 else f"exits {', '.join(unused)} are"
    return (
        f"{exits} never used at {seen.judged} (under {100 * RARELY:g} % of the validation images)"
    )


DIAGNOSES: tuple[Callable[[Observed], str | None], ...] = (
    slowed_down,
    others_compute,
    threads_spin,
    power_is_limited,
    clocks_are_free,
    pauses_cost,
    decoding_dominates,
    exits_unused,
)
"""In the order in which they are said."""


def diagnose(seen: Observed) -> tuple[str, ...]:
    """Return what there is to say."""
    return tuple(said for look in DIAGNOSES if (said := look(seen)))
