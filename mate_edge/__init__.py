"""mate-edge: multi-exit image classifiers that answer within a deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mate_edge.runtime.predictor import Predictor

__version__ = "0.1.0"


def load(bundle: str | Path, **options: Any) -> Predictor:
    """Open a bundle for prediction: `Predictor.load`, imported only now.

    Args:
        bundle: a bundle folder, `NAME.mate`.
        **options: see `mate_edge.runtime.predictor.Predictor.load`.

    Raises:
        BundleError: the bundle is missing, altered or of a newer schema.
    """
    from mate_edge.runtime.predictor import Predictor

    return Predictor.load(bundle, **options)
