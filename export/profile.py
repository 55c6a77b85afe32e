"""What each exit costs: FLOPs as fvcore counts them (one multiply-add = 1), parameters, borders."""

from __future__ import annotations

from collections import Counter

import msgspec
import torch

from mate_edge.export.segments import segment_modules
from mate_edge.train.flops import count_flops
from mate_edge.train.network import MultiExitNet


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
    """Count a network's cost for images of `channels` x `size` x `size`, segment by segment.

    Raises:
        UsageError: a segment that torch cannot trace.
    """
    network.eval()
    features = images = torch.zeros(1, channels, size, size)
    exits: list[ExitCost] = []
    flops_so_far = parameters_so_far = 0
    uncounted: Counter[str] = Counter()
    for k, segment in enumerate(segment_modules(network)):
        total, by_module, missing = count_flops(segment, features, f"segment {k + 1}")
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
        unsplit_flops=count_flops(unsplit, images)[0],
        unsplit_parameters=sum(p.numel() for p in unsplit.parameters()),
        uncounted=dict(uncounted),
    )
