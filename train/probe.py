"""What a network answers to an image made up for it: kept, so that code edited since is noticed.

The same weights fit a network whose activations were exchanged, and it computes something else.
"""

from __future__ import annotations

import math

import torch

from mate_edge.images import Preprocessing
from mate_edge.train.network import MultiExitNet

REMEMBERED = 0.02
"""How far logits may lie from those kept, as a share of the largest: those may be of a GPU, with
TensorFloat-32."""
FEW = 8  # classes: what comes before the classifier shows in all of them


@torch.no_grad()
def probe(network: MultiExitNet, preprocessing: Preprocessing) -> tuple[float, ...]:
    """Return the logits of the first classes at every exit; none when one is no number.

    Args:
        network: put into evaluation mode here and left in it.
        preprocessing: the run's, for the shape of the image.
    """
    network.eval()
    shape = (1, preprocessing.channels, preprocessing.size, preprocessing.size)
    image = torch.arange(math.prod(shape), dtype=torch.float32).sin().view(shape)
    device = next(network.parameters()).device
    logits = network(image.to(device, memory_format=torch.channels_last))[0, :, :FEW].float()
    return tuple(logits.flatten().tolist()) if bool(logits.isfinite().all()) else ()


def is_remembered(
    network: MultiExitNet, preprocessing: Preprocessing, kept: tuple[float, ...]
) -> bool:
    """Say whether a network answers `probe` as it did when that was kept, if it was."""
    if not kept:
        return True
    found = probe(network, preprocessing)
    if not found:
        return False
    difference = max(abs(one - other) for one, other in zip(found, kept, strict=True))
    return difference <= REMEMBERED * max(map(abs, kept))
