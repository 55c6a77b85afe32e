"""Every exit's logits of labelled images, through the engine on this device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.decide.softmax import Logits
from mate_edge.errors import DataError, ImageError
from mate_edge.images import read_image
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.engines import Say, choose_engine, make_engine
from mate_edge.runtime.points import DEEPEST
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources.images import find_labelled


@dataclass(frozen=True)
class Recorded:
    """What every exit says of labelled images.

    Attributes:
        logits: float32 [n, K, C].
        labels: int64 [n].
        folder: of the images.
        sha256: of the images and their labels.
        paths: [n], of the images.
        left_out: how many more could not be read.
    """

    logits: Logits
    labels: NDArray[np.int64]
    folder: Path
    sha256: str
    paths: tuple[Path, ...]
    left_out: int


def record_logits(
    bundle: Bundle, folder: Path, engine: str | None, threads: int | None, say: Say
) -> Recorded:
    """Run the images DIR/CLASS/... through all exits.

    Args:
        bundle: an opened bundle.
        folder: DIR.
        engine: a name in `ENGINES`; None lets `choose_engine` choose.
        threads: of the CPU engine.
        say: told what is left out, and which images cannot be read.

    Raises:
        DataError: no image of any class of the bundle, or none that can be read.
        EngineError: the engine cannot be had.
    """
    labelled = find_labelled(folder, bundle.manifest.classes, say)
    chosen = engine or choose_engine(bundle, say)

    def start() -> Predictor:
        return Predictor.warmed_up(make_engine(chosen, bundle, threads, True), DEEPEST)

    found: list[tuple[Path, int, Logits]] = []
    digest = hashlib.sha256()
    with build_if_needed(bundle, chosen, start, say) as predictor:
        for path, label in follow(labelled, f"all exits of {len(labelled)} images", say):
            try:
                data = read_image(path)
                predictor.predict(path)
            except ImageError as error:
                say(str(error))
                continue
            digest.update(label.to_bytes(8, "little") + hashlib.sha256(data).digest())
            found.append((path, label, np.concatenate(predictor.passed)))
    if not found:
        raise DataError(f"none of the {len(labelled)} images could be read")
    paths, labels, logits = zip(*found, strict=True)
    return Recorded(
        np.stack(logits),
        np.asarray(labels, np.int64),
        folder,
        digest.hexdigest(),
        paths,
        len(labelled) - len(found),
    )


def follow(items: list[tuple[Path, int]], what: str, say: Say) -> Iterable[tuple[Path, int]]:
    """Yield the items with a bar on stderr; a log gets one line instead."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        say(what)
        return items
    return track(items, what, console=console, transient=True)
