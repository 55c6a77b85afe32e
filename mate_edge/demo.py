"""`mate-edge demo`: train, profile, export and classify, on data that comes with the install."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median

from PIL import Image

from mate_edge import files
from mate_edge.bundle import read_bundle
from mate_edge.errors import UsageError
from mate_edge.export.export import export_run
from mate_edge.export.profile import profile_network
from mate_edge.report.text import percent, print_profile, print_results, print_table
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.outputs.answer import Answer
from mate_edge.runtime.outputs.lines import Table
from mate_edge.runtime.outputs.summary import Summary
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.sources.source import Shot
from mate_edge.train.data import load_dataset
from mate_edge.train.network import load_network
from mate_edge.train.options import Options
from mate_edge.train.start import run_training

DATA = "digits"
SHOWN = 8
ROUNDS = 5


def run_demo(out: Path | None, epochs: int) -> None:
    """Go from images to predictions in the folder `out`, a free name when None.

    Raises:
        UsageError: `out` exists.
    """
    began = time.perf_counter()
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already: remove it or choose another --out")
    out = out or files.unused(Path("demo"))

    _title(f"1. train: a multi-exit network on {DATA}")
    folder, run = run_training(Options(data=DATA, epochs=epochs), out / "run", resume=False)
    print_results(folder, run)

    _title("2. profile: what each exit costs")
    assert run.results is not None
    pre = run.preprocessing
    found = profile_network(load_network(folder, run), pre.channels, pre.size)
    print_profile("", found, run.results.test_accuracy)

    _title("3. export: one ONNX file a segment")
    say = partial(print, file=sys.stderr)
    bundle, _ = export_run(folder, run, "cpu", None, None, out / f"{DATA}.mate", say)
    print(f"bundle: {bundle}")

    _title("4. run: held-out images, written as PNG files")
    images = _write_images(out / "images")
    _classify(bundle, images)

    _title("5. what exiting early saved, beside the unsplit network")
    _compare(bundle, images)
    print(f"\nThe whole way took {time.perf_counter() - began:.0f} s. Try it yourself:")
    print(f"  mate-edge run --bundle {bundle} --max-ms 5 {out / 'images'}")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _write_images(folder: Path) -> list[tuple[Path, int]]:
    """Write the test split as PNG files; return each path with its label."""
    dataset = load_dataset(DATA)
    count = len(dataset.test.labels)
    pixels = dataset.test.plain(range(count), dataset.preprocessing)
    files.make_folder(folder)
    written = []
    for number, (picture, label) in enumerate(zip(pixels, dataset.test.labels, strict=True)):
        path = folder / f"{number:03}-is-{dataset.classes[label]}.png"
        Image.fromarray(picture[..., 0]).save(path)
        written.append((path, int(label)))
    return written


def _classify(bundle: Path, images: list[tuple[Path, int]]) -> None:
    with Predictor.load(bundle) as predictor:
        summary = Summary(predictor, None)
        table = Table(max(len(str(path)) for path, _ in images), predictor.manifest.classes)
        for path, _ in images:
            found = predictor.predict(path)
            answer = Answer(Shot(str(path), path), path, found, found.label, found.confidence)
            if summary.count < SHOWN:
                table.add(answer)
            summary.add(answer)
        print(f"... and {len(images) - SHOWN} more")
        summary.print(sys.stdout)


def _compare(bundle: Path, images: list[tuple[Path, int]]) -> None:
    """Time the early exits and the unsplit network in turn, on the same images."""
    opened = read_bundle(bundle)
    unsplit = Predictor(make_engine(None, opened.unsplit(), None, False), "deepest")
    with Predictor.load(bundle) as ours, unsplit:
        unsplit.warm_up()
        contenders: dict[str, tuple[Predictor, str]] = {
            "unsplit": (unsplit, "deepest"),
            **{name: (ours, name) for name in opened.manifest.operating_points},
        }
        taken: dict[str, list[Prediction]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for path, _ in images:
                for name, (predictor, policy) in contenders.items():
                    predictor.predict(path, policy=policy)  # the caches were another one's
                    taken[name].append(predictor.predict(path, policy=policy))
    labels = [label for _, label in images] * ROUNDS
    flops = opened.manifest.cumulative_flops
    base = _network_ms(taken["unsplit"])
    rows = []
    for name, predictions in taken.items():
        right = mean(p.index == label for p, label in zip(predictions, labels, strict=True))
        cost = mean(
            opened.manifest.unsplit_flops if name == "unsplit" else flops[p.exit - 1]
            for p in predictions
        )
        ms = _network_ms(predictions)
        rows.append(
            [
                name,
                percent(right),
                f"{cost / 1e6:.2f}",
                f"{mean(ms):.3f}",
                f"{median(ms):.3f}",
                f"{mean(base) / mean(ms):.2f}x",
            ]
        )
    headers = ["", "accuracy %", "mean MFLOPs", "mean ms", "median ms", "faster"]
    print_table(f"{len(images)} test images x {ROUNDS}, in turn; ms of the network", headers, rows)
    chosen_on = len(opened.arrays(opened.manifest.calibration)["labels"])
    print(
        f"The operating points were chosen on {chosen_on} validation images: with so few, the "
        "accuracy on others can be a point or two off."
    )


def _network_ms(predictions: list[Prediction]) -> list[float]:
    """Return each prediction's time from preprocessed image to label."""
    return [p.elapsed_ms - p.decode_ms - p.preprocess_ms for p in predictions]
