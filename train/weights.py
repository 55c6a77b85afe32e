"""Imported weights: torchvision's for ImageNet, or the user's own from a file."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from mate_edge import files
from mate_edge.errors import UsageError, first_line
from mate_edge.names import some
from mate_edge.train.backbones import TORCHVISION, make_parts
from mate_edge.train.backbones.imagenet import first_convolution
from mate_edge.train.backbones.parts import Classifier, Parts

AVERAGED = re.compile(r"(^|[_.])ema([_.]|$)")
"""How the weights' running averages are called, beside the weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under these names training scripts keep the state dict, beside optimiser and epoch."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What `DataParallel`, `torch.compile` and Lightning put before every name."""

COUNTER = "num_batches_tracked"
"""BatchNorm's, which old files lack and nothing reads."""

SHOWN = 3
"""So many names of each kind that does not fit are shown; a file lists them all."""


@dataclass(frozen=True)
class Weights:
    """A state dict, and where it comes from.

    Attributes:
        name: of the file, or of torchvision's weights.
        tensors: with the names of the whole network.
        sha256: of the file; None for torchvision's.
    """

    name: str
    tensors: Mapping[str, Tensor]
    sha256: str | None


@dataclass(frozen=True)
class Imported:
    """A network taken apart, after its weights were imported if any are.

    Attributes:
        stem: which one the weights are for; None where there are none or only one stem.
        whole: whether the classifier was imported too, so that the last exit is the network.
    """

    parts: Parts
    stem: str | None
    whole: bool


def find_weights(arch: str, file: Path | None, pretrained: bool) -> Weights | None:
    """Load the weights that the user asked for, if any.

    Raises:
        UsageError: both are asked for, the file cannot be read, or torchvision's weights do not
            exist or cannot be downloaded.
    """
    if file is not None and pretrained:
        raise UsageError("give --weights or --pretrained, not both")
    if file is not None:
        return read_weights(file)
    return imagenet_weights(arch) if pretrained else None


def imagenet_weights(arch: str) -> Weights:
    """Return torchvision's best ImageNet weights, from its cache or downloaded; never unpickling.

    Raises:
        UsageError: not one of torchvision's architectures, the download failed, or the file in the
            cache is damaged.
    """
    if arch not in TORCHVISION:
        raise UsageError(
            f"--pretrained is for torchvision's networks, and {arch} is none: choose from "
            f"{', '.join(TORCHVISION)}"
        )
    chosen = get_model_weights(arch).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = folder / Path(urlparse(chosen.url).path).name
    try:
        with _tensors_only():
            network = get_model(arch, weights=chosen)  # and renames tensors where that is needed
    except Exception as error:  # torch, pickle and zipfile raise a dozen types on damage
        reason = first_line(error)
        if cached.is_file() and not isinstance(error, OSError):
            raise UsageError(
                f"{cached} is damaged, or holds more than tensors ({reason}): remove it, and it "
                "is downloaded again"
            ) from None
        if isinstance(error, (OSError, RuntimeError)):  # no network; a file whose hash is wrong
            raise UsageError(
                f"the ImageNet weights of {arch} cannot be had ({reason}): download {chosen.url} "
                f"yourself into {folder}"
            ) from None
        raise
    return Weights(str(chosen), network.state_dict(), None)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make `torch.load` refuse all but tensors where its caller, as torchvision, asks for more."""
    force, forbid = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, forbid)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_weights(file: Path) -> Weights:
    """Read a state dict: `.safetensors`, or what `torch.save` wrote; never unpickling code.

    The state dict may lie under one of `WRAPPERS`, and its names may all begin with `PREFIXES`.

    Raises:
        UsageError: missing, damaged, or no state dict.
    """
    data = files.read_bytes(file, files.MAX_FILE_BYTES, UsageError)
    found: Any
    if file.suffix == ".safetensors":
        try:
            found = load_safetensors(data)
        except SafetensorError as error:
            raise UsageError(f"--weights {file} is damaged: {error}") from None
    else:
        found = _load_saved(file, data)
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            averaged = [
                name
                for name, value in found.items()
                if AVERAGED.search(str(name)) and isinstance(value, Mapping)
            ]
            if averaged:
                print(
                    f"--weights {file}: {wrapper} is taken; the averaged weights in "
                    f"{some(averaged)} are others: save these alone if they are meant",
                    file=sys.stderr,
                )
            found = found[wrapper]
    foreign = (
        [str(n) for n, t in found.items() if not (isinstance(n, str) and isinstance(t, Tensor))]
        if isinstance(found, Mapping)
        else [f"a {type(found).__name__}"]
    )
    if foreign:
        raise UsageError(
            f"--weights {file} holds no state dict (but {some(foreign)}): save it with "
            "torch.save(network.state_dict(), ...)"
        )
    if odd := [name for name, tensor in found.items() if tensor.layout is not torch.strided]:
        raise UsageError(f"--weights {file} holds sparse tensors: {some(odd)}")
    while prefix := next(
        (p for p in PREFIXES if found and all(n.startswith(p) for n in found)), ""
    ):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    if spoilt := [name for name, tensor in found.items() if not tensor.float().isfinite().all()]:
        raise UsageError(f"--weights {file} holds what is no number in {some(spoilt)}")
    return Weights(file.name, found, files.sha256(data))


def _load_saved(file: Path, data: bytes) -> Any:
    """Return what `torch.save` wrote: tensors, plain values and `argparse.Namespace`.

    Torchvision's own scripts keep their options in a Namespace beside the weights; it only holds
    attributes, so making one runs no code.

    Raises:
        UsageError: damaged, or holds an object of another type.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript and foreign pickles: refused below
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile raise a dozen types on damage
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global|(TorchScript)", str(error))
        if foreign is None:
            raise UsageError(
                f"--weights {file} is damaged, or torch.save did not write it: copy it again"
            ) from None
        raise UsageError(
            f"--weights {file} holds more than tensors ({foreign[1] or foreign[2]}): save it with "
            "torch.save(network.state_dict(), ...)"
        ) from None


def import_parts(
    arch: str, weights: Weights | None, channels: int, size: int, classes: int
) -> Imported:
    """Return a backbone's parts with imported weights, or with fresh ones when None.

    A network of torchvision's has the ImageNet stem, whatever the size, unless the kernel in the
    weights is the small one's. A stem that differs in its stride alone cannot be told: it is taken
    for ImageNet's.

    Raises:
        UsageError: the weights are for another architecture, number of channels or of classes.
    """
    if weights is None:
        return Imported(make_parts(arch, channels, size, classes), None, whole=False)
    stem = "imagenet" if arch in TORCHVISION else None
    parts = make_parts(arch, channels, size, classes, stem)
    weights = _without_prefix(weights, parts.network)
    if stem is not None:
        name, convolution = first_convolution(parts.network)
        tensor = weights.tensors.get(f"{name}.weight")
        if tensor is not None and tensor.dim() == 4 and tensor.shape[1] != channels:
            raise UsageError(
                f"{weights.name} is for images with {tensor.shape[1]} channels, and the data set's "
                f"have {channels}"
            )
        if tensor is not None and tensor.shape[2:] != convolution.weight.shape[2:]:
            stem = "small"
        parts = make_parts(arch, channels, size, classes, stem)
    whole = parts.classifier is not None
    if isinstance(parts.classifier, Classifier):
        found = _classes(parts.network, parts.classifier, weights) or classes
        if found != classes and weights.sha256 is not None:
            raise UsageError(
                f"{weights.name} is for {found} classes, and the data set has {classes}"
            )
        whole = found == classes
        parts.classifier.resize(found)
    _load(parts.network, weights, arch)
    return Imported(parts, stem, whole)


def _classes(network: nn.Module, classifier: Classifier, weights: Weights) -> int | None:
    """Return the number of classes that the weights are for; None where they do not say."""
    last = classifier[-1]
    (name,) = (name for name, module in network.named_modules() if module is last)
    bias = weights.tensors.get(f"{name}.bias")
    return None if bias is None else bias.numel()


def _without_prefix(weights: Weights, network: nn.Module) -> Weights:
    """Take what stands under the names of the network with something before them, and say so.

    So a module saves the network that is a part of it: `backbone.conv1.weight`.

    Raises:
        UsageError: the network is there several times.
    """
    given = weights.tensors
    own = [name for name in network.state_dict() if not name.endswith(COUNTER)]
    if not own or all(name in given for name in own):
        return weights
    found = [name.removesuffix(own[0]) for name in given if name.endswith(f".{own[0]}")]
    prefixes = [prefix for prefix in found if all(prefix + name in given for name in own)]
    if len(prefixes) > 1:
        raise UsageError(
            f"{weights.name} holds the network {len(prefixes)} times, under {some(prefixes)}: save "
            "the one that you mean alone"
        )
    if not prefixes:
        return weights
    (prefix,) = prefixes
    kept = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
    others = [name for name in given if not name.startswith(prefix)]
    left = f"; left out: {some(others)}" if others else ""
    print(f"{weights.name} holds the network under {prefix}{left}", file=sys.stderr)
    return dataclasses.replace(weights, tensors=kept)


def _load(network: nn.Module, weights: Weights, arch: str) -> None:
    own = network.state_dict()
    given = weights.tensors
    needed = [name for name in own if not name.endswith(COUNTER)]
    missing = [name for name in needed if name not in given]
    unknown = [n for n in given if n not in own]
    other_shape = [
        f"{n} is {tuple(given[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    faults = {
        f"{len(missing)} of the network's {len(needed)} tensors missing": missing,
        f"{len(unknown)} of the file's {len(given)} unknown": unknown,
        f"{len(other_shape)} of another shape": other_shape,
    }
    shown = [f"{what} ({some(names, SHOWN)})" for what, names in faults.items() if names]
    if shown:
        raise UsageError(
            f"{weights.name} does not fit --arch {arch}: {', '.join(shown)}{_list_all(faults)}"
        )
    network.load_state_dict(dict(given), strict=False)


def _list_all(faults: Mapping[str, Sequence[str]]) -> str:
    """Write all names into a file if a message shows only some, and say where it lies."""
    if all(len(names) <= SHOWN for names in faults.values()):
        return ""
    lines = [line for what, names in faults.items() for line in (f"{what}:", *names, "")]
    with suppress(OSError):
        with NamedTemporaryFile("w", prefix="mate-edge-", suffix=".txt", delete=False) as file:
            file.write("\n".join(lines))
        return f"; {file.name} lists them all"
    return ""
