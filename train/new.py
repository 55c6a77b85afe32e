"""A new run: what the user asked for and the data set, checked before anything is trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from filelock import FileLock

from mate_edge import files
from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.runs import RUNS, Run, write_run
from mate_edge.train.backbones import BACKBONES
from mate_edge.train.backbones.own import check_training
from mate_edge.train.data import DATASETS, load_dataset
from mate_edge.train.data.adapt import (
    check_order,
    note_order,
    parse_statistics,
    read_classes,
    reorder_classes,
    use_imagenet_statistics,
    use_resize,
    use_statistics,
)
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.evaluate import compute_logits, cumulative_flops, exit_accuracy, is_chance
from mate_edge.train.exits import choose_cuts
from mate_edge.train.heads import DEFAULT_HEAD, HEADS
from mate_edge.train.loop import check_precision, provenance
from mate_edge.train.losses import METHODS, complete_options, make_method
from mate_edge.train.network import MultiExitNet, assemble, structure_of
from mate_edge.train.options import PRECISIONS, Options, choose_recipe
from mate_edge.train.recipe import check_recipe
from mate_edge.train.state import save_initial
from mate_edge.train.weights import Imported, Weights, find_weights, import_parts

DATA, METHOD, PRECISION = "cifar100", "mate", "fp32"
"""The defaults of an option each."""


def new_run(options: Options, out: Path | None, processes: int = 1) -> tuple[Path, Run, Dataset]:
    """Load the data, check every option and make the run folder, for so many processes.

    Raises:
        UsageError: an option that cannot work, or `out` exists.
        DataError: the data set is missing or malformed.
        ImageError: a validation image that cannot be read, as far as they are read now.
    """
    _check_names(options)
    _check_out(out)
    data = DATA if options.data is None else options.data
    method = METHOD if options.method is None else options.method
    dataset = load_dataset(data, options.size, options.train_images)
    arch = options.arch or dataset.arch
    weights = find_weights(arch, options.weights, bool(options.pretrained))
    dataset = _adapt(dataset, options, imported=weights is not None)
    recipe = choose_recipe(dataset.recipe, options, imported=weights is not None)
    if recipe.flip is None:
        recipe = msgspec.structs.replace(recipe, flip=dataset.flip)
        if dataset.flip and data not in DATASETS:
            dataset = dataset.noting("images are mirrored at random: --no-flip if a side matters")
    check_recipe(recipe, len(dataset.train.labels), processes)
    validate_every, seed = _check_numbers(options)
    torch.manual_seed(seed)  # imported weights are kept together with the new heads
    network, imported, cuts = _build(arch, options, weights, dataset, processes)
    method_options = complete_options(method, options.method_options)
    make_method(method, network.num_exits, len(dataset.classes), method_options)
    files.check_text((str(Path(data).resolve()), weights.name if weights else "", *dataset.classes))
    run = msgspec.convert(
        {
            "name": "",
            "arch": arch,
            "head": options.head or DEFAULT_HEAD,
            "exits": network.num_exits,
            "exits_at": options.exits,
            "cuts": cuts,
            "stem": imported.stem,
            "pretrained": bool(options.pretrained),
            "weights": weights and weights.name,
            "weights_sha256": weights and weights.sha256,
            "freeze_backbone": bool(options.freeze_backbone),
            "data": data if data in DATASETS else str(Path(data).resolve()),
            "train_images": options.train_images,
            "classes": dataset.classes,
            "preprocessing": dataset.preprocessing,
            "method": method,
            "method_options": method_options,
            "recipe": recipe,
            "seed": seed,
            "precision": options.precision or PRECISION,
            "validate_every": validate_every,
            "images_sha256": dataset.fingerprint(),
            "structure": structure_of(network),
            **provenance(),
        },
        Run,
    )
    cumulative_flops(network, dataset.preprocessing)  # what cannot be counted fails before training
    if imported.whole:
        _say_accuracy(network, dataset)
    with _chosen_folder(out, RUNS / _default_name(data, arch, method)) as (folder, made):
        run = msgspec.structs.replace(run, name=folder.name)
        write_run(made, run)
        if weights is not None:
            save_initial(made, network)
    files.write_latest(RUNS, folder)
    return folder, run, dataset


def _check_names(options: Options) -> None:
    """Refuse unknown names before the data is loaded.

    Raises:
        UsageError: with the names that there are.
    """
    for option, name, table in (
        ("--method", options.method, METHODS),
        ("--head", options.head, HEADS),
        ("--precision", options.precision, PRECISIONS),
    ):
        if name is not None:
            look_up(option, name, table)
    check_precision(options.precision or PRECISION)
    if options.arch is not None and ":" not in options.arch:
        look_up("--arch", options.arch, BACKBONES)


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    files.check_text((out.name,))
    if out.exists():
        raise UsageError(f"{out} exists already: remove it, choose another --out, or --resume it")


def _check_numbers(options: Options) -> tuple[int, int]:
    """Return after how many epochs to validate, and the seed.

    Raises:
        UsageError: out of range.
    """
    validate_every = 1 if options.validate_every is None else options.validate_every
    if validate_every < 1:
        raise UsageError(f"--validate-every must be 1 epoch or more, not {validate_every}")
    seed = options.seed or 0
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must lie between 0 and 2^63 - 1, not {seed}")
    return validate_every, seed


def _adapt(dataset: Dataset, options: Options, imported: bool) -> Dataset:
    """Return a data set with the statistics, sizes and order of classes that are asked for.

    Raises:
        UsageError: numbers out of range.
        DataError: other classes than the data set has.
    """
    if imported:
        dataset = use_imagenet_statistics(dataset)
    channels = dataset.preprocessing.channels
    mean, std = (
        None if text is None else parse_statistics(option, text, channels)
        for option, text in (("--mean", options.mean), ("--std", options.std))
    )
    dataset = use_resize(use_statistics(dataset, mean, std), options.resize)
    if options.classes is None:
        return note_order(dataset)
    return reorder_classes(dataset, read_classes(options.classes))


def _build(
    arch: str, options: Options, weights: Weights | None, dataset: Dataset, processes: int
) -> tuple[MultiExitNet, Imported, tuple[int, ...]]:
    """Return the network, what was imported of it, and the blocks after which it has exits.

    Raises:
        UsageError: weights, exits or a network of the user's own that do not fit.
        DataError: classes in an order that imported outputs are unlikely to have.
    """
    channels, size = dataset.preprocessing.channels, dataset.preprocessing.size
    classes = len(dataset.classes)
    imported = import_parts(arch, weights, channels, size, classes)
    if imported.whole and options.classes is None:
        check_order(dataset.classes)
    cuts = choose_cuts(arch, imported.parts.stages, options.exits, channels, size)
    head = options.head or DEFAULT_HEAD
    network = assemble(arch, imported.parts, head, channels, size, classes, cuts)
    if options.freeze_backbone:
        _check_freezing(weights, imported, network.num_exits)
    if ":" in arch:
        check_training(arch, network, channels, size, classes, processes)
    return network, imported, cuts


def _say_accuracy(network: MultiExitNet, dataset: Dataset) -> None:
    """Say how well an imported network does before training."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    last = network.keep_exits([network.num_exits]).to(device)
    logits = compute_logits(last, dataset.val, dataset.preprocessing, device)
    accuracy, count = exit_accuracy(logits, dataset.val.labels)[0][0], len(dataset.val.labels)
    share = f"{100 * accuracy:.2f} % of {count} validation images"
    print(f"imported network: {share}", file=sys.stderr)
    if is_chance(accuracy, len(dataset.classes), count):
        print(
            f"no better than chance among {len(dataset.classes)} classes: check --classes, the "
            "order of its outputs, --mean and --std, and --size",
            file=sys.stderr,
        )


def _default_name(data: str, arch: str, method: str) -> str:
    label = data if data in DATASETS else re.sub(r"[^\w.-]+", "-", Path(data).resolve().name)
    return re.sub(r"[^\w.-]+", "-", f"{label}-{arch}-{method}")


@contextmanager
def _chosen_folder(out: Path | None, default: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of a new run, and the one that becomes it; see `files.whole_folder`.

    Without `out` the first unused name like `default`; one training at a time looks for its name.
    """
    if out is not None:
        with files.whole_folder(out) as made:
            yield out, made
        return
    files.make_folder(default.parent)
    with files.write_errors(default), FileLock(default.parent / ".lock"):
        folder = files.unused(default)
        with files.whole_folder(folder) as made:
            yield folder, made


def _check_freezing(weights: Weights | None, imported: Imported, num_exits: int) -> None:
    if weights is None:
        raise UsageError(
            "--freeze-backbone keeps an imported network as it is: give --weights or --pretrained"
        )
    if not imported.whole:
        raise UsageError(
            "--freeze-backbone keeps the last exit as imported, and its classifier was not "
            "imported: leave the option out, or give --weights with a classifier for these classes"
        )
    if num_exits == 1:
        raise UsageError("--freeze-backbone trains the early heads, and --exits 1 has none")
