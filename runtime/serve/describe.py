"""What a model says of itself: metadata, configuration, statistics, and a line for the page."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mate_edge.runtime.serve.model import ENCODED, FRAMES, Figures, Model
from mate_edge.runtime.serve.outputs import OUTPUTS, PROBABILITIES
from mate_edge.runtime.serve.protocol import BYTES

CONFIG_TYPES = {BYTES: "TYPE_STRING"}
"""Triton's configuration has names of its own; the others only put TYPE_ before."""


def metadata(model: Model) -> dict[str, Any]:
    """Return the protocol's model metadata: an input is one of those named, never several."""
    shapes = {FRAMES: [-1, -1, -1, 3], ENCODED: [-1], model.input.name: [-1, *model.input.shape]}
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"mate-edge_{model.engine}",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": shapes[name]}
            for name, datatype in model.inputs.items()
        ],
        "outputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [-1, len(model.manifest.classes)] if name == PROBABILITIES else [-1],
            }
            for name, (datatype, _) in OUTPUTS.items()
        ],
    }


def configuration(model: Model) -> dict[str, Any]:
    """Return Triton's model configuration, as far as it makes sense here."""
    found = metadata(model)

    def tensor(one: dict[str, Any]) -> dict[str, Any]:
        datatype = one["datatype"]
        kind = CONFIG_TYPES.get(datatype, f"TYPE_{datatype}")
        return {"name": one["name"], "data_type": kind, "dims": one["shape"]}

    return {
        "name": model.name,
        "platform": found["platform"],
        "backend": "mate-edge",
        "version_policy": {"specific": {"versions": [int(model.version)]}},
        "max_batch_size": 0,  # the batch is an axis of `dims`
        "input": [{**tensor(one), "optional": True} for one in found["inputs"]],
        "output": [tensor(one) for one in found["outputs"]],
        "instance_group": [
            {"name": model.name, "kind": "KIND_AUTO", "count": len(model.predictors)}
        ],
    }


def statistics(model: Model) -> dict[str, Any]:
    """Return Triton's statistics of a model, as far as it makes sense here."""
    totals = {
        field.name: sum(getattr(figures, field.name) for figures in model.figures)
        for field in fields(Figures)
    }
    done = totals["succeeded"]
    nothing = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": max(figures.last_ms for figures in model.figures),
        "inference_count": totals["images"],
        "execution_count": done,
        "inference_stats": {
            "success": {"count": done, "ns": totals["total_ns"]},
            "fail": {"count": totals["failed"], "ns": totals["failed_ns"]},
            "queue": {"count": done, "ns": totals["queue_ns"]},
            "compute_input": nothing,
            "compute_infer": {"count": done, "ns": totals["compute_ns"]},
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }


def summary(model: Model) -> dict[str, Any]:
    """Return what the page shows: exits, policies, and the ms of segments."""
    first = model.predictors[0]
    table = first.timing.latencies
    return {
        "name": model.name,
        "version": model.version,
        "bundle_id": model.bundle.id,
        "device": first.engine.device,
        "classes": model.manifest.classes,
        "exits": len(model.manifest.exits),
        "val_accuracy": [exit_.val_accuracy for exit_ in model.manifest.exits],
        "segment_median_ms": table.median_ms if table else [],
        "policies": model.policies(),
        "policy": model.default,
        "max_ms": model.max_ms,
    }
