"""The data set of a run, again: to resume it, or to measure on the images that it saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec

from mate_edge.runs import Run
from mate_edge.train.data import OF_ONE_SIZE, load_dataset
from mate_edge.train.data.adapt import reorder_classes, use_resize, use_statistics
from mate_edge.train.data.dataset import Dataset


def load_again(run: Run, moved: Path | None = None) -> Dataset | None:
    """Return the data set that a run was trained on, or None when its images have changed.

    Args:
        run: whose data set is wanted.
        moved: where the folder lies now; None for where it lay.

    Raises:
        UsageError: its folder is gone.
        DataError: it is missing or damaged.
        ImageError: an image that cannot be read, as far as they are read now.
    """
    size = None if run.data in OF_ONE_SIZE else run.preprocessing.size
    dataset = load_dataset(str(moved or run.data), size, run.train_images)
    if set(dataset.classes) == set(run.classes):
        dataset = reorder_classes(dataset, run.classes)
    if dataset.preprocessing.channels == run.preprocessing.channels:
        dataset = use_statistics(dataset, run.preprocessing.mean, run.preprocessing.std)
    if dataset.preprocessing.resize != dataset.preprocessing.size:
        dataset = use_resize(dataset, run.preprocessing.resize)
    gap = run.preprocessing.reducing_gap  # runs that began before there was one have none
    preprocessing = msgspec.structs.replace(dataset.preprocessing, reducing_gap=gap)
    dataset = dataclasses.replace(dataset, preprocessing=preprocessing)
    same = (dataset.classes, dataset.preprocessing) == (run.classes, run.preprocessing)
    return dataset if same and dataset.fingerprint() == run.images_sha256 else None
