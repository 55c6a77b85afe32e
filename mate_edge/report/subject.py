"""What a report is about, before anything is counted: a run or a bundle, in one form.

`mate_edge.train.reported` and `mate_edge.runtime.reported` gather it; `figures.py` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.policy import Policy
from mate_edge.decide.softmax import Logits

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class NamedPolicy:
    """An operating point.

    Attributes:
        policy: its thresholds.
        goal: what it was chosen for, in words.
        promise: what is guaranteed, in words; empty: nothing.
    """

    policy: Policy
    goal: str
    promise: str = ""


@dataclass(frozen=True)
class ExitCost:
    """What one exit costs; FLOPs as fvcore counts them, one multiply-add = 1.

    Attributes:
        cumulative_flops: of all segments up to this one, heads included.
        parameters: of its segment; None: unknown.
        border_bytes: what its segment hands to the next one, at batch 1; None: unknown.
        fp32_accuracy: on the validation images before the precision was lowered; None: it was not.
        test_accuracy: of the network in fp32 on the test images, where these are not what is
            counted on; None: unknown.
    """

    cumulative_flops: int
    parameters: int | None = None
    border_bytes: int | None = None
    fp32_accuracy: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class Ending:
    """How measured rounds end under a deadline.

    Attributes:
        allowed: the deepest exit, from 1, that the deadline lets them reach.
        in_time: the deepest exit, up to `allowed`, whose answer is there in time; 0: none.
        share: of the rounds.
    """

    allowed: int
    in_time: int
    share: float


@dataclass(frozen=True)
class Deadline:
    """What a deadline of `max_ms` makes of the rounds that were measured."""

    max_ms: float
    endings: tuple[Ending, ...]


@dataclass(frozen=True)
class DeviceTimes:
    """What predictions take on this device, in ms from the encoded image to the label.

    Attributes:
        device: the engine and where it runs.
        measured: when and how, in words.
        exit_ms: the median time until each exit answers.
        unsplit_ms: the unsplit network's median; None: only the segments were measured.
        verdict: `mate-edge bench`'s; empty: it did not run.
        diagnoses: what bench found wrong or remarkable.
        deadlines: rising.
    """

    device: str
    measured: str
    exit_ms: tuple[float, ...]
    unsplit_ms: float | None
    verdict: tuple[str, ...]
    diagnoses: tuple[str, ...]
    deadlines: tuple[Deadline, ...]


@dataclass(frozen=True)
class Training:
    """What a training logged, one value an epoch; NaN where an epoch did not count it.

    Attributes:
        epochs: their numbers, from 1.
        loss: of the training images.
        lr: the learning rate.
        train_accuracy: [K][epochs], with the variations of training.
        val_accuracy: [K][epochs].
        teacher_weights: [K][K][epochs], A: row i holds teacher i's weights; empty: not MATE.
        teacher_accuracy: [K][epochs], on the training images; empty: not MATE.
        kl_primary: [K][epochs], of exit j from its own teacher j; empty: not MATE.
    """

    epochs: tuple[int, ...]
    loss: tuple[float, ...]
    lr: tuple[float, ...]
    train_accuracy: tuple[tuple[float, ...], ...]
    val_accuracy: tuple[tuple[float, ...], ...]
    teacher_weights: tuple[tuple[tuple[float, ...], ...], ...] = ()
    teacher_accuracy: tuple[tuple[float, ...], ...] = ()
    kl_primary: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Subject:
    """All that a report needs.

    Attributes:
        kind: which of the two it is.
        name: of the run or bundle.
        about: what it is, in a few words.
        classes: C names.
        logits: float32 [n, K, C], of the images that everything is counted on.
        labels: int64 [n], theirs.
        images: what these are, such as `test images`.
        caution: how far the figures can be trusted on these images; empty: they chose nothing.
        temperatures: one an exit.
        fitted_on: what the temperatures were fitted on.
        costs: one an exit.
        unsplit_flops: of the network without early heads; None: unknown.
        points: the operating points, by name.
        judged: the one that the verdict is about.
        times: None: this device was not measured.
        no_times: why not, and how to get them.
        training: None: it is not in there.
        no_training: why not, and where it is.
        pictures: gives images of `logits` by their indices, uint8 [n, H, W, C]; None: there are
            none.
        no_pictures: why not, and how to get them.
        provenance: names and values, in the order to be shown.
    """

    kind: Literal["run", "bundle"]
    name: str
    about: str
    classes: tuple[str, ...]
    logits: Logits
    labels: NDArray[np.int64]
    images: str
    caution: str
    temperatures: tuple[float, ...]
    fitted_on: str
    costs: tuple[ExitCost, ...]
    unsplit_flops: int | None
    points: dict[str, NamedPolicy]
    judged: str
    times: DeviceTimes | None
    no_times: str
    training: Training | None
    no_training: str
    pictures: Callable[[Sequence[int]], Pixels] | None
    no_pictures: str
    provenance: tuple[tuple[str, str], ...]
