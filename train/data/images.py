"""The images of one split: held in memory, or read from files when they are needed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import ImageError
from mate_edge.images import Preprocessing, crop, decode, open_image
from mate_edge.train.data.augment import crop_resized, crop_shifted, flip_some

REDUCING_GAP = 2.0
"""Of every new run, see `Preprocessing`: Pillow's `thumbnail` has it, too."""
LARGE = 128
"""From this size on (px), images stay on disk and are cut at random sizes in training."""

Pixels = NDArray[np.uint8]


class Images(Protocol):
    """A split of a data set."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]."""
        ...

    def pick(self, chosen: NDArray[np.bool_]) -> Images:
        """Return the images where `chosen`, bool [N], is true."""
        ...

    def identity(self) -> bytes | memoryview:
        """Return bytes that change when the images do (for files: when their names do).

        The folder that holds all of them may be another one.
        """
        ...

    def plain(self, indices: Sequence[int], preprocessing: Preprocessing) -> Pixels:
        """Return images as the runtime would see them, uint8 [n, size, size, channels]."""
        ...

    def augmented(
        self,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        *,
        flip: bool,
        seed: int,
        epoch: int,
    ) -> Pixels:
        """Return images varied at random, each a function of (seed, epoch, index) alone."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Small images, all of the network's own size, uint8 [N, size, size, channels]."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def pick(self, chosen: NDArray[np.bool_]) -> MemoryImages:
        """See `Images.pick`."""
        return MemoryImages(self.pixels[chosen], self.labels[chosen])

    def identity(self) -> bytes | memoryview:
        """See `Images.identity`."""
        return np.ascontiguousarray(self.pixels).data

    def plain(self, indices: Sequence[int], preprocessing: Preprocessing) -> Pixels:
        """See `Images.plain`."""
        picked: Pixels = self.pixels[np.asarray(indices)]
        return picked

    def augmented(
        self,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        *,
        flip: bool,
        seed: int,
        epoch: int,
    ) -> Pixels:
        """See `Images.augmented`: a crop after padding by 4 pixels, and a flip."""
        picks = np.asarray(indices)
        random = _draw(len(self.labels), seed, epoch)[picks]
        pixels = crop_shifted(self.pixels[picks], random[:, 0], random[:, 1])
        return flip_some(pixels, random[:, 2]) if flip else pixels


@lru_cache(maxsize=1)
def _draw(count: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Draw for a whole split at once, so that each image's numbers depend on its index alone."""
    return np.random.default_rng([seed, epoch]).random((count, 3))


@dataclass(frozen=True)
class FileImages:
    """Larger images, decoded when they are asked for."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, labelled: Iterable[tuple[Path, int]]) -> FileImages:
        """Make a split of files and their labels."""
        pairs = list(labelled)
        labels = np.asarray([label for _, label in pairs], np.int64)
        return cls(tuple(path for path, _ in pairs), labels)

    def pick(self, chosen: NDArray[np.bool_]) -> FileImages:
        """See `Images.pick`."""
        paths = tuple(path for path, keep in zip(self.paths, chosen, strict=True) if keep)
        return FileImages(paths, self.labels[chosen])

    def identity(self) -> bytes | memoryview:
        """See `Images.identity`."""
        folders = {path.parent for path in self.paths}
        top = os.path.commonpath(folders) if folders else ""
        return b"\0".join(os.fsencode(os.path.relpath(path, top)) for path in self.paths)

    def plain(self, indices: Sequence[int], preprocessing: Preprocessing) -> Pixels:
        """See `Images.plain`.

        Raises:
            ImageError: one of the files cannot be read.
        """
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock to others
            return np.stack(
                list(pool.map(lambda i: self._plain(self.paths[i], preprocessing), indices))
            )

    def augmented(
        self,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        *,
        flip: bool,
        seed: int,
        epoch: int,
    ) -> Pixels:
        """See `Images.augmented`: a crop of random size and aspect, scaled, and a flip.

        Raises:
            ImageError: one of the files cannot be read.
        """
        pixels = []
        for i in indices:
            random, name = np.random.default_rng([seed, epoch, i]), str(self.paths[i])
            with open_image(self.paths[i], name) as image:
                one = crop_resized(image, preprocessing, random, name)[None]
            pixels.append(flip_some(one, random.random(1)) if flip else one)
        return np.concatenate(pixels)

    @staticmethod
    def _plain(path: Path, preprocessing: Preprocessing) -> Pixels:
        return crop(decode(path, preprocessing=preprocessing), preprocessing, str(path))

    def in_memory(self, size: int) -> MemoryImages:
        """Decode all files now, as RGB, scaled and cut to `size` pixels.

        Raises:
            ImageError: some cannot be read; the message counts them and names the first.
        """
        failures: list[str] = []
        scaled = Preprocessing(
            channels=3,
            size=size,
            resize=size,
            mean=(0,) * 3,
            std=(1,) * 3,
            reducing_gap=REDUCING_GAP,
        )
        shape = (len(self.paths), size, size, 3)
        try:
            pixels = np.empty(shape, np.uint8)
        except MemoryError:
            raise ImageError(
                f"{len(self.paths)} images of {size} pixels need {math.prod(shape) / 1e9:.3g} GB "
                f"of memory: from --size {LARGE} on they stay in their files"
            ) from None

        def load(i: int) -> None:
            try:
                pixels[i] = self._plain(self.paths[i], scaled)
            except ImageError as error:
                failures.append(str(error))

        with ThreadPoolExecutor() as pool:
            list(pool.map(load, range(len(self.paths))))
        if failures:
            more = f", and {len(failures) - 1} more files fail" if len(failures) > 1 else ""
            raise ImageError(f"{min(failures)}{more}: remove or mend them, then train again")
        return MemoryImages(pixels, self.labels)
