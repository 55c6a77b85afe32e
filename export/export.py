"""From a run to a bundle, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mate_edge import bundle, files
from mate_edge.bundle import Exit, Manifest, OperatingPoint, Segment, Tensor
from mate_edge.decide.simulate import simulate
from mate_edge.decide.temperature import fit_temperature
from mate_edge.decide.tune import MAX_DROPS, search_thresholds
from mate_edge.errors import UsageError
from mate_edge.export.check import check_bundle
from mate_edge.export.profile import Profile, profile_network
from mate_edge.export.segments import segment_modules, to_onnx
from mate_edge.export.targets import choose
from mate_edge.images import normalize
from mate_edge.runs import Run, read_outputs
from mate_edge.train.evaluate import exit_accuracy, spread
from mate_edge.train.network import MultiExitNet, load_network

GOLDEN_IMAGES = 8
CALIBRATION_BYTES = 20 * 10**6
EXAMPLE_BATCH = 2
Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def check_exits(exits: Sequence[int] | None, num_exits: int) -> list[int]:
    """Return the exits to keep, all when None.

    Raises:
        UsageError: not rising, outside 1..K, or without the last one.
    """
    if exits is None:
        return list(range(1, num_exits + 1))
    if (
        not exits
        or list(exits) != sorted(set(exits))
        or not 1 <= exits[0] <= exits[-1] <= num_exits
    ):
        chosen = ",".join(str(k) for k in exits)
        raise UsageError(f"--exits takes rising numbers from 1 to {num_exits}, not {chosen!r}")
    if exits[-1] != num_exits:  # it answers for the unsplit network, which stands in every bundle
        raise UsageError(f"--exits must keep the last exit, {num_exits}")
    return list(exits)


def export_run(
    folder: Path,
    run: Run,
    target: str,
    precision: str | None,
    exits: Sequence[int] | None,
    out: Path | None,
    say: Callable[[str], object],
) -> tuple[Path, Manifest]:
    """Export a finished run as a bundle; nothing is left behind when it fails.

    Args:
        folder: the run's.
        run: from `read_finished_run`.
        target: a name in `TARGETS`.
        precision: one of the target's, or None for its default.
        exits: those to keep, numbered from 1; None keeps all. Segments between are merged.
        out: the bundle folder; None chooses a free name under `bundles/`.
        say: told what is going on.

    Raises:
        UsageError: an unknown target, precision or exit, or `out` exists.
        RunError: the run's files are missing or altered.
        ExportError: the exported segments do not compute what the network computes.
    """
    kind, precision = choose(target, precision)
    keep = check_exits(exits, run.exits)
    network = load_network(folder, run).keep_exits(keep)
    columns = [k - 1 for k in keep]
    outputs: dict[str, Any] = read_outputs(folder, run)
    val_logits: Logits = outputs["val_logits"][:, columns]
    test_logits: Logits = outputs["test_logits"][:, columns]
    profile = profile_network(network, run.preprocessing.channels, run.preprocessing.size)
    if out is None:
        out = files.unused(bundle.BUNDLES / f"{folder.resolve().name}-{target}.mate")
    with files.whole_folder(out) as made:
        segments = _write_segments(made, network, profile, kind.opsets, say)
        temperatures = tuple(
            fit_temperature(val_logits[:, k], outputs["val_labels"]) for k in range(len(keep))
        )
        accuracies = [
            exit_accuracy(logits, outputs[f"{split}_labels"])[0]
            for split, logits in (("val", val_logits), ("test", test_logits))
        ]
        manifest = Manifest(
            name=out.stem,
            target=target,
            precision=precision,
            classes=run.classes,
            preprocessing=run.preprocessing,
            segments=tuple(segments),
            exits=tuple(
                Exit(
                    flops=cost.flops,
                    cumulative_flops=cost.cumulative_flops,
                    parameters=cost.parameters,
                    border_bytes=cost.border_bytes,
                    val_accuracy=val,
                    test_accuracy=test,
                    temperature=temperature,
                )
                for cost, val, test, temperature in zip(
                    profile.exits, *accuracies, temperatures, strict=True
                )
            ),
            operating_points=operating_points(
                val_logits, outputs["val_labels"], temperatures, profile
            ),
            unsplit=bundle.add_file(
                made,
                "unsplit.onnx",
                to_onnx(
                    network.unsplit(),
                    _example(profile),
                    "images",
                    [bundle.UNSPLIT_OUTPUT],
                    kind.opsets,
                ),
            ),
            unsplit_flops=profile.unsplit_flops,
            golden=bundle.add_file(
                made, "golden.npz", _golden(network, outputs["val_images"], run)
            ),
            calibration=bundle.add_file(
                made, "calibration.npz", _calibration(val_logits, outputs["val_labels"])
            ),
            provenance=_provenance(run, keep),
        )
        files.write_json(made / bundle.MANIFEST, manifest)
        say("checking the segments against the network on real images")
        worst = check_bundle(made, network, normalize(outputs["val_images"], run.preprocessing))
        say(f"largest difference {worst:.1g} of the largest value")
    files.write_latest(bundle.BUNDLES, out)
    return out, manifest


def _write_segments(
    made: Path,
    network: MultiExitNet,
    profile: Profile,
    opsets: tuple[int, int],
    say: Callable[[str], object],
) -> list[Segment]:
    segments = []
    features = _example(profile)
    source = Tensor(name="images", shape=profile.input_shape, dtype="float32")
    for k, module in enumerate(segment_modules(network), start=1):
        say(f"exporting segment {k} of {network.num_exits}")
        with torch.no_grad():
            results = module(features)
        tensors = [results] if isinstance(results, torch.Tensor) else list(results)
        names = [f"logits_{k}"] if module.last else [f"features_{k}", f"logits_{k}"]
        data = to_onnx(module, features, source.name, names, opsets)
        outputs = tuple(
            Tensor(name=name, shape=tuple(tensor.shape[1:]), dtype="float32")
            for name, tensor in zip(names, tensors, strict=True)
        )
        file = bundle.add_file(made, f"segments/{k}.onnx", data)
        segments.append(Segment(file=file, input=source, outputs=outputs))
        features, source = tensors[0], outputs[0]
    return segments


def _example(profile: Profile) -> torch.Tensor:
    return torch.zeros(EXAMPLE_BATCH, *profile.input_shape)


def operating_points(
    logits: Logits, labels: Labels, temperatures: tuple[float, ...], profile: Profile
) -> dict[str, OperatingPoint]:
    """Choose `fast`, `balanced` and `accurate` on validation outputs, float32 [n, K, C]."""
    cumulative = tuple(cost.cumulative_flops for cost in profile.exits)
    points = {}
    for name, max_drop in MAX_DROPS.items():
        policy = search_thresholds(logits, labels, temperatures, cumulative, max_drop)
        outcome = simulate(policy, logits)
        points[name] = OperatingPoint(
            policy="confidence",
            parameters=asdict(policy),
            val_accuracy=outcome.accuracy(labels),
            val_mean_flops=outcome.mean_flops(cumulative),
            val_exit_shares=outcome.exit_shares(len(cumulative)),
        )
    return points


@torch.no_grad()
def _golden(network: MultiExitNet, images: NDArray[np.uint8], run: Run) -> bytes:
    few = images[spread(len(images), GOLDEN_IMAGES)]
    logits = network(torch.from_numpy(normalize(few, run.preprocessing))).numpy()
    return files.arrays_to_bytes({"images": few, "logits": logits})


def _calibration(logits: Logits, labels: Labels) -> bytes:
    """Pack validation logits as float16, as many samples as `CALIBRATION_BYTES` hold."""
    kept = spread(len(labels), CALIBRATION_BYTES // (2 * logits[0].size))
    return files.arrays_to_bytes(
        {"logits": logits[kept].astype(np.float16), "labels": labels[kept]}
    )


def _provenance(run: Run, exits: list[int]) -> dict[str, Any]:
    return {
        "run": run.name,
        "arch": run.arch,
        "head": run.head,
        "exits": exits,
        "weights": run.weights,
        "weights_sha256": run.weights_sha256,
        "data": Path(run.data).name,
        "method": run.method,
        "method_options": run.method_options,
        "recipe": run.recipe,
        "seed": run.seed,
        "trained": run.created,
        "trained_with": run.versions,
        "git_commit": run.git_commit,
        "exported_with": {name: version(name) for name in ("mate-edge", "torch", "onnx")},
    }
