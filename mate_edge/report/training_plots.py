"""The plots of a report that show a training; see `plots.PLOTS`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mate_edge.report import drawing
from mate_edge.report.drawing import INK, MUTED, Plot
from mate_edge.report.figures import Figures
from mate_edge.report.subject import Subject, Training
from mate_edge.report.text import epochs_text
from mate_edge.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_curves(subject: Subject, found: Figures) -> list[Plot]:
    """Draw accuracy and loss over the epochs."""
    training = subject.training
    if training is None:
        return []
    figure, axes = drawing.new_figure()
    for k, (seen, held) in enumerate(
        zip(training.train_accuracy, training.val_accuracy, strict=True), start=1
    ):
        axes.plot(training.epochs, 100 * np.asarray(seen), color=drawing.exit_color(k), alpha=0.45,
                  linewidth=1.1)  # fmt: skip
        epochs, values = _counted(training, held)
        axes.plot(epochs, 100 * values, label=f"exit {k}", **drawing.exit_line(k))
    _mark_drops(axes, training)
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.legend(loc="lower right")
    _, last = _counted(training, training.val_accuracy[-1])
    end = f"; exit {found.num_exits} ends at {percent(float(last[-1]))}" if len(last) else ""
    accuracy = Plot(
        "training-accuracy",
        "Accuracy over the epochs",
        f"Thick: validation images, thin: training images with their variations{end}. Vertical "
        "lines: the learning rate falls.",
        figure,
    )
    figure, axes = drawing.new_figure()
    axes.plot(training.epochs, training.loss, color=INK)
    _mark_drops(axes, training)
    axes.set(xlabel="epoch", ylabel="loss")
    loss = Plot(
        "training-loss",
        "Loss over the epochs",
        f"The loss falls from {training.loss[0]:.3g} to {training.loss[-1]:.3g} in "
        f"{epochs_text(len(training.epochs))}.",
        figure,
    )
    return [accuracy, loss]


def _counted(
    training: Training, values: Sequence[float]
) -> tuple[list[int], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return the epochs that counted a value, and the values."""
    pairs = [
        (e, value)
        for e, value in zip(training.epochs, values, strict=True)
        if not math.isnan(value)
    ]
    return [e for e, _ in pairs], np.asarray([value for _, value in pairs])


def _mark_drops(axes: Axes, training: Training) -> None:
    """Draw a line where the learning rate falls by much."""
    for before, after, epoch in zip(
        training.lr, training.lr[1:], training.epochs[1:], strict=False
    ):
        if after < 0.6 * before:
            axes.axvline(epoch - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))


def teacher_weights(subject: Subject, found: Figures) -> list[Plot]:
    """Draw what each of MATE's teachers is made of over the epochs."""
    training = subject.training
    if training is None:
        return []
    plots = []
    for i, rows in enumerate(training.teacher_weights, start=1):
        figure, axes = drawing.new_figure(height=240)
        _plot_each(axes, training, "exit", [100 * np.asarray(weights) for weights in rows])
        axes.set(xlabel="epoch", ylabel="weight, %", ylim=(0, None))
        axes.legend(loc="best", ncols=len(rows), columnspacing=1.0)
        last = [weights[-1] for weights in rows]
        k = int(np.argmax(last)) + 1
        says = (
            f"In the end teacher {i}, which exit {i} learns from first, listens most to exit {k}: "
            f"{percent(max(last), 0)} of its weight."
        )
        plots.append(Plot(f"teacher-{i}", f"What teacher {i} is made of", says, figure))
    return plots


def teachers(subject: Subject, found: Figures) -> list[Plot]:
    """Draw the teachers' accuracy, and how far the exits are from them."""
    training = subject.training
    if training is None or not training.teacher_accuracy:
        return []
    figure, axes = drawing.new_figure(height=240)
    accuracies = [100 * np.asarray(values) for values in training.teacher_accuracy]
    _plot_each(axes, training, "teacher", accuracies)
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.legend(loc="lower right")
    last = [values[-1] for values in training.teacher_accuracy]
    best = int(np.argmax(last))
    accuracy = Plot(
        "teacher-accuracy",
        "The teachers' accuracy",
        f"On the training images teacher {best + 1} ends best, with {percent(last[best])}.",
        figure,
    )
    figure, axes = drawing.new_figure(height=240)
    _plot_each(axes, training, "exit", training.kl_primary)
    axes.set(xlabel="epoch", ylabel="KL divergence", ylim=(0, None))
    axes.legend(loc="best")
    ends = [values[-1] for values in training.kl_primary]
    far = int(np.argmax(ends))
    distance = Plot(
        "teacher-distance",
        "How far each exit is from its own teacher",
        f"In the end exit {far + 1} is the farthest from its teacher, {ends[far]:.3g}.",
        figure,
    )
    return [accuracy, distance]


def _plot_each(
    axes: Axes, training: Training, what: str, each: Sequence[Sequence[float] | NDArray[np.float64]]
) -> None:
    """Draw a line over the epochs for each exit, or for the teacher of its number."""
    every = max(1, len(training.epochs) // 8)
    for k, values in enumerate(each, start=1):
        line = drawing.exit_line(k) | {"markevery": every}
        axes.plot(training.epochs, values, label=f"{what} {k}", **line)
