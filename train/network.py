"""The multi-exit network."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from mate_edge.errors import RunError
from mate_edge.files import sha256
from mate_edge.names import look_up
from mate_edge.runs import Run, read_file
from mate_edge.train.backbones import make_parts
from mate_edge.train.backbones.parts import Classifier, Parts, output_shapes
from mate_edge.train.exits import cut
from mate_edge.train.heads import HEADS, remaining_shapes

WEIGHTS = "model.safetensors"


class MultiExitNet(nn.Module):
    """A backbone in stages, with a head after each.

    Segment k is `stages[k]` followed by `heads[k]`.

    Args:
        stages: features to features, in order.
        heads: as many, each from its stage's features to logits [B, C].
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(stages) != len(heads):
            raise ValueError(f"{len(stages)} stages need as many heads, not {len(heads)}")
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.frozen = False

    @property
    def num_exits(self) -> int:
        """K, the number of exits."""
        return len(self.heads)

    def forward(self, images: Tensor) -> Tensor:
        """Map images float [B, C, H, W] to the logits of all exits, [B, K, classes]."""
        features, logits = images, []
        for stage, head in zip(self.stages, self.heads, strict=True):
            features = stage(features)
            logits.append(head(features))
        return torch.stack(logits, dim=1)

    def freeze(self) -> None:
        """Fix all stages and the last head, BatchNorm and dropout too: only early heads learn.

        Then the last exit answers bit by bit as before, and no gradient goes through the backbone.
        """
        self.frozen = True
        self.stages.requires_grad_(False)
        self.heads[-1].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiExitNet:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.stages.eval()
            self.heads[-1].eval()
        return self

    def keep_exits(self, exits: Sequence[int]) -> MultiExitNet:
        """Return the network with only these exits (numbered from 1), sharing all weights.

        The segments of the exits left out are merged into the next one; stages after the last
        exit kept are dropped (export never asks for that).
        """
        stages, start = [], 0
        for end in exits:
            part = list(self.stages[start:end])
            stages.append(part[0] if len(part) == 1 else nn.Sequential(*part))
            start = end
        return MultiExitNet(stages, [self.heads[k - 1] for k in exits])

    def unsplit(self) -> nn.Module:
        """Return the network without early heads: what the exits are compared with."""
        return nn.Sequential(*self.stages, self.heads[-1])


def build_network(
    arch: str,
    head: str,
    channels: int,
    size: int,
    classes: int,
    cuts: Sequence[int] = (),
    stem: str | None = None,
) -> MultiExitNet:
    """Build a `MultiExitNet` with fresh weights.

    Args:
        arch: as `make_parts` takes it.
        head: a name in `HEADS`, for every exit but a last one with a classifier of its own.
        channels: of the images.
        size: of the images, in pixels.
        classes: how many.
        cuts: where the exits stand, as `choose_cuts` says; empty: at the ends of the stages.
        stem: `small` or `imagenet`; None: by the size.

    Raises:
        UsageError: an unknown name, or images that the backbone cannot take.
    """
    parts = make_parts(arch, channels, size, classes, stem)
    return assemble(arch, parts, head, channels, size, classes, cuts)


def assemble(
    arch: str,
    parts: Parts,
    head: str,
    channels: int,
    size: int,
    classes: int,
    cuts: Sequence[int] = (),
) -> MultiExitNet:
    """Put heads on a backbone's parts, which the network then shares; see `build_network`."""
    make_head = look_up("--head", head, HEADS)
    stages = cut(parts.stages, cuts)
    ends = output_shapes(arch, parts.stages, channels, size)
    shapes = output_shapes(arch, stages, channels, size) if cuts else ends
    *early, end = [remaining_shapes(shape, ends) for shape in shapes]
    heads = [make_head(remaining, classes) for remaining in early]
    last = parts.classifier
    if last is None:
        last = make_head(end, classes)
    elif isinstance(last, Classifier):
        last.resize(classes)
    return MultiExitNet(stages, [*heads, last])


def network_of(run: Run) -> MultiExitNet:
    """Build a run's network with fresh weights, without counting anything anew.

    All generators begin with the run's seed: every process draws the same weights, and a network
    of the user's own draws again what no state dict keeps, such as a buffer that is not persistent.

    Raises:
        UsageError: the user's own network can no longer be imported.
    """
    torch.manual_seed(run.seed)
    random.seed(run.seed)
    np.random.seed(run.seed % 2**32)
    preprocessing = run.preprocessing
    network = build_network(
        run.arch,
        run.head,
        preprocessing.channels,
        preprocessing.size,
        len(run.classes),
        run.cuts,
        run.stem,
    )
    if run.freeze_backbone:
        network.freeze()
    return network


def structure_of(network: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and dtypes of all weights."""
    shapes = [(n, list(t.shape), str(t.dtype)) for n, t in network.state_dict().items()]
    return sha256(repr(shapes).encode())


def announce_import(folder: Path, run: Run) -> None:
    """Say on stderr which code a run's own network is about to run; see `own_network`."""
    if ":" in run.arch:
        shown = run.arch if run.arch.isprintable() else ascii(run.arch)
        print(f"importing {shown}, as {folder / 'run.json'} says", file=sys.stderr)


def load_network(folder: Path, run: Run) -> MultiExitNet:
    """Rebuild a finished run's network with its weights, in evaluation mode.

    A network of the user's own is imported, which runs its code: it is named on stderr first.

    Raises:
        RunError: the weights are missing, altered, or of another architecture.
    """
    announce_import(folder, run)
    network = network_of(run)
    weights = load_safetensors(read_file(folder, run, WEIGHTS))
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise RunError(
            f"{folder / WEIGHTS} does not fit {run.arch} with {run.head} heads as run.json says"
        ) from None
    return network.eval()
