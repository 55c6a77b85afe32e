"""The run folder: what training leaves, and what export reads.

`run.json` (this schema), `model.safetensors`, `metrics.csv`, `outputs.npz` (each exit's logits and
the labels, validation and test, and a few validation images), `profile.json`, `state/` (resume).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mate_edge import files
from mate_edge.errors import RunError
from mate_edge.images import Preprocessing

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

SCHEMA = 1
RUNS = Path("runs")
METRICS = "metrics.csv"
MAX_EXITS = 1000
OptionValue = float | bool | str
"""What an option of a training method may be."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights are fitted.

    A step takes `batch_size` images, over all processes, in `accumulate` batches one after another.
    """

    epochs: int
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    """SGD's, or AdamW's first beta."""
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.375, 0.65, 0.9)
    """Fractions of `epochs` at which the schedule `step` divides the learning rate by 10."""
    warm_up: int = 0
    """Epochs in which the learning rate rises to `lr`."""
    randaugment: int = 0
    """RandAugment's magnitude, 1 to 30; 0 for none."""
    label_smoothing: float = 0.0
    """The share of each label that goes to all classes alike."""
    mixup: float = 0.0
    """The alpha of MixUp's Beta(alpha, alpha); 0 for none."""
    flip: bool | None = None
    """Whether images are mirrored at random; None: as the data set says."""

    @property
    def drops(self) -> tuple[int, ...]:
        """The epochs, from 0, that begin with a lower learning rate; the first never does."""
        return tuple(max(1, round(milestone * self.epochs)) for milestone in self.milestones)

    @property
    def settled(self) -> int:
        """The epoch, from 0, from which on the learning rate stays low.

        That of the last drop, or where there are none, as with a cosine, of the last quarter.
        """
        drops = self.drops if self.schedule == "step" else ()
        return max(drops, default=max(1, round(0.75 * self.epochs)))


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 accuracies in [0, 1]: one an exit, and the mean of all exits' logits."""

    val_accuracy: tuple[float, ...]
    val_ensemble: float
    test_accuracy: tuple[float, ...]
    test_ensemble: float
    cumulative_flops: tuple[int, ...] = ()
    """Of each exit, with all segments before it and their heads, as fvcore counts them."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: all that is needed to rebuild, resume or repeat a training."""

    schema: int = SCHEMA
    name: str
    arch: str
    head: str
    exits: int
    exits_at: str | None = None
    """Where the user asked for the exits: how many, or fractions of the backbone's FLOPs."""
    cuts: tuple[int, ...] = ()
    """After how many blocks of the backbone each exit stands; empty: at the ends of its stages."""
    stem: Literal["imagenet", "small"] | None = None
    """That of imported weights; None: by the size of the images."""
    pretrained: bool = False
    weights: str | None = None
    """The file that was imported, or the name of torchvision's weights."""
    weights_sha256: str | None = None
    """Of that file."""
    freeze_backbone: bool = False
    data: str
    train_images: int | None = None
    """How many of the training images were used; None for all."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    method: str
    method_options: dict[str, OptionValue] = {}
    recipe: Recipe
    seed: int
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    created: str
    versions: dict[str, str]
    git_commit: str | None = None
    results: Results | None = None
    validate_every: int = 1
    structure: str | None = None
    """SHA-256 of the names and shapes of the network's weights; None: of an earlier version."""
    images_sha256: str
    """Of labels and images of all splits; see `Dataset.fingerprint`."""
    files: dict[str, str] = {}
    """SHA-256 of `model.safetensors` and `outputs.npz`, by name."""

    def __post_init__(self) -> None:
        if not 1 <= self.exits <= MAX_EXITS or len(self.cuts) not in (0, self.exits):
            raise ValueError(f"{self.exits} exits and {len(self.cuts)} cuts do not fit together")
        if len(self.classes) < 2:
            raise ValueError("there must be two classes or more")
        found = self.results
        if found is not None and not (
            len(found.val_accuracy) == len(found.test_accuracy) == self.exits
            and len(found.cumulative_flops) in (0, self.exits)
        ):
            raise ValueError(f"the results are not those of {self.exits} exits")

    @property
    def finished(self) -> bool:
        """Whether training reached its last epoch."""
        return self.results is not None


def find_run(path: Path | None, finished: bool = False) -> Path:
    """Return the run folder that the user means: `path`, or the newest under `runs/`.

    Args:
        path: what was named, if anything was.
        finished: whether the run is to be trained to the end, as in `newest_run`.

    Raises:
        RunError: there is none.
    """
    if path is not None:
        if not path.is_dir():
            raise RunError(f"there is no run folder {path}: check the path, or train one first")
        return path
    newest = newest_run() if finished else files.read_latest(RUNS)
    if newest is None:
        raise RunError(
            "there is no run under runs/ yet: type mate-edge train, or name a run folder"
        )
    return newest


def newest_run() -> Path | None:
    """Return the run to go on with: the latest, or where it is unfinished or gone, one before it.

    That is said on stderr. Where no run is finished it is the latest all the same.

    Raises:
        RunError: the latest is damaged.
    """
    latest = files.read_latest(RUNS)
    if latest is not None and read_run(latest).finished:
        return latest
    finished: list[tuple[str, Path]] = []
    for document in RUNS.glob(f"[!.]*/{files.RUN}"):
        with suppress(RunError):  # a damaged one is no reason not to take another
            run = read_run(document.parent)
            if run.finished:
                finished.append((run.created, document.parent))
    if not finished:
        return latest
    _, newest = max(finished)
    if latest is not None:
        print(f"{latest} is not trained to the end: going on with {newest}", file=sys.stderr)
    return newest


def read_run(folder: Path) -> Run:
    """Read and validate `run.json`.

    Raises:
        RunError: missing, damaged or of a newer schema.
    """
    path = folder / files.RUN
    if not path.exists() and (folder / files.MANIFEST).is_file():
        raise RunError(f"{folder} is a bundle: name the run that it was exported from")
    if not path.exists() and (inside := sorted(folder.glob(f"*/{files.RUN}"))):
        raise RunError(f"{folder} is no run but holds some: name one, such as {inside[0].parent}")
    data = files.read_bytes(path, files.MAX_JSON_BYTES, RunError)
    return files.decode_json(data, Run, path, SCHEMA, RunError)


def read_finished_run(folder: Path) -> Run:
    """Read a run whose training is complete.

    Raises:
        RunError: as `read_run`, or the training has not finished.
    """
    run = read_run(folder)
    if not run.finished:
        raise RunError(
            f"{folder} is not trained to the end: type mate-edge train --resume --out {folder}"
        )
    return run


def read_flops(folder: Path, run: Run) -> tuple[int, ...]:
    """Return the cumulative FLOPs of a finished run's exits.

    Raises:
        RunError: the run is of a time when they were not kept.
    """
    if run.results is None or not run.results.cumulative_flops:
        raise RunError(
            f"{folder} was trained before runs kept their FLOPs, which this needs: train it again"
        )
    return run.results.cumulative_flops


def write_run(folder: Path, run: Run) -> None:
    """Write `run.json`, whole or not at all."""
    files.write_json(folder / files.RUN, run)


def read_file(folder: Path, run: Run, name: str) -> bytes:
    """Return the bytes of one of the run's files, after checking them against `run.json`.

    Raises:
        RunError: missing, altered or truncated.
    """
    path = folder / name
    data = files.read_bytes(path, files.MAX_FILE_BYTES, RunError)
    if files.sha256(data) != run.files.get(name):
        raise RunError(f"{path} is not the file that training wrote (SHA-256 differs): train again")
    return data


def read_outputs(folder: Path, run: Run) -> dict[str, NDArray[Any]]:
    """Read `outputs.npz`.

    Returns:
        `val_logits` and `test_logits` float32 [n, K, C], `val_labels` and `test_labels` int64 [n],
        `val_images` uint8 [m, size, size, channels], a few images of validation, and
        `val_image_indices` int64 [m], which ones.

    Raises:
        RunError: missing, altered or truncated, or not what the run makes one expect.
    """
    name = "outputs.npz"
    found = files.bytes_to_arrays(read_file(folder, run, name), folder / name, RunError)
    for split in ("val", "test"):
        logits, labels = found.get(f"{split}_logits"), found.get(f"{split}_labels")
        if logits is not None and labels is not None and not len(labels):
            raise RunError(f"{folder / name} has no {split} images: train again")
        if not _fit(logits, labels, run):
            raise RunError(f"{folder / name} does not fit run.json: train again")
    images, indices = found.get("val_images"), found.get("val_image_indices")
    pre, n = run.preprocessing, len(found["val_labels"])
    if (
        images is None
        or indices is None
        or images.shape != (len(indices), pre.size, pre.size, pre.channels)
        or not len(indices) > 0
        or not 0 <= indices.min() <= indices.max() < n
    ):
        raise RunError(f"{folder / name} does not fit run.json: train again")
    return found


def _fit(logits: NDArray[Any] | None, labels: NDArray[Any] | None, run: Run) -> bool:
    """Say whether logits [n, K, C] and labels [n] can be of a run; with a NaN the least is none."""
    if logits is None or labels is None:
        return False
    return (
        labels.ndim == 1
        and labels.dtype.kind == "i"
        and logits.dtype.kind == "f"
        and logits.shape == (len(labels), run.exits, len(run.classes))
        and bool(0 <= labels.min() <= labels.max() < len(run.classes))
    )
