"""What holds for every engine: the CPU's, TensorRT's on fake GPUs, and on a real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mate_edge.bundle import read_bundle
from mate_edge.errors import EngineError
from mate_edge.images import normalize
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.engines.tensorrt import TensorRTEngine
from mate_edge.runtime.predictor import Predictor

Golden = dict[str, np.ndarray]
OpenEngine = Callable[[], Engine]


@pytest.fixture
def images(golden: Golden, open_engine: OpenEngine) -> np.ndarray:
    with open_engine() as engine:
        return normalize(golden["images"], engine.bundle.manifest.preprocessing)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """Logits are the exported network's; every error of wiring is far beyond this."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_every_exit_gives_the_golden_logits_alone_and_in_a_batch(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine:
        for _ in range(3):  # the first time plainly, then as a recorded graph
            for batch in (images[:1], images, images[:3]):
                engine.load(batch)
                for k in range(1, engine.num_segments + 1):
                    check(engine.run(k), golden["logits"][: len(batch), k - 1])
        on_gpu = isinstance(engine, TensorRTEngine)
        assert engine.graphs in (("on", "off: pycuda has none") if on_gpu else ("",))


def test_logits_stay_what_they_are_when_other_batches_are_run(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    batches = [slice(0, 2), slice(0, 3), slice(1, 3), slice(2, 3), slice(0, 3)]
    with open_engine() as engine:
        found = []
        for rows in batches:
            engine.load(np.asfortranarray(images[rows]))
            found.append([engine.run(k) for k in range(1, engine.num_segments + 1)])
        for rows, logits in zip(batches, found, strict=True):
            for k, one in enumerate(logits):
                check(one, golden["logits"][rows, k])


def test_the_unsplit_network_is_the_last_exit(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine, type(engine)(engine.bundle.unsplit()) as whole:
        for batch in (images[:1], images[:1], images):
            whole.load(batch)
            check(whole.run(1), golden["logits"][: len(batch), -1])


def test_every_image_gets_its_own_answer(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine:
        for number in range(len(images)):
            engine.load(images[number : number + 1])
            for k in range(1, engine.num_segments + 1):
                check(engine.run(k), golden["logits"][number : number + 1, k - 1])


@pytest.mark.parametrize(
    "rows", [[0], [7], [1, 2, 3, 4, 5, 6, 7], [0, 1, 2], [6], [1, 3, 6], [0, 2, 3, 4, 5, 7]]
)
def test_dropped_samples_do_not_change_the_others(
    rows: list[int], open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    stay = np.array(rows)
    with open_engine() as engine:
        engine.load(images)
        engine.run(1)
        engine.keep(stay)
        check(engine.run(2), golden["logits"][stay, 1])
        check(engine.run(3), golden["logits"][stay, 2])


def test_samples_can_leave_after_each_exit(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine:
        engine.load(images)
        engine.run(1)
        engine.keep(np.array([1, 2, 4, 5, 7]))
        engine.run(2)
        engine.keep(np.array([0, 3, 4]))
        check(engine.run(3), golden["logits"][[1, 5, 7], 2])


def test_a_batch_can_start_at_any_segment(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    from mate_edge.runtime.engines.onnxruntime import make_session, session_options

    with open_engine() as engine:
        bundle = read_bundle(engine.bundle.folder)
        for features in (images[:1], images, images[:1]):
            n = len(features)
            for k, segment in enumerate(bundle.manifest.segments, start=1):
                engine.load(features, k)
                check(engine.run(k), golden["logits"][:n, k - 1])
                model, feed = bundle.read(segment.file), {segment.input.name: features}
                features = make_session(model, session_options(1, False), "it").run(None, feed)[0]


def test_what_was_loaded_last_counts(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine:
        engine.load(images)
        engine.load(images[4:6])
        check(engine.run(1), golden["logits"][4:6, 0])
        engine.load(images[2:3])
        check(engine.run(1), golden["logits"][2:3, 0])


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2], [1, 2], [2, 0, 1, 1, 0, 2] * 4])
def test_pixels_are_taken_as_the_images_that_they_are_normalised_to(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden, rows: list[int]
) -> None:
    with open_engine() as engine:
        if isinstance(engine, TensorRTEngine):
            rows = rows[: engine.max_batch]
        for _ in range(2):  # the second time into memory that the first one made
            engine.load(images[-1:])
            engine.run(1)
            engine.load_pixels(golden["images"][rows])
            found = [engine.run(k) for k in range(1, engine.num_segments + 1)]
            engine.load(images[rows])
            for k, logits in enumerate(found, start=1):
                assert np.array_equal(logits, engine.run(k))
                check(logits, golden["logits"][rows, k - 1])


def test_pixels_that_are_dropped_before_segment_1_are_not_run(
    open_engine: OpenEngine, golden: Golden
) -> None:
    with open_engine() as engine:
        for rows in (np.array([0, 2]), np.array([1])):
            engine.load_pixels(golden["images"][:3])
            engine.keep(rows)
            for k in range(1, engine.num_segments + 1):
                check(engine.run(k), golden["logits"][rows, k - 1])


def test_clones_normalise_into_memory_of_their_own(open_engine: OpenEngine, golden: Golden) -> None:
    with open_engine() as engine:
        engine.load_pixels(golden["images"][:1])
        engine.run(1)
        with engine.clone() as twin:
            twin.load_pixels(golden["images"][1:2])
            twin.run(1)
            engine.load_pixels(golden["images"][2:3])
            twin.load_pixels(golden["images"][:1])
            check(engine.run(1), golden["logits"][2:3, 0])
            check(twin.run(1), golden["logits"][:1, 0])


def test_logits_are_the_callers_own(open_engine: OpenEngine, images: np.ndarray) -> None:
    with open_engine() as engine:
        engine.load(images[:1])
        first = engine.run(1)
        kept = first.copy()
        engine.load(images[1:2])
        assert not np.array_equal(engine.run(1), kept)
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("n", [1, 3])
def test_clones_do_not_disturb_each_other(
    n: int, open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    ours, others = slice(n), slice(n, 2 * n)
    with open_engine() as engine:
        engine.load(images[ours])
        engine.run(1)
        with engine.clone() as twin:
            twin.load(images[others])
            check(twin.run(1), golden["logits"][others, 0])
            check(engine.run(2), golden["logits"][ours, 1])
            check(twin.run(2), golden["logits"][others, 1])
        check(engine.run(3), golden["logits"][ours, 2])


def test_clones_serve_threads_side_by_side(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    wrong: list[BaseException] = []

    def work(engine: Engine, rows: slice) -> None:
        try:
            with engine:
                for _ in range(3):
                    engine.load(images[rows])
                    for k in range(1, engine.num_segments + 1):
                        check(engine.run(k), golden["logits"][rows, k - 1])
        except BaseException as error:
            wrong.append(error)

    with open_engine() as engine:
        threads = [
            threading.Thread(target=work, args=(engine.clone(), slice(start, start + 2)))
            for start in (0, 2, 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_closing_twice_is_fine_and_it_can_be_opened_again(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    engine = open_engine()
    engine.close()
    for _ in range(2):
        engine.load(images)
        check(engine.run(1), golden["logits"][:, 0])
        engine.close()
        engine.close()


def test_the_predictor_answers_as_on_the_cpu(
    open_engine: OpenEngine, golden: Golden, predictor: Predictor
) -> None:
    frames = list(golden["images"])
    with Predictor(open_engine()) as found:
        found.warm_up()
        for policy in ("fast", "deepest", 0.5):
            expected = predictor.predict_batch(frames, policy=policy)
            together = found.predict_batch(frames, policy=policy)
            alone = [found.predict(frame, policy=policy) for frame in frames]
            for answers in (together, alone):
                assert [(p.index, p.exit) for p in answers] == [(p.index, p.exit) for p in expected]


@pytest.fixture(scope="module")
def predictor(bundle_folder: str) -> Predictor:
    return Predictor.load(bundle_folder, engine="onnxruntime")


def test_a_batch_gives_the_same_logits_in_parts(
    bundle_folder: Path, images: np.ndarray, golden: Golden
) -> None:
    with OnnxRuntimeEngine(read_bundle(bundle_folder)) as engine:
        batch = np.concatenate([images] * 4)
        for engine.at_once in (1, 3, len(batch), 10**6):
            engine.load(batch)
            for k in range(1, engine.num_segments + 1):
                check(engine.run(k), np.concatenate([golden["logits"][:, k - 1]] * 4))


def test_samples_can_leave_a_batch_of_many_parts(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    random = np.random.default_rng(0)
    with open_engine() as engine:
        most = min(engine.batch_size, 50)
        for n in (most, 3, most, 40, 17):  # the memory of a larger batch serves smaller ones, too
            which = random.integers(0, len(images), min(n, most))
            engine.load(images[which])
            for k in range(1, engine.num_segments + 1):
                check(engine.run(k), golden["logits"][which, k - 1])
                for _ in range(2):  # nothing says that a segment is run in between
                    stay = np.flatnonzero(random.random(len(which)) < 0.8)
                    if len(stay) and k < engine.num_segments:
                        engine.keep(stay)
                        which = which[stay]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_that_the_segment_does_not_take_is_an_error(
    n: int, k: int, bundle_folder: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    shape = bundle.manifest.segments[k - 1].input.shape
    with OnnxRuntimeEngine(bundle, blocked=lambda bundle: None) as engine:
        for wrong in (
            np.zeros((n, *shape), np.float64),
            np.zeros((n, shape[0], 1, 1), np.float32),  # which numpy would spread
            np.zeros((n, *shape[1:]), np.float32),
        ):
            engine.load(wrong, k)
            with pytest.raises(
                EngineError, match=rf"segment {k} .* it takes float32 \[{shape[0]},"
            ):
                engine.run(k)


def test_samples_that_were_dropped_of_a_batch_are_there_in_the_next(
    open_engine: OpenEngine, images: np.ndarray, golden: Golden
) -> None:
    with open_engine() as engine:
        for rows in ([5, 6, 7], [2]):
            engine.load(images)
            engine.run(1)
            engine.keep(np.array([1, 3, 4]))
            engine.load(images[rows])
            for k in range(1, engine.num_segments + 1):
                check(engine.run(k), golden["logits"][rows, k - 1])


def test_a_sample_that_is_not_in_the_batch_cannot_stay(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    with OnnxRuntimeEngine(bundle) as engine:
        engine.load(np.zeros((3, *bundle.manifest.segments[0].input.shape), np.float32))
        engine.run(1)
        with pytest.raises(IndexError):
            engine.keep(np.array([1, 3]))


def test_of_large_features_fewer_images_are_run_at_once(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(bundle_folder)
    largest = 16 * 32 * 32 * 4  # of resnet8, at exit 1
    for room, expected in ((100 * largest, 64), (5 * largest, 5), (1, 1)):
        monkeypatch.setattr("mate_edge.runtime.engines.engine.BATCH_BYTES", room)
        with OnnxRuntimeEngine(bundle) as engine:
            assert engine.batch_size == expected


@pytest.mark.parametrize("policy", [0.3, "deepest"])
def test_more_images_than_are_run_at_once_answer_as_they_do_alone(
    policy: float | str, open_engine: OpenEngine, golden: Golden
) -> None:
    frames = [*golden["images"], *golden["images"][::-1], golden["images"][0]]
    with open_engine() as engine:
        engine.batch_size = min(engine.batch_size, 7)
        predictor = Predictor(engine, policy)
        alone = [predictor.predict(frame) for frame in frames]
        together = predictor.predict_batch(frames)
        assert [(p.index, p.exit) for p in together] == [(p.index, p.exit) for p in alone]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_the_cpu_engine_computes_the_golden_logits_on_any_number_of_threads(
    bundle_folder: Path, golden: Golden
) -> None:
    bundle = read_bundle(bundle_folder)
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    scale = np.abs(golden["logits"]).max()
    for threads in (1, 2):
        with make_engine("onnxruntime", bundle, threads, shared_pool=False) as engine:
            for batch in (images, images[:1]):
                engine.load(batch)
                for k in range(1, engine.num_segments + 1):
                    expected = golden["logits"][: len(batch), k - 1]
                    np.testing.assert_allclose(engine.run(k), expected, atol=1e-4 * scale)


def test_a_segment_that_onnxruntime_refuses_is_a_clear_error(own_bundle: Path) -> None:
    segment = own_bundle / "segments" / "1.onnx"
    segment.write_bytes(b"not onnx")
    manifest = json.loads((own_bundle / "manifest.json").read_bytes())
    manifest["segments"][0]["file"].update(bytes=8, sha256=hashlib.sha256(b"not onnx").hexdigest())
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match="cannot load segment 1"):
        Predictor.load(own_bundle)
