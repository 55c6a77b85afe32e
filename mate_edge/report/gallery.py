"""Which images a report shows: those that leave early, late, and that divide the exits."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import softmax
from mate_edge.report.subject import Pixels, Subject

MOST = 12
"""Images in each row."""
SIDE = 96
"""Larger images are scaled down to so many pixels."""


@dataclass(frozen=True)
class Tile:
    """One image.

    Attributes:
        index: in the subject's images.
        picture: encoded, PNG or JPEG.
        kind: its MIME type.
        label: the class it is of.
        exit: where it leaves at the judged operating point, from 1.
        answers: the class that each exit answers.
        confidences: calibrated, of these answers.
        right: whether these are right.
    """

    index: int
    picture: bytes
    kind: str
    label: str
    exit: int
    answers: tuple[str, ...]
    confidences: tuple[float, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Row:
    """Images that have something in common.

    Attributes:
        name: for files.
        title: what they have in common.
        count: how many images have it, the shown ones among them.
        tiles: empty: none has it.
    """

    name: str
    title: str
    count: int
    tiles: tuple[Tile, ...]


def choose_rows(subject: Subject) -> tuple[Row, ...]:
    """Choose images and fetch them; empty when the subject has no pictures.

    Raises:
        ImageError: one of them cannot be read.
    """
    if subject.pictures is None:
        return ()
    answers = subject.logits.argmax(axis=-1)
    confidences = np.stack(
        [
            softmax(subject.logits[:, k], temperature).max(axis=-1)
            for k, temperature in enumerate(subject.temperatures)
        ],
        axis=1,
    )
    outcome = simulate(subject.points[subject.judged].policy, subject.logits)
    right = answers == subject.labels[:, None]
    good = outcome.predictions == subject.labels
    last, sure = subject.logits.shape[1], confidences[:, 0]
    early = (outcome.exits == 1) & (last > 1)
    rows = [
        ("early", "Leave first", early & good, -sure),
        ("late", "Go all the way", (outcome.exits == last) & (last > 1), sure),
        ("lost", "Leave too early: the last exit would be right", ~good & right[:, -1], -sure),
        ("mended", "Saved by leaving early: the last exit is wrong", good & ~right[:, -1], -sure),
        (
            "disagree",
            "The exits disagree",
            (answers != answers[:, :1]).any(axis=1),
            -confidences.min(axis=1),
        ),
    ]
    chosen = [
        (name, title, int(flags.sum()), pick(flags, order, subject.labels))
        for name, title, flags, order in rows
    ]
    wanted = sorted({index for *_, indices in chosen for index in indices})
    pixels = dict(zip(wanted, subject.pictures(wanted), strict=True)) if wanted else {}
    return tuple(
        Row(
            name,
            title,
            count,
            tuple(
                Tile(
                    index,
                    *encode(pixels[index]),
                    label=subject.classes[subject.labels[index]],
                    exit=int(outcome.exits[index]),
                    answers=tuple(subject.classes[answer] for answer in answers[index]),
                    confidences=tuple(float(value) for value in confidences[index]),
                    right=tuple(bool(value) for value in right[index]),
                )
                for index in indices
            ),
        )
        for name, title, count, indices in chosen
    )


def pick(
    flags: NDArray[np.bool_], order: NDArray[np.floating], labels: NDArray[np.int64]
) -> list[int]:
    """Return at most `MOST` of the flagged images, the first by `order`, and of many classes.

    The first of each class come before the second of any: twelve of one class would say little.
    """
    found = np.flatnonzero(flags)
    found = found[np.argsort(order[found], kind="stable")]
    seen: dict[int, int] = {}
    ranked = []
    for place, index in enumerate(found.tolist()):
        label = int(labels[index])
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= MOST:
            ranked.append((seen[label], place, index))
    return [index for _, _, index in sorted(ranked)[:MOST]]


def encode(pixels: Pixels) -> tuple[bytes, str]:
    """Return a picture uint8 [H, W, C] as a file of at most `SIDE` pixels, and its MIME type.

    Small ones stay exact; photographs become JPEG.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if max(image.size) <= SIDE // 2:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue(), "image/jpeg"
