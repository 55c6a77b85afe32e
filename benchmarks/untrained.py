"""Bundles of untrained networks: their answers mean nothing, their times are a trained one's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from mate_edge import files
from mate_edge.bundle import read_bundle
from mate_edge.export.export import export_run
from mate_edge.images import Preprocessing, normalize
from mate_edge.runs import Recipe, Results, Run, write_run
from mate_edge.runtime.build_command import join_if_needed
from mate_edge.runtime.engines import EVERYWHERE
from mate_edge.train.data.images import REDUCING_GAP
from mate_edge.train.evaluate import cumulative_flops
from mate_edge.train.heads import DEFAULT_HEAD
from mate_edge.train.loop import provenance
from mate_edge.train.network import WEIGHTS, build_network

IMAGES = 16


def make_bundle(folder: Path, arch: str, size: int, classes: int) -> Path:
    """Write a run with random weights and export it; return the bundle, made once."""
    name = f"{arch}-{size}-{classes}-{DEFAULT_HEAD}"
    bundle = folder / f"{name}.mate"
    if bundle.exists():
        join_if_needed(read_bundle(bundle), EVERYWHERE, lambda text: None)
        return bundle
    torch.manual_seed(0)
    preprocessing = Preprocessing(
        channels=3,
        size=size,
        resize=round(size * 256 / 224) if size > 64 else size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        reducing_gap=REDUCING_GAP,
    )
    network = build_network(arch, DEFAULT_HEAD, 3, size, classes).eval()
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(normalize(images, preprocessing))).numpy()
    labels = np.arange(IMAGES) % classes
    outputs = {"val_logits": logits, "val_labels": labels, "val_images": images,
               "val_image_indices": np.arange(IMAGES),
               "test_logits": logits, "test_labels": labels}  # fmt: skip
    contents = {WEIGHTS: save(network.state_dict()), "outputs.npz": files.arrays_to_bytes(outputs)}
    nothing = (0.0,) * network.num_exits
    run = Run(
        name=name,
        arch=arch,
        head=DEFAULT_HEAD,
        exits=network.num_exits,
        data="none",
        classes=tuple(f"class {c}" for c in range(classes)),
        preprocessing=preprocessing,
        method="ce",
        recipe=Recipe(epochs=1),
        seed=0,
        images_sha256="none",
        results=Results(
            val_accuracy=nothing,
            val_ensemble=0.0,
            test_accuracy=nothing,
            test_ensemble=0.0,
            cumulative_flops=cumulative_flops(network, preprocessing),
        ),
        files={name: files.sha256(data) for name, data in contents.items()},
        **provenance(),
    )
    run_folder = folder / name
    run_folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        files.write_whole(run_folder / name, data)
    write_run(run_folder, run)
    return export_here(run_folder, run, bundle)


def export_here(folder: Path, run: Run, bundle: Path) -> Path:
    """Export a run for the CPU, once, and build for this one, as `mate-edge export` does."""
    if not bundle.exists():
        export_run(folder, run, "cpu", None, None, bundle, lambda text: None)
    join_if_needed(read_bundle(bundle), EVERYWHERE, lambda text: None)
    return bundle
