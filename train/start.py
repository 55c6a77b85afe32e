"""From what the user asked for to a run that can be trained: a new one, or one to resume."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from mate_edge import files
from mate_edge.errors import DataError, ImageError, RunError, UsageError
from mate_edge.names import look_up
from mate_edge.runs import RUNS, Run, find_run, read_run, write_run
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
from mate_edge.train.data.again import load_again
from mate_edge.train.data.dataset import Dataset
from mate_edge.train.evaluate import compute_logits, cumulative_flops, exit_accuracy, is_chance
from mate_edge.train.exits import choose_cuts
from mate_edge.train.heads import DEFAULT_HEAD, HEADS
from mate_edge.train.loop import check_precision, make_accelerator, provenance, train
from mate_edge.train.losses import METHODS, complete_options, make_method
from mate_edge.train.network import MultiExitNet, announce_import, assemble, structure_of
from mate_edge.train.options import PRECISIONS, Options, check_options, choose_recipe
from mate_edge.train.recipe import check_recipe
from mate_edge.train.state import save_initial
from mate_edge.train.sums import Diverged
from mate_edge.train.weights import Imported, Weights, find_weights, import_parts

LONGEST_EVALUATION = timedelta(hours=3)


def new_run(options: Options, out: Path | None, processes: int = 1) -> tuple[Path, Run, Dataset]:
    """Load the data, check every option and make the run folder, for so many processes.

    Raises:
        UsageError: an option that cannot work, or `out` exists.
        DataError: the data set is missing or malformed.
        ImageError: a validation image that cannot be read, as far as they are read now.
    """
    method = options.method or "mate"
    head = options.head or DEFAULT_HEAD
    precision = options.precision or "fp32"
    for kind, name, table in (
        ("--method", method, METHODS),
        ("--head", head, HEADS),
        ("--precision", precision, PRECISIONS),
    ):
        look_up(kind, name, table)
    check_precision(precision)
    if ":" not in (wanted := options.arch or "resnet18"):
        look_up("--arch", wanted, BACKBONES)
    if out is not None:
        files.check_text(out)
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already: remove it, choose another --out, or --resume it")
    data = options.data or "cifar100"
    dataset = load_dataset(data, options.size, options.train_images)
    arch = options.arch or dataset.arch
    weights = find_weights(arch, options.weights, bool(options.pretrained))
    if weights is not None:
        dataset = use_imagenet_statistics(dataset)
    channels, size = dataset.preprocessing.channels, dataset.preprocessing.size
    mean, std = (
        None if text is None else parse_statistics(option, text, channels)
        for option, text in (("--mean", options.mean), ("--std", options.std))
    )
    dataset = use_resize(use_statistics(dataset, mean, std), options.resize)
    if options.classes is None:
        dataset = note_order(dataset)
    else:
        dataset = reorder_classes(dataset, read_classes(options.classes))
    recipe = choose_recipe(dataset.recipe, options, imported=weights is not None)
    if recipe.flip is None:
        recipe = msgspec.structs.replace(recipe, flip=dataset.flip)
        if dataset.flip and data not in DATASETS:
            dataset = dataset.noting("images are mirrored at random: --no-flip if a side matters")
    check_recipe(recipe, len(dataset.train.labels), processes)
    validate_every = 1 if options.validate_every is None else options.validate_every
    if validate_every < 1:
        raise UsageError(f"--validate-every must be 1 epoch or more, not {validate_every}")
    seed = options.seed or 0
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must lie between 0 and 2^63 - 1, not {seed}")
    torch.manual_seed(seed)  # imported weights are kept together with the new heads
    imported = import_parts(arch, weights, channels, size, len(dataset.classes))
    if imported.whole and options.classes is None:
        check_order(dataset.classes)
    cuts = choose_cuts(arch, imported.parts.stages, options.exits, channels, size)
    network = assemble(arch, imported.parts, head, channels, size, len(dataset.classes), cuts)
    if options.freeze_backbone:
        _check_freezing(weights, imported, network.num_exits)
    if ":" in arch:
        check_training(arch, network, channels, size, len(dataset.classes), processes)
    method_options = complete_options(method, options.method_options)
    make_method(method, network.num_exits, len(dataset.classes), method_options)
    _check_text((str(Path(data).resolve()), *dataset.classes))
    label = data if data in DATASETS else re.sub(r"[^\w.-]+", "-", Path(data).resolve().name)
    name = re.sub(r"[^\w.-]+", "-", f"{label}-{arch}-{method}")
    run = msgspec.convert(
        {
            "name": "",
            "arch": arch,
            "head": head,
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
            "precision": precision,
            "validate_every": validate_every,
            "images_sha256": dataset.fingerprint(),
            "structure": structure_of(network),
            **provenance(),
        },
        Run,
    )
    cumulative_flops(network, dataset.preprocessing)  # what cannot be counted fails before training
    if imported.whole:
        accuracy, count = _last_exit_accuracy(network, dataset), len(dataset.val.labels)
        share = f"{100 * accuracy:.2f} % of {count} validation images"
        print(f"imported network: {share}", file=sys.stderr)
        if is_chance(accuracy, len(dataset.classes), count):
            print(
                f"no better than chance among {len(dataset.classes)} classes: check --classes, the "
                "order of its outputs, --mean and --std, and --size",
                file=sys.stderr,
            )
    with _chosen_folder(out, RUNS / name) as (folder, made):
        run = msgspec.structs.replace(run, name=folder.name)
        write_run(made, run)
        if weights is not None:
            save_initial(made, network)
    files.write_latest(RUNS, folder)
    return folder, run, dataset


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


def _check_text(names: Iterable[str]) -> None:
    """Refuse names of folders that no text file can hold, such as those of an old archive.

    Raises:
        DataError: with the name.
    """
    for name in names:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"the folder name {name!a} is not UTF-8: rename it")


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


def _last_exit_accuracy(network: MultiExitNet, dataset: Dataset) -> float:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    last = network.keep_exits([network.num_exits]).to(device)
    logits = compute_logits(last, dataset.val, dataset.preprocessing, device)
    return exit_accuracy(logits, dataset.val.labels)[0][0]


def old_run(options: Options, out: Path | None) -> tuple[Path, Run, Dataset]:
    """Open a run to continue it; options given must say what the run says.

    A folder of images may have moved: `options.data` then names the new one, and the run notes it.

    Raises:
        RunError: there is no such run, or its data set is gone or has changed.
        UsageError: an option that differs from the run's.
    """
    folder = find_run(out)
    run = read_run(folder)
    moved = _moved(run, options.data)
    if moved is not None:
        options = dataclasses.replace(options, data=None)
    elif run.data not in DATASETS and not Path(run.data).is_dir():
        raise RunError(
            f"the images of {folder} are not in {run.data}: give --data FOLDER, where they are now"
        )
    check_options(folder, run, options)
    dataset = load_again(run, moved)
    if dataset is None:
        raise RunError(
            f"the images of {moved or run.data} have changed since {folder} began: train anew"
        )
    if moved is not None:
        data = str(moved.resolve())
        run = msgspec.structs.replace(run, data=data, images_sha256=dataset.fingerprint())
        write_run(folder, run)
    return folder, run, dataset


def _moved(run: Run, data: str | None) -> Path | None:
    """Return the folder of the run's images if the user names another one than the run does."""
    if data is None or data in DATASETS or run.data in DATASETS:
        return None
    return None if str(Path(data).resolve()) == run.data else Path(data)


def is_main_process() -> bool:
    """Say whether this is the one process, of those training together, that speaks."""
    return bool(PartialState().is_main_process)


def run_training(
    options: Options,
    out: Path | None,
    resume: bool,
    workers: int | None = None,
    check: Callable[[Run], object] = lambda run: None,
) -> tuple[Path, Run]:
    """Do what `mate-edge train` does; return the run folder and the finished run.

    With several processes (`torchrun`, `accelerate launch`) the first one makes the folder; see
    `is_main_process`. `check` is called with the run before it is trained, and may raise.

    Raises:
        MateEdgeError: as `new_run`, `old_run` and `train`.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must be 0 or more, not {workers}")
    # the others wait while the first process evaluates
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_EVALUATION)
    with ExitStack() as held:
        shared = [""]
        if state.is_main_process:
            if resume:
                folder = find_run(out)
                if not read_run(folder).finished:
                    held.enter_context(_alone(folder))
                folder, run, dataset = old_run(options, folder)
                if not run.finished:
                    announce_import(folder, run)
            else:
                folder, run, dataset = new_run(options, out, state.num_processes)
                held.enter_context(_alone(folder))
            check(run)
            shared = [str(folder)]
        broadcast_object_list(shared)
        if not state.is_main_process:
            folder, run, dataset = old_run(Options(), Path(shared[0]))
        elif dataset.note:
            print(dataset.note, file=sys.stderr)
        if run.finished:
            return folder, run
        try:
            accelerator = make_accelerator(run.precision, run.recipe.accumulate)
            train(folder, run, dataset, accelerator, workers)
            return folder, read_run(folder)
        except Diverged as error:
            raise Diverged(
                f"{error}: --resume would end here again, so train anew with a lower --lr, such as "
                f"{run.recipe.lr / 10:g}, and another --out"
            ) from None
        except ImageError as error:
            reason = str(error).rsplit("ImageError: ", 1)[-1].strip()  # a worker's: a traceback
            raise ImageError(
                f"{reason}: mend it, then type mate-edge train --resume --out {folder}"
            ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process is training in {folder}: wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()
