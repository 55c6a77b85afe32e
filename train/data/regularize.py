"""Options that keep a network from over-fitting: RandAugment, label smoothing, MixUp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

RAND_AUGMENT, MIX_UP = 1, 2
"""Set the random numbers of each apart from those of others for the same seed and epoch."""


class RandAugment:
    """Two random operations an image: Cubuk et al., arXiv:1909.13719, by torchvision.

    Args:
        magnitude: how strong they are, 1 to 30.
    """

    def __init__(self, magnitude: int) -> None:
        from torchvision.transforms import v2  # takes seconds, so only who needs it imports it

        self.vary = v2.RandAugment(num_ops=2, magnitude=magnitude, num_magnitude_bins=31)

    def __call__(
        self, pixels: NDArray[np.uint8], seed: int, epoch: int, indices: Sequence[int]
    ) -> NDArray[np.uint8]:
        """Vary images uint8 [n, H, W, C], each by what (seed, epoch, index) says alone."""
        varied = np.empty_like(pixels)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            for i, index in enumerate(indices):
                entropy = np.random.SeedSequence([seed, epoch, index, RAND_AUGMENT])
                torch.default_generator.manual_seed(int(entropy.generate_state(1)[0]))
                gray = pixels.shape[-1] == 1
                image = Image.fromarray(pixels[i, :, :, 0] if gray else pixels[i])
                varied[i] = np.asarray(self.vary(image)).reshape(pixels.shape[1:])
        return varied


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Turn labels int64 [B] into probabilities float32 [B, C].

    A share `smoothing` of each label goes to all classes alike (Szegedy et al., arXiv:1512.00567).
    """
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix_up(
    images: Tensor, labels: Tensor, alpha: float, key: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Blend each image and label with its neighbour's: Zhang et al., arXiv:1710.09412.

    The batch is shuffled, so a neighbour is a random partner.

    Args:
        images: float32 [B, C, H, W].
        labels: probabilities float32 [B, classes].
        alpha: the share is drawn from Beta(alpha, alpha), once a batch.
        key: what decides it: seed, epoch and batch.
    """
    share = float(np.random.default_rng([*key, MIX_UP]).beta(alpha, alpha))
    return torch.lerp(images.roll(1, 0), images, share), torch.lerp(
        labels.roll(1, 0), labels, share
    )
