"""From a run to a bundle, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mate_edge import bundle, files
from mate_edge.bundle import Build, Exit, Manifest, OperatingPoint, Segment
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import Labels, Logits
from mate_edge.decide.temperature import fit_temperatures
from mate_edge.decide.tune import FEW_SAMPLES, MAX_DROPS, search_thresholds
from mate_edge.errors import UsageError
from mate_edge.export.check import check_logits, check_models, check_remembered
from mate_edge.export.measure import (
    MAX_DROP,
    Measured,
    check_max_drop,
    load_data,
    lower_and_measure,
    recall_training,
)
from mate_edge.export.models import Models
from mate_edge.export.operators import check_operators
from mate_edge.export.profile import Profile, profile_network
from mate_edge.export.segments import export_models
from mate_edge.export.targets import Target, check_max_batch, choose
from mate_edge.images import normalize
from mate_edge.runs import Run, read_outputs
from mate_edge.train.evaluate import images_at_once, spread
from mate_edge.train.network import load_network

CALIBRATION_BYTES = 20 * 10**6


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
    max_drop: float = MAX_DROP,
    max_batch: int = 1,
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
        max_drop: how many points of validation accuracy an exit may lose to a lower precision.
        max_batch: the largest batch that engines will be built for.

    Raises:
        UsageError: an unknown target, precision or exit, or `out` exists.
        RunError: the run's files are missing or altered.
        ExportError: the training diverged, the network is not the one that was trained, torch
            cannot export it, the exported segments do not compute what the network computes, the
            target does not take one of their nodes, the images for a lower precision are gone, or
            it costs an exit more than `max_drop`.
    """
    kind, precision = choose(target, precision)
    check_max_batch(target, max_batch)
    check_max_drop(max_drop)
    keep = check_exits(exits, run.exits)
    network = load_network(folder, run).keep_exits(keep)
    outputs: dict[str, Any] = read_outputs(folder, run)
    check_logits(outputs, keep)
    check_remembered(network, outputs, keep, run.preprocessing)
    profile = profile_network(network, run.preprocessing.channels, run.preprocessing.size)
    if out is None:
        out = files.unused(bundle.BUNDLES / f"{folder.resolve().name}-{target}.mate")
    files.check_text((out.name,))
    samples = len(outputs["val_labels"])
    if samples < FEW_SAMPLES:
        say(
            f"{samples} validation images are few, so the operating points are careful: mate-edge "
            "tune --images DIR takes others"
        )
    with files.whole_folder(out) as made:
        data = load_data(run, precision) if precision != "fp32" else None
        models = export_models(network, profile.input_shape, kind.opsets, say)
        _check_operators(models, kind)
        say("checking the segments against the network on real images")
        few = outputs["val_images"][: images_at_once(run.preprocessing.size)]
        worst = check_models(models, network, normalize(few, run.preprocessing))
        say(f"largest difference {worst:.1g} of the largest value")
        if data is None:
            measured = recall_training(network, outputs, keep, run.preprocessing)
        else:
            models, measured = lower_and_measure(
                models, kind, precision, data, outputs, max_drop, say
            )
            _check_operators(models, kind)
        temperatures = fit_temperatures(measured.val_logits, measured.val_labels)
        manifest = Manifest(
            name=out.name.removesuffix(files.BUNDLE_SUFFIX),
            target=target,
            precision=precision,
            build=Build(engine=kind.engine, max_batch=max_batch),
            classes=run.classes,
            preprocessing=run.preprocessing,
            segments=_add_segments(made, models),
            exits=_exits(profile, models, measured, temperatures),
            operating_points=operating_points(
                measured.val_logits, measured.val_labels, temperatures, profile
            ),
            unsplit=bundle.add_file(made, "unsplit.onnx", models.unsplit.data),
            unsplit_flops=profile.unsplit_flops,
            golden=bundle.add_file(made, "golden.npz", _golden(measured)),
            calibration=bundle.add_file(made, "calibration.npz", _calibration(measured)),
            provenance=_provenance(run, keep),
        )
        files.write_json(made / bundle.MANIFEST, manifest)
    files.write_latest(bundle.BUNDLES, out)
    return out, manifest


def _check_operators(models: Models, target: Target) -> None:
    if target.operators is not None:
        for model in models.all:
            check_operators(model, target.operators)


def _add_segments(made: Path, models: Models) -> tuple[Segment, ...]:
    """Write the segments' files into the bundle that is being made, and describe them."""
    return tuple(
        Segment(
            file=bundle.add_file(made, f"segments/{k}.onnx", model.data),
            input=model.input,
            outputs=model.outputs,
        )
        for k, model in enumerate(models.segments, start=1)
    )


def _exits(
    profile: Profile, models: Models, measured: Measured, temperatures: tuple[float, ...]
) -> tuple[Exit, ...]:
    return tuple(
        Exit(
            flops=cost.flops,
            cumulative_flops=cost.cumulative_flops,
            parameters=cost.parameters,
            border_bytes=model.border_bytes,
            val_accuracy=val,
            fp32_val_accuracy=fp32_val,
            test_accuracy=test,
            temperature=temperature,
        )
        for cost, model, val, fp32_val, test, temperature in zip(
            profile.exits,
            models.segments,
            measured.val_accuracy,
            measured.fp32_val_accuracy,
            measured.test_accuracy,
            temperatures,
            strict=True,
        )
    )


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
            val_mean_flops=outcome.mean_cost(cumulative),
            val_exit_shares=outcome.exit_shares(len(cumulative)),
        )
    return points


def _golden(measured: Measured) -> bytes:
    return files.arrays_to_bytes(
        {"images": measured.golden_images, "logits": measured.golden_logits}
    )


def _calibration(measured: Measured) -> bytes:
    """Pack validation logits as float16, as many samples as `CALIBRATION_BYTES` hold."""
    logits, labels = measured.val_logits, measured.val_labels
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
