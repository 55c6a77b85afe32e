"""One ONNX file for each segment, in fp32: batch axis dynamic, weights inside.

BatchNorm is folded into the layer before it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import msgspec
import onnx
import torch
from torch import nn

from mate_edge.bundle import UNSPLIT_OUTPUT, Tensor
from mate_edge.errors import ExportError
from mate_edge.export.models import Model, Models
from mate_edge.train.network import MultiExitNet

EXAMPLE_BATCH = 2
IMAGES = "images"
"""What goes into the first segment, and into the unsplit network."""


class SegmentModule(nn.Module):
    """A stage and its head: features to (features, logits), or to logits alone after the last."""

    def __init__(self, stage: nn.Module, head: nn.Module, last: bool) -> None:
        super().__init__()
        self.stage, self.head, self.last = stage, head, last

    def forward(self, features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return what the segment's engine returns."""
        features = self.stage(features)
        logits = self.head(features)
        return logits if self.last else (features, logits)


def segment_modules(network: MultiExitNet) -> list[SegmentModule]:
    """Return the network's segments, sharing its weights."""
    pairs = zip(network.stages, network.heads, strict=True)
    return [
        SegmentModule(stage, head, last=k == network.num_exits)
        for k, (stage, head) in enumerate(pairs, start=1)
    ]


def export_models(
    network: MultiExitNet,
    input_shape: tuple[int, ...],
    opsets: tuple[int, int],
    say: Callable[[str], object],
) -> Models:
    """Export every segment and the unsplit network, in fp32.

    Args:
        network: whose segments are wanted.
        input_shape: of one image.
        opsets: lowest and highest that may come out.
        say: told what is going on.

    Raises:
        ExportError: as `to_onnx`.
    """
    segments = export_segments(network, input_shape, opsets, say)
    images = torch.zeros(EXAMPLE_BATCH, *input_shape)
    data = to_onnx(network.unsplit(), images, IMAGES, [UNSPLIT_OUTPUT], opsets)
    output = msgspec.structs.replace(segments[-1].outputs[-1], name=UNSPLIT_OUTPUT)
    unsplit = Model("the unsplit network", data, segments[0].input, (output,))
    return Models(tuple(segments), unsplit)


def export_segments(
    network: MultiExitNet,
    input_shape: tuple[int, ...],
    opsets: tuple[int, int],
    say: Callable[[str], object],
) -> list[Model]:
    """Export the segments alone; see `export_models`."""
    features = torch.zeros(EXAMPLE_BATCH, *input_shape)
    source = Tensor(name=IMAGES, shape=input_shape, dtype="float32")
    segments = []
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
        segments.append(Model(f"segment {k}", data, source, outputs))
        features, source = tensors[0], outputs[0]
    return segments


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep torch's warnings back: what matters of them is in its error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _last_place(traced: str) -> str:
    """Return the last line of the user's code in what torch prints of a trace that failed."""
    places = re.findall(r"# File: (\S+):(\d+) in ", traced)
    own = [place for place in places if "/torch/" not in place[0]]
    return f", after {os.path.basename(own[-1][0])}:{own[-1][1]}" if own else ""


def _first_reason(error: BaseException) -> str:
    """Return the first line of what an error was raised from first, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__


def to_onnx(
    module: nn.Module,
    inputs: torch.Tensor,
    input_name: str,
    output_names: Sequence[str],
    opsets: tuple[int, int],
) -> bytes:
    """Export a module to ONNX.

    Args:
        module: in evaluation mode.
        inputs: float32 [n, ...] with n >= 2, an example.
        input_name: the graph's.
        output_names: the graph's.
        opsets: lowest and highest that may come out.

    Returns:
        The model, with its weights inside, and nothing that tells of this machine.

    Raises:
        ExportError: torch cannot export the module, or only for this number of samples; BatchNorm
            is left after a convolution or a linear layer, or the opset is outside `opsets`.
    """
    traced = io.StringIO()
    with warnings.catch_warnings(), _without_log(), redirect_stderr(traced):
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(
                module.eval(),
                (inputs,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[input_name],
                output_names=list(output_names),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the user's own modules are traced
            reason, where = _first_reason(error), _last_place(traced.getvalue())
            raise ExportError(
                f"torch cannot export the segment of {output_names[-1]}{where}: {reason}; see "
                "torch.export, which must be able to follow the modules' code for any batch"
            ) from error
    model: onnx.ModelProto = program.model_proto
    strip(model)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            f"the segment of {output_names[-1]} takes {len(inputs)} samples and no other number: "
            "its code makes a constant of the batch; use x.flatten(1), not int(x.shape[0])"
        )
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    if not opsets[0] <= opset <= opsets[1]:
        raise ExportError(f"torch wrote ONNX opset {opset}, the target reads {opsets}")
    if _has_foldable_batch_norm(model.graph):
        raise ExportError(
            f"BatchNorm of {output_names[-1]} could not be folded into the layer before it"
        )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _has_foldable_batch_norm(graph: onnx.GraphProto) -> bool:
    """Say whether a BatchNorm is left that only a convolution or a linear layer feeds.

    One that comes before its convolution, as in a DenseNet, cannot be folded into any: it stays a
    node, which every engine computes.
    """
    readers = Counter([name for node in graph.node for name in node.input])
    readers.update(output.name for output in graph.output)
    foldable = {
        node.output[0]
        for node in graph.node
        if node.op_type in ("Conv", "Gemm") and readers[node.output[0]] == 1
    }
    return any(
        node.op_type == "BatchNormalization" and node.input[0] in foldable for node in graph.node
    )


def strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold source lines and paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info,
                 *graph.initializer):  # fmt: skip
        part.doc_string = ""
        del part.metadata_props[:]
