"""What each exit costs: FLOPs as fvcore counts them (one multiply-add = 1), parameters, borders."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from mate_edge.export.segments import segment_modules
from mate_edge.train.network import MultiExitNet

with warnings.catch_warnings():  # fvcore uses a decorator of torch that is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

ACTIVATIONS = ("aten::relu", "aten::relu_", "aten::clamp", "aten::clamp_")
"""Arithmetic that fvcore passes over without a word; here it is listed as not counted."""


class ExitCost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of one segment at batch 1, and of reaching its exit.

    `flops` covers stage and head; `cumulative_flops` all segments up to this one, heads included.
    """

    flops: int
    head_flops: int
    cumulative_flops: int
    parameters: int
    cumulative_parameters: int
    border_shape: tuple[int, ...]
    border_bytes: int


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a network.

    `uncounted` says how often each operator occurs that fvcore has no rule for: none of them is in
    the FLOPs.
    """

    schema: int = 1
    input_shape: tuple[int, ...]
    exits: tuple[ExitCost, ...]
    unsplit_flops: int
    unsplit_parameters: int
    uncounted: dict[str, int]

    @property
    def ceiling(self) -> float:
        """The best possible speed-up: the unsplit network's FLOPs over the first segment's."""
        return self.unsplit_flops / self.exits[0].flops


@torch.no_grad()
def profile_network(network: MultiExitNet, channels: int, size: int) -> Profile:
    """Count a network's cost for images of `channels` x `size` x `size`, segment by segment."""
    network.eval()
    features = images = torch.zeros(1, channels, size, size)
    exits: list[ExitCost] = []
    flops_so_far = parameters_so_far = 0
    uncounted: Counter[str] = Counter()
    for k, segment in enumerate(segment_modules(network)):
        total, by_module, missing = _count(segment, features)
        uncounted += missing
        flops_so_far += total
        parameters = sum(p.numel() for p in segment.parameters())
        parameters_so_far += parameters
        features = network.stages[k](features)
        last = k == network.num_exits - 1
        exits.append(
            ExitCost(
                flops=total,
                head_flops=by_module["head"],
                cumulative_flops=flops_so_far,
                parameters=parameters,
                cumulative_parameters=parameters_so_far,
                border_shape=() if last else tuple(features.shape[1:]),
                border_bytes=0 if last else features.numel() * features.element_size(),
            )
        )
    unsplit = network.unsplit()
    return Profile(
        input_shape=(channels, size, size),
        exits=tuple(exits),
        unsplit_flops=_count(unsplit, images)[0],
        unsplit_parameters=sum(p.numel() for p in unsplit.parameters()),
        uncounted=dict(uncounted),
    )


def _count(module: nn.Module, inputs: torch.Tensor) -> tuple[int, Counter[str], Counter[str]]:
    """Return fvcore's FLOPs in all and by submodule, and the operators that it did not count."""
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ignored: Counter[str] = Counter()

    def note(operator: str) -> Callable[[list[Any], list[Any]], int]:
        def count_nothing(inputs: list[Any], outputs: list[Any]) -> int:
            ignored[operator] += 1
            return 0

        return count_nothing

    for operator in ACTIVATIONS:
        analysis.set_op_handle(operator, note(operator))
    by_module = Counter({name: round(flops) for name, flops in analysis.by_module().items()})
    return round(analysis.total()), by_module, Counter(analysis.unsupported_ops()) + ignored
