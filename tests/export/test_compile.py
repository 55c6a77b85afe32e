"""What is exported for NVIDIA compiles: TensorRT for RTX does that without a GPU.

TensorRT itself must be tried on a device; `test_operators.py` holds the nodes against its floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mate_edge.export.models import Model, Models
from mate_edge.export.operators import TENSORRT, check_operators
from mate_edge.export.precision import FOR_TENSORRT, lower, lower_segments
from mate_edge.export.segments import export_segments
from mate_edge.export.targets import NVIDIA_OPSETS
from mate_edge.train.network import build_network

Compile = Callable[[Model], list[str]]
SIZE = 32
CALIBRATION = 4


@pytest.mark.parametrize(
    "precision", ["fp32", "fp16", pytest.param("int8", marks=pytest.mark.int8)]
)
def test_a_trained_networks_segments_and_whole_compile(
    precision: str, fp32_models: Models, compile_for_rtx: Compile
) -> None:
    shape = (CALIBRATION, *fp32_models.unsplit.input.shape)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    models = fp32_models
    if precision != "fp32":
        models = lower(models, FOR_TENSORRT[precision], images)
    for model in models.all:
        check_operators(model, TENSORRT)
        assert compile_for_rtx(model) == [], model.name


@pytest.mark.slow
@pytest.mark.int8
@pytest.mark.parametrize(
    "arch",
    ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"],
)
def test_every_segment_of_an_architecture_compiles_in_every_precision(
    arch: str, compile_for_rtx: Compile
) -> None:
    torch.manual_seed(0)
    network = build_network(arch, "sepconv", 3, SIZE, 10)
    images = torch.randn(CALIBRATION, 3, SIZE, SIZE)
    with torch.no_grad():  # BatchNorms that have seen data keep activations within fp16
        network.train()(images)
    segments = export_segments(network.eval(), (3, SIZE, SIZE), NVIDIA_OPSETS, lambda text: None)
    assert len(segments) == network.num_exits
    lowered: dict[str, Any] = {"fp32": segments}
    for precision, conversion in FOR_TENSORRT.items():
        lowered[precision] = lower_segments(segments, conversion, images.numpy())
    for precision, each in lowered.items():
        for model in each:
            check_operators(model, TENSORRT)
            assert compile_for_rtx(model) == [], (precision, model.name)
