"""What bench said of a bundle is kept for reports, and forgotten when the device changes."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timed import Clock, TimedEngine

from mate_edge.bundle import read_bundle
from mate_edge.report.bench import Bench
from mate_edge.runtime.bench import benched
from mate_edge.runtime.bench.bench import measure
from mate_edge.runtime.bench.benched import read_bench
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.bench.subjects import Subject
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.state import state_folder


@pytest.fixture
def subject(bundle_folder: Path) -> Subject:
    clock, bundle = Clock(), read_bundle(bundle_folder)
    pair = [
        Predictor(TimedEngine(one, clock, ms), "deepest", clock)
        for one, ms in ((bundle, [1.0, 1.0, 1.0]), (bundle.unsplit(), [2.0]))
    ]
    return Subject("a test", *pair)


def run(subject: Subject, png: bytes, **options: int) -> Bench:
    (found,) = measure(
        [subject], [png], "a test's", Options(rounds=12, **options), say=lambda line: None
    )
    return found


@pytest.fixture
def png(golden: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(golden["images"][0][..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


Change = Callable[[Path], object]


def test_it_is_read_again_as_it_was_said(subject: Subject, png: bytes) -> None:
    bundle, engine = subject.whole.bundle, subject.whole.engine
    assert read_bench(bundle, engine) is None
    said = run(subject, png)
    assert read_bench(bundle, engine) == said
    assert said.verdict


def test_a_load_beside_it_is_no_measurement_to_keep(subject: Subject, png: bytes) -> None:
    run(subject, png, load=1)  # `bench` starts the load, and nothing else does
    assert read_bench(subject.whole.bundle, subject.whole.engine) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2', 1)),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"cpus":', b'"cpus": 9', 1)),
    ],
    ids=["damaged", "of another schema", "of another device"],
)
def test_what_does_not_fit_counts_as_absent(change: Change, subject: Subject, png: bytes) -> None:
    bundle, engine = subject.whole.bundle, subject.whole.engine
    run(subject, png)
    (path,) = state_folder(bundle.id, engine.device_key).glob(f"{benched.STATE}-*.json")
    before = path.read_bytes()
    change(path)
    assert path.read_bytes() != before
    assert read_bench(bundle, engine) is None


def test_each_state_of_a_device_has_a_measurement_of_its_own(
    subject: Subject, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, engine = subject.whole.bundle, subject.whole.engine
    run(subject, png)
    here = read_bench(bundle, engine)
    assert here is not None
    with monkeypatch.context() as patched:
        patched.setattr(engine, "gpu", "another of its compute capability")
        assert read_bench(bundle, engine) is None
        run(subject, png, max_ms=9.0)
        there = read_bench(bundle, engine)
    assert read_bench(bundle, engine) == here
    assert there is not None
    assert (here.max_ms, there.max_ms) == (None, 9.0)


def test_another_bundle_has_none(subject: Subject, png: bytes) -> None:
    run(subject, png)
    other = dataclasses.replace(subject.whole.bundle, id="0" * 64)
    assert read_bench(other, subject.whole.engine) is None
