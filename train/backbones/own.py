"""The user's own network: `--arch package.module:name`."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mate_edge.errors import UsageError, first_line
from mate_edge.names import some
from mate_edge.train.backbones.parts import Parts, channels_last, output_shapes

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
PROBE_IMAGES = 3
"""So many train a network once; two are what its shapes are found with."""


def own_network(arch: str, channels: int, size: int, classes: int | None) -> Parts:
    """Import the user's stages, or the function that makes them.

    A function (or class) is called with (channels, size) if it needs two arguments, or has two of
    these names; else with none. What is ready, or comes of a function, is copied, with the weights
    that it has, so that several trainings of one process begin alike: of a training's seed only
    what a function makes depends. Each stage maps [B, C, H, W] to [B, C', H', W']; the last module
    may be the classifier, to [B, classes].

    Weights in a file have the names of the `nn.Sequential` or `nn.ModuleList` that was given, or
    else of an `nn.ModuleList` of the stages: `0.conv.weight`.

    This runs the code of the module named, with all the rights of the user. A run names its own
    network in `run.json`, so profile, export or resume somebody else's run only when you trust the
    module that it names, and who may write to the working folder; `announce_import` names it first.
    A name that reaches further than a public one of a module is refused.

    Args:
        arch: `package.module:name`; the working folder is on the path, as with `python -m`.
        channels: of the images.
        size: of the images, in pixels.
        classes: what a classifier of its own must give; None: whatever it gives.

    Raises:
        UsageError: it is no such name, cannot be imported or called, gives no such modules, or a
            module does not take these images or has weights in two places.
    """
    made = _make(arch, channels, size)
    if not isinstance(made, (Sequence, nn.Sequential, nn.ModuleList)) or not all(
        isinstance(module, nn.Module) for module in made
    ):
        raise UsageError(
            f"{arch} gives {_describe(made)}: it must be a list or an nn.Sequential of the stages, "
            "each an nn.Module"
        )
    modules = list(made)
    shapes = output_shapes(arch, modules, channels, size)
    classifier = outputs = None
    if shapes and len(shapes[-1]) == 2:
        classifier, outputs = modules.pop(), shapes.pop()[1]
        if classes not in (None, outputs):
            raise UsageError(
                f"the classifier of {arch} has {outputs} outputs, and there are {classes} classes"
            )
    for number, shape in enumerate(shapes, start=1):
        if len(shape) != 4:
            raise UsageError(
                f"stage {number} of {arch} makes {tuple(shape)}: a stage maps [B, C, H, W] to "
                "[B, C', H', W'], and only the last may be a classifier, to [B, classes]"
            )
    if not modules:
        raise UsageError(f"{arch} gives no stage that an exit could follow")
    _check_sharing(arch, [*modules, *([] if classifier is None else [classifier])])
    network = made if isinstance(made, nn.Module) else nn.ModuleList(made)
    return Parts(modules, network, classifier, outputs)


def check_training(
    arch: str, network: nn.Module, channels: int, size: int, classes: int, processes: int
) -> None:
    """Try a step of training and an evaluation: what only fails there should fail before a run.

    Args:
        arch: the name, for messages.
        network: with the exits that it will have, from images to logits [B, K, C]; a copy is tried.
        channels: of the images.
        size: of the images, in pixels.
        classes: of the data set.
        processes: that will train it together; with several each weight must have a gradient.

    Raises:
        UsageError: the step fails.
    """
    tried = channels_last(copy.deepcopy(network).train())
    with torch.random.fork_rng():
        images = torch.rand(PROBE_IMAGES, channels, size, size)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.arange(PROBE_IMAGES) % classes
        try:
            logits = tried(images)
            labels = labels[:, None].expand(-1, logits.shape[1])
            cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # the user's code may raise anything
            reason = first_line(error)
            if "inplace operation" in reason:
                reason = (
                    "a module overwrites what another one needs for its gradient, as a stage does "
                    "that begins with ReLU(inplace=True): use inplace=False"
                )
            raise UsageError(f"{arch} cannot be trained: {reason}") from error
        try:
            with torch.no_grad():
                together = tried.eval()(images)[:1]
                answers = tried(images[:1])  # a split may end with a batch of one
        except Exception as error:
            reason = first_line(error)
            raise UsageError(f"{arch} cannot take a single image: {reason}") from error
        if answers.shape != (1, logits.shape[1], classes):
            raise UsageError(
                f"{arch} gives logits {tuple(answers.shape)} for a single image, not "
                f"{(1, logits.shape[1], classes)}"
            )
    if not torch.allclose(answers, together, rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"{arch} answers otherwise to an image alone than to the same one in a batch, by "
            f"{float((answers - together).abs().max()):.3g}, and a device gives it one by one: a "
            "BatchNorm without running statistics does so"
        )
    idle = [
        n for n, p in tried.named_parameters() if p.requires_grad and p.is_leaf and p.grad is None
    ]
    if idle and processes > 1:
        raise UsageError(
            f"{arch} has weights that nothing depends on ({some(idle)}), which several processes "
            "cannot train together: remove them, or train in one process"
        )


def _check_sharing(arch: str, modules: Sequence[nn.Module]) -> None:
    """Refuse weights that stand in two places: each segment's engine has its own."""
    places: dict[int, str] = {}
    for number, module in enumerate(modules, start=1):
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, Tensor):
                raise UsageError(
                    f"stage {number} of {arch} keeps in {name} what is no tensor, and a run keeps "
                    "tensors alone: leave get_extra_state out"
                )
            if tensor.numel() == 0:
                continue
            place = f"stage {number} ({name})"
            first = places.setdefault(tensor.untyped_storage().data_ptr(), place)
            if first != place:
                raise UsageError(
                    f"{first} and {place} of {arch} share weights, which a run cannot keep and "
                    "segments cannot share: make a module of its own for each place"
                )


def _make(arch: str, channels: int, size: int) -> Any:
    module, _, name = arch.partition(":")
    if not all(part.isidentifier() and part[0] != "_" for part in (*module.split("."), name)):
        raise UsageError(
            f"--arch {arch!r} names no network: give package.module:name, where no part begins "
            "with an underscore"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with _seeded():  # what is made there is the same in every process
            found = getattr(importlib.import_module(module), name)
    except (
        Exception,
        SystemExit,
    ) as error:  # importing runs the user's code, which may raise anything
        raise UsageError(
            f"--arch {arch} cannot be imported from {os.getcwd()} ({_tell(error)})"
        ) from error
    made = found
    if callable(found) and not isinstance(found, nn.Module):
        arguments = (channels, size) if _takes_two(found) else ()
        try:
            made = found(*arguments)
        except (Exception, SystemExit) as error:  # the user's code, again
            call = f"{name}({', '.join(map(str, arguments))})"
            raise UsageError(f"--arch {arch}: {call} fails ({_tell(error)})") from error
    if not isinstance(made, nn.Module | Sequence):  # which is refused later
        return made
    try:
        return copy.deepcopy(made)  # it may be handed out again
    except Exception as error:  # whatever its parts raise
        raise UsageError(
            f"--arch {arch} gives a network that cannot be copied ({_tell(error)}): for weights "
            "that are computed from others, use torch.nn.utils.parametrizations"
        ) from error


@contextmanager
def _seeded() -> Iterator[None]:
    """Let all generators begin at 0, and go on afterwards as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _tell(error: BaseException) -> str:
    """Say what the user's code raised, and in which line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    where = f" in {os.path.basename(last.filename)}:{last.lineno}"
    return f"{type(error).__name__}: {error}{'' if last.filename == __file__ else where}"


def _takes_two(function: Callable[..., Any]) -> bool:
    """Say whether a function takes two arguments, and needs one or has the names that they have."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    placed = [one for one in parameters if one.kind in BY_PLACE]
    needed = [one for one in placed if one.default is one.empty]
    if len(placed) < 2 or len(needed) > 2:
        return False
    return bool(needed) or [one.name for one in placed[:2]] == ["channels", "size"]


def _describe(made: object) -> str:
    if isinstance(made, nn.Module) or not isinstance(made, Sequence):
        return f"an object of type {type(made).__name__}"
    odd = next(item for item in made if not isinstance(item, nn.Module))
    return f"a {type(made).__name__} with an object of type {type(odd).__name__}"
