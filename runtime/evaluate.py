"""`mate-edge evaluate BUNDLE DIR`: a labelled folder through the engine, on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from mate_edge import files
from mate_edge.bundle import MANIFEST, Bundle, Manifest, find_bundle, read_bundle
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import Logits
from mate_edge.errors import DataError, ImageError, UsageError
from mate_edge.report.labelled import LabelledFigures, PolicyFigures
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.classify import announce
from mate_edge.runtime.deadline import check_max_ms, check_reachable
from mate_edge.runtime.engines import Say, choose_engine, make_engine
from mate_edge.runtime.labelled import follow
from mate_edge.runtime.points import DEEPEST, all_points
from mate_edge.runtime.policy import Chosen, choose_policy
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources.images import find_labelled, holds_images
from mate_edge.times import Times

COLUMNS = b"source,label,exit_1"
"""What the file of `save` begins with."""
Rows = list[dict[str, object]]
"""Of a CSV file, one an image that can be read."""


def choose_sources(first: Path | None, second: Path | None) -> tuple[Path | None, Path] | None:
    """Say which bundle (None: the newest) and which labelled folder `evaluate` is to take.

    Args:
        first: a run, a bundle, or a labelled folder alone.
        second: the labelled folder.

    Returns:
        None when a run is meant.

    Raises:
        UsageError: a bundle without a folder, or a run with one.
    """
    if first is None:
        return None
    if second is not None:
        if (first / files.RUN).is_file() and not (first / MANIFEST).is_file():
            raise UsageError(
                f"{first} is a run, and a folder of images goes with a bundle: type mate-edge "
                f"export {first} first"
            )
        return first, second
    if (first / MANIFEST).is_file() or first.suffix == ".mate":
        raise UsageError(
            f"{first} is a bundle: name a folder of labelled images too, DIR/CLASS/*.jpg, as in "
            f"mate-edge evaluate {first} DIR"
        )
    if not (first / files.RUN).exists() and holds_images(first):
        return None, first
    return None


def evaluate_folder(
    bundle: Path | None,
    folder: Path,
    *,
    max_ms: float | None,
    save: Path | None,
    engine: str | None,
    say: Say,
    threads: int | None = None,
    show: Callable[[LabelledFigures], object] = lambda found: None,
) -> LabelledFigures:
    """Run all images of `folder` through the engine and count.

    One pass takes every image through all exits; from its logits and times come the figures
    without a deadline. Under a deadline each policy makes a pass of its own, since what the
    deadline halts depends on the clock.

    Args:
        bundle: the folder; None means the newest.
        folder: with a folder of images for each class.
        max_ms: the deadline of each image.
        save: a CSV file to write, one row an image, however it ends.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        say: told what is going on.
        threads: of the CPU engine.
        show: given the figures before `save` is written: a full disk then costs the file alone.

    Raises:
        DataError: no image of any class of the bundle, or none that can be read.
        UsageError: `save` cannot be written.
        MateEdgeError: as `Predictor.load`.
    """
    check_max_ms(max_ms)
    opened = read_bundle(find_bundle(bundle))
    labelled = find_labelled(folder, opened.manifest.classes, say)
    if save is not None:
        files.make_folder(save.parent)
        files.check_place(save)
        files.check_replaces(save, "table of answers", lambda head: head.startswith(COLUMNS))
    engine = engine or choose_engine(opened, say)

    def start() -> Predictor:
        return Predictor.warmed_up(make_engine(engine, opened, threads, True), DEEPEST)

    rows: Rows = []
    with _saved(rows, save, say), build_if_needed(opened, engine, start, say) as predictor:
        say(f"{opened.folder}: {predictor.engine.device}")
        with suppress(ImageError):  # the first image that is decoded loads the decoders
            predictor.predict(labelled[0][0])
        all_exits = _all_exits(predictor, labelled, rows, say)
        readable, under_deadline = all_exits.readable, dict[str, PolicyFigures]()
        if max_ms is not None:
            table, frame_ms = predictor.know_latencies(say), median(all_exits.frame_ms)
            check_reachable(table, max_ms, strict=False, say=say, frame_ms=frame_ms)
            announce(predictor, max_ms)
            for name, policy in _policies(predictor.bundle).items():
                figures = _under_deadline(predictor, readable, name, policy, max_ms, rows, say)
                if figures is not None:
                    under_deadline[name] = figures
        found = LabelledFigures(
            bundle=files.shown(opened.folder),
            bundle_id=opened.id,
            device=predictor.engine.device,
            data=files.shown(folder),
            images=len(readable),
            unreadable=len(labelled) - len(readable),
            exit_accuracies=all_exits.exit_accuracies,
            policies=all_exits.policies,
            max_ms=max_ms,
            under_deadline=under_deadline,
        )
        show(found)
    return found


@contextmanager
def _saved(rows: Rows, save: Path | None, say: Say) -> Iterator[None]:
    """Write what is in `rows` when the block ends, also by ctrl-C or an error."""
    try:
        yield
    finally:
        if save is not None and rows:
            files.write_csv(save, rows)
            say(f"each image's answers: {save}")


@dataclass(frozen=True)
class _AllExits:
    """What the pass through all exits found."""

    readable: list[tuple[Path, int]]
    frame_ms: list[float]
    exit_accuracies: tuple[float, ...]
    policies: dict[str, PolicyFigures]


@dataclass
class _Tally:
    """Counts what one policy did."""

    manifest: Manifest
    right: int = 0
    missed: int = 0
    halted: int = 0
    exits: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def add(self, right: bool, exit_: int, ms: float) -> None:
        self.right += right
        self.exits.append(exit_)
        self.ms.append(ms)

    def figures(self) -> PolicyFigures:
        """Sum up one image or more."""
        n, exits = len(self.exits), self.manifest.exits
        return PolicyFigures(
            accuracy=self.right / n,
            exit_shares=tuple(self.exits.count(k) / n for k in range(1, len(exits) + 1)),
            mean_flops=sum(exits[k - 1].cumulative_flops for k in self.exits) / n,
            times=Times.of(self.ms),
            missed=self.missed,
            halted_by_deadline=self.halted,
        )


TOGETHER = 256
"""Images that are counted at once: after each, it would take the caches from the engine."""


@dataclass(frozen=True)
class _Recorded:
    """One image that went through all exits, with its logits [1, K, C]."""

    path: Path
    label: int
    prediction: Prediction
    logits: Logits


def _all_exits(
    predictor: Predictor, labelled: list[tuple[Path, int]], rows: Rows, say: Say
) -> _AllExits:
    """Take every image through all exits, and simulate the policies on what they say."""
    manifest, policies = predictor.manifest, _policies(predictor.bundle)
    tallies = {name: _Tally(manifest) for name in policies}
    readable, frame_ms, waiting = list[tuple[Path, int]](), list[float](), list[_Recorded]()
    right = np.zeros(len(manifest.exits), np.int64)
    try:
        for path, label in follow(labelled, f"all exits of {len(labelled)} images", say):
            try:
                prediction = predictor.predict(path)
            except ImageError as error:
                say(str(error))
                continue
            readable.append((path, label))
            frame_ms.append(prediction.decode_ms + prediction.preprocess_ms)
            waiting.append(_Recorded(path, label, prediction, np.stack(predictor.passed, axis=1)))
            if len(waiting) == TOGETHER:
                right += _count(waiting, policies, tallies, manifest, rows)
    finally:
        right += _count(waiting, policies, tallies, manifest, rows)
    n = len(readable)
    if n == 0:
        raise DataError(f"none of the {len(labelled)} images could be read")
    return _AllExits(
        readable,
        frame_ms,
        exit_accuracies=tuple(float(count) / n for count in right),
        policies={name: tally.figures() for name, tally in tallies.items()},
    )


def _count(
    recorded: list[_Recorded],
    policies: dict[str, Chosen],
    tallies: dict[str, _Tally],
    manifest: Manifest,
    rows: Rows,
) -> NDArray[np.int64]:
    """Simulate the policies on recorded images, and forget those.

    Returns:
        How many each exit answers rightly, int64 [K].
    """
    if not recorded:
        return np.zeros(len(manifest.exits), np.int64)
    logits = np.concatenate([one.logits for one in recorded])
    labels = np.array([one.label for one in recorded])
    answers = logits.argmax(axis=-1)
    outcomes = {name: simulate(one.policy, logits) for name, one in policies.items()}
    for i, one in enumerate(recorded):
        row: dict[str, object] = {
            "source": files.shown(one.path),
            "label": manifest.classes[one.label],
        }
        row |= {f"exit_{k}": manifest.classes[index] for k, index in enumerate(answers[i], 1)}
        for name, outcome in outcomes.items():
            exit_ = int(outcome.exits[i])
            ms = _ms_up_to(one.prediction, exit_)
            tallies[name].add(bool(outcome.predictions[i] == one.label), exit_, ms)
            row |= {f"{name}:exit": exit_, f"{name}:ms": f"{ms:.3f}"}
        rows.append(row)
    recorded.clear()
    right: NDArray[np.int64] = (answers == labels[:, None]).sum(axis=0)
    return right


def _under_deadline(
    predictor: Predictor,
    labelled: list[tuple[Path, int]],
    name: str,
    policy: Chosen,
    max_ms: float,
    rows: Rows,
    say: Say,
) -> PolicyFigures | None:
    """Run one policy for real, under the deadline, on images that could be read.

    Returns:
        None when none of them can be read any more.
    """
    predictor.timing.start_over()
    tally = _Tally(predictor.manifest)
    followed = follow(labelled, f"{name} under {max_ms:g} ms", say)
    for row, (path, label) in zip(rows, followed, strict=True):
        try:
            prediction = predictor.predict(path, policy=policy, max_ms=max_ms)
        except ImageError as error:  # it was there a minute ago
            say(str(error))
            continue
        tally.add(prediction.index == label, prediction.exit, prediction.elapsed_ms)
        tally.missed += prediction.deadline_missed
        tally.halted += prediction.halted_by == "deadline"
        column = f"{name}:deadline"
        row |= {
            f"{column}_answer": prediction.label,
            f"{column}_exit": prediction.exit,
            f"{column}_halted_by": prediction.halted_by,
            f"{column}_ms": f"{prediction.elapsed_ms:.3f}",
            f"{column}_missed": int(prediction.deadline_missed),
        }
    return tally.figures() if tally.exits else None


def _policies(bundle: Bundle) -> dict[str, Chosen]:
    """Return the operating points, those stored here too, and the deepest policy, by name."""
    names = [*all_points(bundle), DEEPEST]
    return {name: choose_policy(bundle, name) for name in names}


def _ms_up_to(prediction: Prediction, exit_: int) -> float:
    """Return what a prediction through all exits would have taken, had it left at `exit_`."""
    segments = prediction.segment_ms
    before = prediction.decode_ms + prediction.preprocess_ms
    decisions = prediction.elapsed_ms - before - sum(segments)
    return before + sum(segments[:exit_]) + decisions * exit_ / len(segments)
