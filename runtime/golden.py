"""The golden inputs of a bundle, and what its own ONNX segments make of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.errors import BundleError
from mate_edge.images import normalize
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine


@dataclass(frozen=True)
class Golden:
    """n images with what they must give.

    Attributes:
        images: uint8 [n, H, W, C].
        inputs: float32 [n, C, H, W], preprocessed.
        logits: float32 [n, K, classes], of the exported network.
    """

    images: NDArray[np.uint8]
    inputs: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """One segment by itself in onnxruntime on the CPU.

    Attributes:
        inputs: [n, ...], what goes into it, in the dtype of its border.
        logits: float32 [n, classes].
    """

    inputs: NDArray[np.generic]
    logits: NDArray[np.float32]


def read_golden(bundle: Bundle) -> Golden:
    """Read `golden.npz`.

    Raises:
        BundleError: missing, altered, or not what the manifest makes one expect.
    """
    manifest = bundle.manifest
    arrays = bundle.arrays(manifest.golden)
    pre = manifest.preprocessing
    expected = {
        "images": (np.uint8, (pre.size, pre.size, pre.channels)),
        "logits": (np.float32, (len(manifest.exits), len(manifest.classes))),
    }
    what = f"{bundle.folder / manifest.golden.path} is damaged"
    for name, (dtype, shape) in expected.items():
        array = arrays.get(name)
        if array is None:
            raise BundleError(f"{what}: it holds no {name}; export the bundle again")
        if array.dtype != dtype or array.shape[1:] != shape or array.ndim != len(shape) + 1:
            raise BundleError(
                f"{what}: its {name} are {array.dtype} {list(array.shape)} instead of "
                f"{np.dtype(dtype)} [n, {', '.join(map(str, shape))}]; export the bundle again"
            )
    images: NDArray[np.uint8] = arrays["images"].astype(np.uint8, copy=False)
    logits: NDArray[np.float32] = arrays["logits"].astype(np.float32, copy=False)
    if not 0 < len(images) == len(logits):
        raise BundleError(f"{what}: {len(images)} images and {len(logits)} logits")
    if not np.isfinite(logits).all():
        raise BundleError(f"{what}: a logit is no number; export the bundle again")
    return Golden(images, normalize(images, pre), logits)


def run_reference(bundle: Bundle, golden: Golden) -> list[Reference]:
    """Run each ONNX segment of the bundle on the CPU, one after another, one image at a time.

    Raises:
        BundleError: a segment is missing or altered.
        EngineError: onnxruntime cannot run them.
    """
    inputs: list[list[NDArray[np.generic]]] = [[] for _ in bundle.manifest.segments]
    logits: list[list[NDArray[np.float32]]] = [[] for _ in bundle.manifest.segments]
    engine = OnnxRuntimeEngine(bundle, threads=1, blocked=lambda bundle: None)
    with engine:
        for row in range(len(golden.inputs)):
            engine.load(golden.inputs[row : row + 1])
            for k in range(1, engine.num_segments + 1):
                inputs[k - 1].append(engine.features)
                logits[k - 1].append(engine.run(k))
    return [
        Reference(np.concatenate(i), np.concatenate(o)) for i, o in zip(inputs, logits, strict=True)
    ]
