"""Where the exits stand: at the ends of stages, or nearest to fractions of the backbone's FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import nn

from mate_edge.errors import UsageError
from mate_edge.train.backbones.parts import output_shapes
from mate_edge.train.flops import count_flops

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def choose_cuts(
    arch: str, stages: Sequence[nn.Module], exits: str | None, channels: int, size: int
) -> tuple[int, ...]:
    """Choose after how many blocks each exit stands.

    Args:
        arch: the backbone's name, for errors.
        stages: of the backbone; see `split_blocks` for what a block is.
        exits: a number of exits (as many as stages: their ends), or rising fractions of the
            backbone's FLOPs such as `0.25,0.5,0.75`, to which the final exit is added; None: the
            ends of the stages.
        channels: of the images.
        size: of the images, in pixels.

    Returns:
        Rising numbers of blocks, the last one of all; empty for the ends of the stages.

    Raises:
        UsageError: not such a number or fractions, more exits than blocks, two on one block, images
            that the backbone cannot take, or a block whose FLOPs cannot be counted.
    """
    if exits is None or exits == str(len(stages)):
        return ()
    blocks = split_blocks(stages)
    count = int(exits) if exits.isdecimal() else exits.count(",") + 2
    if count > len(blocks):
        raise UsageError(
            f"--exits {exits} asks for {count} exits, and this backbone has only {len(blocks)} "
            "blocks"
        )
    fractions = _fractions(exits)
    output_shapes(arch, stages, channels, size)
    cumulative = list(accumulate(_block_flops(blocks, channels, size)))
    cuts: list[int] = []
    for fraction in fractions:
        wanted = fraction * cumulative[-1]
        nearest = min(range(1, len(blocks)), key=lambda n: abs(cumulative[n - 1] - wanted))
        if nearest in cuts:
            places = ", ".join(f"{flops / cumulative[-1]:.2f}" for flops in cumulative[:-1])
            raise UsageError(
                f"--exits {exits} puts two exits after block {nearest} of {len(blocks)}: the "
                f"blocks end at {places} of the backbone's FLOPs"
            )
        cuts.append(nearest)
    return (*cuts, len(blocks))


def _fractions(exits: str) -> list[float]:
    """Return the fractions before the final exit."""
    try:
        if exits.isdecimal() and int(exits) > 0:
            return [k / int(exits) for k in range(1, int(exits))]
        fractions = [float(part) for part in exits.split(",")]
    except ValueError:
        fractions = [math.nan]
    if not all(a < b for a, b in pairwise([0.0, *fractions, 1.0])):
        raise UsageError(
            "--exits takes a number of exits, or rising fractions between 0 and 1 such as "
            f"0.25,0.5,0.75, not {exits!r}"
        )
    return fractions


def cut(stages: Sequence[nn.Module], cuts: Sequence[int]) -> list[nn.Module]:
    """Return one module for each segment's part of the backbone; without cuts the stages."""
    if not cuts:
        return list(stages)
    blocks = split_blocks(stages)
    return [nn.Sequential(*blocks[start:end]) for start, end in pairwise((0, *cuts))]


def split_blocks(stages: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the blocks between which an exit may stand.

    A plain `nn.Sequential` is opened; any other module that holds modules, such as a residual
    block, is never split. What only prepares the features of the layer before it (normalization,
    activation, pooling, dropout) stays with that layer.
    """
    blocks: list[list[nn.Module]] = []
    for module in _flat(stages):
        if blocks and _belongs_to_the_layer_before(module):
            blocks[-1].append(module)
        else:
            blocks.append([module])
    return [block[0] if len(block) == 1 else nn.Sequential(*block) for block in blocks]


def _flat(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential:
            yield from _flat(list(module))
        else:
            yield module


def _belongs_to_the_layer_before(module: nn.Module) -> bool:
    if list(module.children()):
        return False
    return isinstance(module, NORMS) or not list(module.parameters())


@torch.no_grad()
def _block_flops(blocks: Sequence[nn.Module], channels: int, size: int) -> Iterator[int]:
    features = torch.zeros(1, channels, size, size)
    for number, block in enumerate(blocks, start=1):
        training = block.training
        yield count_flops(block.eval(), features, f"block {number}")[0]
        features = block(features)
        block.train(training)
