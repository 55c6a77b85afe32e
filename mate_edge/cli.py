"""The command line. A command imports its stage only when it is called."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mate_edge import __version__
from mate_edge.errors import MateEdgeError, UsageError
from mate_edge.training_options import EXITS_HELP, takes_training_options

if TYPE_CHECKING:
    from mate_edge.runs import OptionValue

app = typer.Typer(
    help="Train multi-exit image classifiers and run them under a deadline.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ENGINE_HELP = "onnxruntime, tensorrt or tensorrt_rtx; default: the bundle's."


def main() -> None:
    """Run the command line: exit code 2 and one line on stderr for a mistake of the user."""
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    for stream in (sys.stdout, sys.stderr):  # a class or file name may not fit the terminal's code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        sys.exit(app(prog_name="mate-edge", standalone_mode=False))
    except MateEdgeError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own usage errors
            sys.exit(_complain(error.format_message()))
        raise


def _complain(message: str) -> int:
    _say(" ".join(message.split()))
    return 2


def _say(message: str) -> None:
    print(f"mate-edge: {message}", file=sys.stderr, flush=True)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing optional dependency into a line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install 'mate-edge[{name}]'") from None


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@takes_training_options
def train(
    options: dict[str, Any],
    method: Annotated[str | None, typer.Option(help="mate, ce or a baseline.")] = None,
    method_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, such as beta=0.6; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and variations.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that prepare images; default: chosen.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest run, or --out.")] = False,
) -> None:
    """Train a multi-exit network; writes a run folder."""
    with _extra("train"):
        from mate_edge.report.text import print_results
        from mate_edge.train.options import Options
        from mate_edge.train.start import is_main_process, run_training

    chosen = Options(**options, method=method, method_options=_pairs(method_option), seed=seed)
    folder, run = run_training(chosen, out, resume, workers)
    if is_main_process():
        print_results(folder, run)


@app.command()
@takes_training_options
def compare(
    options: dict[str, Any],
    methods: Annotated[
        str, typer.Option(help="Such as ce,mate,mate+alpha=2: options of a method after +.")
    ] = "ce,byot,dbt,eed,beed,okddip,mate",
    seeds: Annotated[str, typer.Option(help="How many, or which, such as 0,1,2.")] = "3",
    workers: Annotated[
        int | None, typer.Option(help="Processes that prepare images; default: chosen.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Show test, or val while you still choose options by it.")
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="The comparison's folder; what is done there stays.")
    ] = None,
) -> None:
    """Train several methods with several seeds and print paired differences; resumable."""
    with _extra("train"):
        from mate_edge.report import comparison
        from mate_edge.report.text import print_table
        from mate_edge.train.compare import (
            default_folder,
            parse_methods,
            parse_seeds,
            run_comparison,
            write_report,
        )
        from mate_edge.train.options import Options

        contenders, numbers, chosen = parse_methods(methods), parse_seeds(seeds), Options(**options)
        folder = out or default_folder(chosen)
        say = partial(print, file=sys.stderr)
        busy, failed = run_comparison(folder, contenders, numbers, chosen, workers, say)
        tables = write_report(folder, contenders, numbers, split)
    for table in tables:
        print_table("", *table)
    print(comparison.NOTE)
    if busy:
        print(f"other processes are at {busy} of the runs: type the same again when they are done")
    if failed:
        print(f"{failed} of the runs failed, see above: the tables are without them")
    print(f"comparison: {folder}")


def _pairs(given: list[str] | None) -> dict[str, OptionValue]:
    pairs: dict[str, OptionValue] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--method-option takes NAME=VALUE, not {pair!r}")
        pairs[name.strip()] = value.strip()
    return pairs


@app.command()
def profile(
    run: Annotated[Path | None, typer.Argument(help="A run folder; default: the newest.")] = None,
    arch: Annotated[str | None, typer.Option(help="A backbone, untrained, instead.")] = None,
    head: Annotated[str | None, typer.Option(help="With --arch; sepconv.")] = None,
    exits: Annotated[str | None, typer.Option(help=f"With --arch. {EXITS_HELP}")] = None,
    size: Annotated[int | None, typer.Option(help="With --arch: input pixels; 224.")] = None,
    channels: Annotated[int | None, typer.Option(help="With --arch: 1 or 3; 3.")] = None,
    classes: Annotated[int | None, typer.Option(help="With --arch; 1000.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count FLOPs, parameters and border bytes of each exit."""
    if arch is not None and run is not None:
        raise UsageError("give a run or --arch, not both")
    if arch is None and (head, exits, size, channels, classes) != (None,) * 5:
        raise UsageError("--head, --exits, --size, --channels and --classes go with --arch")
    with _extra("train"):
        from mate_edge.export.profile import profile_network
        from mate_edge.report.text import print_profile
        from mate_edge.train.backbones import make_parts
        from mate_edge.train.exits import choose_cuts
        from mate_edge.train.network import assemble, load_network
    from mate_edge import files, runs

    accuracies = None
    if arch is not None:
        head, size = head or "sepconv", 224 if size is None else size
        channels, classes = (
            3 if channels is None else channels,
            1000 if classes is None else classes,
        )
        if size < 16 or channels not in (1, 3) or classes < 2:
            raise UsageError("--size must be 16 or more, --channels 1 or 3, --classes 2 or more")
        parts = make_parts(arch, channels, size, classes)
        cuts = choose_cuts(arch, parts.stages, exits, channels, size)
        network = assemble(arch, parts, head, channels, size, classes, cuts)
        found = profile_network(network, channels, size)
        title = f"{arch}, {head} heads, {channels}x{size}x{size}"
    else:
        folder = runs.find_run(run)
        trained = runs.read_finished_run(folder)
        pre = trained.preprocessing
        found = profile_network(load_network(folder, trained), pre.channels, pre.size)
        title = f"{folder}: {trained.arch}, {trained.head} heads"
        accuracies = trained.results.test_accuracy if trained.results else None
    if json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        print_profile(title, found, accuracies)
    if arch is None:
        files.write_json(folder / "profile.json", found)


@app.command()
def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN or BUNDLE]", help="Default: the newest run."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="With a bundle: labelled images, DIR/CLASS/*.jpg."),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="With DIR: the deadline of each image, ms.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="With DIR: write a CSV row for each image.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help=f"With DIR: {ENGINE_HELP}")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a run from its cached logits, or a bundle on this device with labelled images."""
    import msgspec

    from mate_edge.report.labelled import print_labelled
    from mate_edge.runtime.evaluate import choose_sources, evaluate_folder

    chosen = choose_sources(source, images)
    if chosen is None:
        if (max_ms, save, engine) != (None,) * 3:
            raise UsageError("--max-ms, --save and --engine go with a bundle and labelled images")
        _evaluate_run(source, json)
        return
    found = evaluate_folder(*chosen, max_ms=max_ms, save=save, engine=engine, say=_say)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_labelled(found)
    raise typer.Exit(1 if found.unreadable else 0)


def _evaluate_run(run: Path | None, json: bool) -> None:
    """Print exits, calibration and budgets; nothing runs again."""
    import msgspec

    from mate_edge import files, runs
    from mate_edge.decide.curves import evaluate_outputs

    with _extra("train"):
        from mate_edge.report.evaluation import draw_evaluation, print_evaluation

        folder = runs.find_run(run)
        trained = runs.read_finished_run(folder)
        flops = runs.read_flops(folder, trained)
        outputs = runs.read_outputs(folder, trained)
        found = evaluate_outputs(
            outputs["val_logits"],
            outputs["val_labels"],
            outputs["test_logits"],
            outputs["test_labels"],
            flops,
        )
        title = f"{trained.arch} on {Path(trained.data).name}, {trained.method}"
        files.write_whole(folder / "evaluation.png", draw_evaluation(title, found))
    files.write_json(folder / "evaluation.json", found)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_evaluation(title, found)
        print(f"curves: {folder / 'evaluation.png'}, figures: {folder / 'evaluation.json'}")


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Accept a bundle on this device: its golden inputs against the exported network."""
    import msgspec

    from mate_edge.report.verification import print_verification
    from mate_edge.runtime.verify import verify as run_verification

    found = run_verification(bundle, engine, _say)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_verification(found)
    raise typer.Exit(0 if found.accepted else 1)


@app.command()
def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder; default: the newest.")] = None,
    target: Annotated[str, typer.Option(help="cpu, cuda, jetson or rtx.")] = "cpu",
    precision: Annotated[
        str | None, typer.Option(help="fp16, fp32 or int8 on NVIDIA, fp32 or int8 on a cpu.")
    ] = None,
    exits: Annotated[str | None, typer.Option(help="Keep these, such as 1,3.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle folder, NAME.mate.")] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of accuracy that an exit may lose to the precision.")
    ] = 1.0,
    max_batch: Annotated[
        int, typer.Option(help="The largest batch that engines are built for.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the cuts.")] = False,
) -> None:
    """Export a run: one engine file a segment, in a bundle."""
    with _extra("train"):
        from mate_edge.export.export import check_exits, export_run
        from mate_edge.export.measure import check_max_drop
        from mate_edge.export.profile import profile_network
        from mate_edge.export.targets import check_max_batch, choose
        from mate_edge.report.text import (
            print_operating_points,
            print_precision,
            print_profile,
        )
        from mate_edge.runtime.build_command import build_at_once
        from mate_edge.train.network import load_network
    from mate_edge import runs
    from mate_edge.bundle import read_bundle

    kind, precision = choose(target, precision)
    check_max_batch(target, max_batch)
    check_max_drop(max_drop)
    try:
        keep = [int(k) for k in exits.split(",")] if exits is not None else None
    except ValueError:
        raise UsageError(f"--exits takes numbers such as 1,3, not {exits!r}") from None
    folder = runs.find_run(run)
    trained = runs.read_finished_run(folder)
    if dry_run:
        pre = trained.preprocessing
        network = load_network(folder, trained).keep_exits(check_exits(keep, trained.exits))
        title = f"{folder} would be cut into these segments"
        print_profile(title, profile_network(network, pre.channels, pre.size), None)
        return
    say = partial(print, file=sys.stderr)
    path, manifest = export_run(
        folder,
        trained,
        target,
        precision,
        keep,
        out,
        say,
        max_drop=max_drop,
        max_batch=max_batch,
    )
    print_precision(manifest)
    print_operating_points(manifest)
    print(f"bundle: {path}")
    if not build_at_once(read_bundle(path), kind.machine, say):
        for line in kind.next_steps(path):
            print(line)


@app.command()
def build(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="The largest batch; default: as exported, mostly 1.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="For rtx, on any machine: GPUs such as 8.6,8.9.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="Preprocess frames of this size on the GPU: 1280x720.")
    ] = None,
    color: Annotated[str, typer.Option(help="With --frame: rgb or bgr.")] = "rgb",
    force: Annotated[
        bool, typer.Option("--force", help="Build what is built already, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Compile a bundle's segments for this device's GPU; what is built already stays."""
    from mate_edge.runtime.build_command import build_bundle

    build_bundle(bundle, max_batch, compute_capability, frame, color, force, json)


@app.command()
def tune(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Goal: points of accuracy below the last exit, at most.")
    ] = None,
    max_risk: Annotated[
        str | None, typer.Option(help="Goal: a guaranteed share of lost answers: 0.01 or 1%.")
    ] = None,
    budget_flops: Annotated[
        float | None, typer.Option(help="Goal: mean FLOPs of an image, at most, such as 5e6.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Goal: mean ms of an image on this device, at most.")
    ] = None,
    delta: Annotated[
        str | None,
        typer.Option(help="With --max-risk: how often the guarantee may be wrong; 0.05 or 5%."),
    ] = None,
    mean_risk: Annotated[
        bool, typer.Option("--mean-risk", help="With --max-risk: bound the mean only.")
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="With --max-risk: worse (wrong where the last exit is right) or differs."
        ),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="With --max-risk: certify under this deadline too, ms.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="confidence, entropy, margin or ensemble.")
    ] = "confidence",
    name: Annotated[
        str | None, typer.Option(help="For run --policy, on this device; default: tuned.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file too, FILE.json.")] = None,
    engine: Annotated[str | None, typer.Option(help=f"To measure, for ms. {ENGINE_HELP}")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find thresholds for one goal; stores an operating point and says what is guaranteed."""
    import msgspec

    from mate_edge.bundle import find_bundle, read_bundle
    from mate_edge.report.tuned import print_tuned
    from mate_edge.runtime.tune import Goal, tune

    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be 1 or more, not {threads}")
    goal = Goal(
        max_drop=max_drop,
        max_risk=_share("--max-risk", max_risk),
        budget_flops=budget_flops,
        budget_ms=budget_ms,
        delta=_share("--delta", delta),
        mean_risk=mean_risk,
        loss=loss,
        max_ms=max_ms,
    )
    opened = read_bundle(find_bundle(bundle))
    found = tune(opened, goal, policy, name=name, out=out, engine=engine, threads=threads, say=_say)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        print_tuned(found, opened.manifest)


def _share(option: str, given: str | None) -> float | None:
    """Read a share, such as 0.01 or 1%."""
    if given is None:
        return None
    try:
        return float(given[:-1]) / 100 if given.endswith("%") else float(given)
    except ValueError:
        raise UsageError(f"{option} takes a share such as 0.01 or 1%, not {given!r}") from None


@app.command()
def run(
    sources: Annotated[list[str], typer.Argument(help="Images, folders or globs.")],
    bundle: Annotated[Path | None, typer.Option(help="Default: the newest.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="The deadline of each image, ms.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a deadline that exit 1 may miss.")
    ] = False,
    policy: Annotated[
        str | None, typer.Option(help="A name, a file of tune, deepest, exit-1 or patience-2.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Leave at this confidence, 0 to 1, instead.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Classify images, stopping early under a deadline or a confidence."""
    if policy is not None and threshold is not None:
        raise UsageError("give --policy or --threshold, not both")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be 1 or more, not {threads}")
    from mate_edge.runtime.classify import classify

    code = classify(
        sources,
        bundle,
        policy=policy if threshold is None else threshold,
        max_ms=max_ms,
        engine=engine,
        threads=threads,
        json=json,
        strict=strict,
    )
    # nothing is left to do, and taking interpreter and engine apart in order costs 80 ms
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="The deadline to judge, ms.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Pace it like a camera too, such as 30 a second.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Of each contender; default: 500, in a minute at most.")
    ] = None,
    load: Annotated[int, typer.Option(help="Run so many busy processes beside it.")] = 0,
    images: Annotated[
        str | None, typer.Option(help="Show these, a folder or glob; default: golden images.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    engines: Annotated[
        str | None, typer.Option(help="all: compare every engine that can be had here.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU engine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON line an engine.")] = False,
) -> None:
    """Measure a bundle on this device beside its unsplit network; the verdict first."""
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be 1 or more, not {threads}")
    import msgspec

    from mate_edge.report.bench import print_bench, print_engines
    from mate_edge.runtime.bench import Options
    from mate_edge.runtime.bench import bench as run_bench
    from mate_edge.runtime.build_command import Bar

    bar = Bar(_say)
    options = Options(rounds=rounds, fps=fps, load=load, max_ms=max_ms)
    found = run_bench(
        bundle,
        options,
        engine=engine,
        engines=engines,
        images=images,
        say=bar.say,
        progress=bar.show,
        threads=threads,
    )
    bar.clear()
    for one in found:
        if json:
            print(msgspec.json.encode(one).decode())
        else:
            print_bench(one)
    if len(found) > 1 and not json:
        print_engines(found)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to get it; exit code 1 when it lacks a piece."""
    from mate_edge.runtime.doctor.doctor import doctor

    raise typer.Exit(doctor(json))


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where to put everything; default: demo.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
) -> None:
    """Go the whole way on handwritten digits, in about a minute."""
    with _extra("train"):
        from mate_edge.demo import run_demo
    run_demo(out, epochs)
