"""The bundle's validation logits, which thresholds, temperatures and drift rest on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.decide.softmax import Logits
from mate_edge.errors import BundleError


def read_calibration(bundle: Bundle) -> tuple[Logits, NDArray[np.int64]]:
    """Return every exit's logits, float32 [n, K, C], and the labels, int64 [n].

    Raises:
        BundleError: `calibration.npz` is missing, altered, or does not fit the manifest.
    """
    manifest = bundle.manifest
    arrays: dict[str, NDArray[Any]] = bundle.arrays(manifest.calibration)
    path = bundle.folder / manifest.calibration.path
    logits, labels = arrays.get("logits"), arrays.get("labels")
    if (
        logits is None
        or labels is None
        or logits.dtype.kind != "f"
        or labels.dtype.kind not in "iu"
        or labels.ndim != 1
    ):
        raise BundleError(f"{path} does not hold logits and labels: export the run again")
    expected = (len(labels), len(manifest.exits), len(manifest.classes))
    if logits.shape != expected or labels.shape != expected[:1]:
        raise BundleError(
            f"{path} holds logits of shape {logits.shape} and {labels.size} labels, not "
            f"{expected} as the manifest says: export the run again"
        )
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
        logits = logits.astype(np.float32)
    if not np.isfinite(logits).all() or not ((labels >= 0) & (labels < expected[2])).all():
        raise BundleError(f"{path} holds a logit or a label out of range: export the run again")
    return logits, labels.astype(np.int64)
