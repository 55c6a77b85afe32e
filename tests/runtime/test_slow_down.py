"""Deadlines on a device that becomes slower in mid-run: the real predictor on a simulated device.

The device's segments vary from round to round, hiccup now and then, and from one frame on take
longer, all of them. Nothing sleeps: the clock is the device's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from timed import Clock, TimedEngine

from mate_edge.bundle import read_bundle
from mate_edge.runtime.deadline import MISS_SHARE, MOST_ALLOWED
from mate_edge.runtime.latencies import record_latencies
from mate_edge.runtime.predictor import Predictor

SEGMENTS_MS = np.array([0.30, 0.25, 0.20])
EXIT_ACCURACIES = np.array([0.9024, 0.9075, 0.9140])
"""Of the README's resnet8 on Fashion-MNIST."""
FRAMES = 600


def draw(rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Return what segments take, [rounds, K]: log-normal by 8 %, and 1 of 300 a quarter longer."""
    usual = SEGMENTS_MS * rng.lognormal(0, 0.08, (rounds, 3))
    return usual * np.where(rng.random((rounds, 3)) < 1 / 300, 1.25, 1.0)


def drive(predictor: Predictor, taken_ms: np.ndarray, max_ms: float) -> tuple[float, float, float]:
    """Predict a frame for each row of what its segments would take.

    Returns:
        The share of misses beyond those that exit 1 alone makes; the accuracy less that of an
        oracle, which knows each row and takes the deepest exit in time, in points; the share of
        frames that went beyond exit 1.
    """
    engine = predictor.engine
    assert isinstance(engine, TimedEngine)
    pre = predictor.manifest.preprocessing
    frame = np.zeros((pre.size, pre.size, 3), np.uint8)
    exits, misses = [], 0
    for row in taken_ms:
        engine.ms = list(row)
        found = predictor.predict(frame, max_ms=max_ms)
        exits.append(found.exit)
        misses += found.deadline_missed
    up_to = taken_ms.cumsum(axis=1)
    oracle = np.maximum((up_to <= max_ms).sum(axis=1), 1)
    ours = np.array(exits)
    lost = EXIT_ACCURACIES[oracle - 1].mean() - EXIT_ACCURACIES[ours - 1].mean()
    excess = misses / len(taken_ms) - (up_to[:, 0] > max_ms).mean()
    return float(excess), float(100 * lost), float((ours > 1).mean())


def sweep(slower: float, bundle_folder: Path, seed: int, follows: bool = True) -> np.ndarray:
    """Return `drive`'s figures, [deadlines, 3], for a device `slower` from the middle on."""
    rng = np.random.default_rng(seed)
    measured = draw(rng, 1999)
    first = 1.1 * np.quantile(measured[:, 0], 0.99)
    full = np.quantile(measured.sum(axis=1), 0.99)
    figures = []
    for max_ms in np.linspace(first, slower * full, 5):
        clock = Clock()
        engine = TimedEngine(read_bundle(bundle_folder), clock, list(SEGMENTS_MS))
        predictor = Predictor(engine, "deepest", clock)
        rows = [list(row) for row in measured.T]
        predictor.timing.use(record_latencies(engine, rows, [1e-6] * len(measured)))
        if not follows:
            predictor.timing.slow_down.observe = lambda ratio: None  # type: ignore[method-assign]
        taken = draw(rng, FRAMES)
        taken[FRAMES // 2 :] *= slower
        figures.append(drive(predictor, taken, max_ms))
    return np.array(figures)


@pytest.mark.parametrize(("slower", "allowed"), [(1.0, 0.01), (1.25, 0.02), (2.0, 0.02)])
def test_from_the_first_exit_to_the_whole_network_few_deadlines_are_missed(
    slower: float, allowed: float, bundle_folder: Path
) -> None:
    excess, lost, deeper = sweep(slower, bundle_folder, seed=0).T
    assert excess.max() <= allowed
    assert lost.max() <= 0.5  # points below the oracle
    assert deeper.min() == 0  # the sweep goes from where nothing fits
    assert deeper.max() > 0.99  # to where everything does


def test_where_no_factor_helps_exit_1_answers_until_the_share_is_kept_again(
    bundle_folder: Path,
) -> None:
    """As beside a busy process: exit 1 is as fast as ever, and what follows it often stalls."""
    rng, clock = np.random.default_rng(0), Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, list(SEGMENTS_MS))
    predictor = Predictor(engine, "deepest", clock)
    measured = draw(rng, 1999)
    predictor.timing.use(
        record_latencies(engine, [list(row) for row in measured.T], [1e-6] * len(measured))
    )
    taken, max_ms = draw(rng, 3000), 1.1
    taken[:2000, 1:] *= np.where(rng.random((2000, 1)) < 0.2, 5.0, 1.0)
    stalls, _, deeper = drive(predictor, taken[:2000], max_ms)
    assert stalls <= MISS_SHARE + MOST_ALLOWED / 2000
    assert 0 < deeper < 0.1
    calm, _, deeper = drive(predictor, taken[2000:], max_ms)
    assert calm <= MISS_SHARE
    assert deeper > 0.85, "100 frames earn it back"


def test_a_table_that_follows_nothing_would_leave_half_of_them_to_exit_1(
    bundle_folder: Path,
) -> None:
    excess, _, deeper = sweep(2.0, bundle_folder, seed=0, follows=False).T
    assert excess.max() <= MISS_SHARE + MOST_ALLOWED / FRAMES
    _, _, following = sweep(2.0, bundle_folder, seed=0).T
    assert (following - deeper).max() > 0.4
