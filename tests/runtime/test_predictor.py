"""The predictor, on real segments for the answers and on a clock of its own for the deadlines."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timed import Clock, TimedEngine

import mate_edge
from mate_edge.bundle import read_bundle
from mate_edge.decide.policy import Confidence, Deepest
from mate_edge.decide.simulate import simulate
from mate_edge.errors import EngineError, ImageError, UsageError
from mate_edge.images import crop, decode, normalize
from mate_edge.runtime.deadline import LatencyTable
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.predictor import Predictor
from mate_edge.warn import MateEdgeWarning

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Predictor:
    return mate_edge.load(bundle_folder)


@pytest.fixture
def frames(golden: Golden) -> list[np.ndarray]:
    return list(golden["images"])


# the engine


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
    import hashlib
    import json

    segment = own_bundle / "segments" / "1.onnx"
    segment.write_bytes(b"not onnx")
    manifest = json.loads((own_bundle / "manifest.json").read_bytes())
    manifest["segments"][0]["file"].update(bytes=8, sha256=hashlib.sha256(b"not onnx").hexdigest())
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match="cannot load segment 1"):
        Predictor.load(own_bundle)


def test_one_shot_prediction_opens_no_segment_that_it_does_not_reach(
    own_bundle: Path, frames: list[np.ndarray]
) -> None:
    (own_bundle / "segments" / "3.onnx").unlink()
    lazy = Predictor.load(own_bundle, policy=0.0, lazy=True)
    assert lazy.predict(frames[0]).exit == 1


# answers


@pytest.mark.parametrize("policy", ["fast", "balanced", "accurate", "deepest", 0.0, 0.5, 1.0])
def test_the_runtime_does_what_the_simulation_says(
    policy: Any, predictor: Predictor, golden: Golden, frames: list[np.ndarray]
) -> None:
    predictor.set_policy(policy)
    expected = simulate(predictor.policy, golden["logits"])
    found = [predictor.predict(frame) for frame in frames]
    assert [p.exit for p in found] == expected.exits.tolist()
    assert [p.index for p in found] == expected.predictions.tolist()
    np.testing.assert_allclose([p.confidence for p in found], expected.confidences, atol=1e-4)
    for prediction in found:
        last = prediction.exit == predictor.engine.num_segments
        assert prediction.halted_by == ("last-exit" if last else "policy")
        assert prediction.label == predictor.manifest.classes[prediction.index]
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert len(prediction.segment_ms) == prediction.exit
        parts = prediction.decode_ms + prediction.preprocess_ms + sum(prediction.segment_ms)
        assert 0 < parts <= prediction.elapsed_ms
        assert not prediction.deadline_missed
        fields = json.loads(json.dumps(prediction.to_dict()))
        assert fields["label"] == prediction.label
        assert fields["probabilities"] == pytest.approx(prediction.probabilities.tolist())


@pytest.mark.parametrize("policy", ["fast", 0.3, "deepest"])
def test_a_batch_answers_as_its_images_do_alone(
    policy: Any, predictor: Predictor, frames: list[np.ndarray]
) -> None:
    alone = [predictor.predict(frame, policy=policy) for frame in frames]
    together = predictor.predict_batch(frames, policy=policy)
    assert [(p.index, p.exit, p.halted_by) for p in alone] == [
        (p.index, p.exit, p.halted_by) for p in together
    ]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    assert predictor.predict_batch([]) == []


def test_preprocessed_images_are_answered_like_frames_and_others_refused(
    predictor: Predictor, frames: list[np.ndarray]
) -> None:
    inputs = normalize(np.stack(frames), predictor.manifest.preprocessing)
    expected = predictor.predict_batch(frames)
    found = predictor.predict_inputs(inputs)
    assert [(p.index, p.exit) for p in found] == [(p.index, p.exit) for p in expected]
    (single,) = predictor.predict_inputs(inputs[:1], max_ms=0.001, policy="deepest")
    assert (single.exit, single.halted_by, single.deadline_missed) == (1, "deadline", True)
    with pytest.raises(UsageError, match="one image's"):
        predictor.predict_inputs(inputs, max_ms=5)
    lists: Any = [[1]]
    for wrong in (inputs[:0], inputs[:, :, 1:], inputs.astype(np.float64), inputs[0], lists):
        with pytest.raises(ImageError, match=r"float32 \[n, 1, 32, 32\]"):
            predictor.predict_inputs(wrong)


@pytest.mark.parametrize("value", [1e30, 255.0, -128.0, np.nan, np.inf, -np.inf])
def test_numbers_that_no_image_is_preprocessed_to_are_refused_and_not_the_bundles_fault(
    value: float, predictor: Predictor
) -> None:
    pre = predictor.manifest.preprocessing
    inputs = np.zeros((2, pre.channels, pre.size, pre.size), np.float32)
    inputs[1, 0, 5, 5] = value
    with pytest.raises(ImageError, match="no image is preprocessed to less than"):
        predictor.predict_inputs(inputs)


def test_black_and_white_and_a_little_beyond_are_preprocessed_images(
    predictor: Predictor,
) -> None:
    pre = predictor.manifest.preprocessing
    for level in (0, 255):
        pixels = np.full((1, pre.size, pre.size, pre.channels), level, np.uint8)
        inputs = normalize(pixels, pre)
        for scale in (1, 1.05):
            assert predictor.predict_inputs(inputs * np.float32(scale))


def test_a_segment_computes_only_the_images_that_have_not_left(
    predictor: Predictor, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = [found.confidence for found in predictor.predict_batch(frames, policy="exit-1")]
    engine = type(predictor.engine)  # patched here, since clones copy what an engine has of its own
    sizes, run = [], engine.run

    def counted(self: Engine, k: int) -> np.ndarray:
        logits = run(self, k)
        sizes.append((k, len(logits)))
        return logits

    monkeypatch.setattr(engine, "run", counted)
    found = predictor.predict_batch(frames, policy=float(np.median(sure)))
    exits = [prediction.exit for prediction in found]
    assert len(set(exits)) > 1
    assert sizes == [(k, sum(exit_ >= k for exit_ in exits)) for k in range(1, max(exits) + 1)]


def test_every_kind_of_frame_gives_the_same_answer(
    predictor: Predictor, frames: list[np.ndarray], pictures: Path
) -> None:
    path = pictures / "0.png"
    colored = np.repeat(frames[0], 3, axis=2)
    kinds = [path, str(path), path.read_bytes(), Image.open(path), frames[0], frames[0][..., 0],
             np.asfortranarray(frames[0]), colored]  # fmt: skip
    answers = {predictor.predict(kind, policy="deepest").confidence for kind in kinds}
    assert max(answers) - min(answers) < 1e-6


def test_a_large_jpeg_is_decoded_as_the_bundle_says_alone_and_in_a_batch(
    predictor: Predictor, frames: list[np.ndarray]
) -> None:
    pre = predictor.bundle.manifest.preprocessing
    assert pre.reducing_gap == 2.0
    buffer = io.BytesIO()
    Image.fromarray(frames[0][..., 0]).resize((500, 400)).save(buffer, "JPEG", quality=30)
    data = buffer.getvalue()
    whole, reduced = crop(decode(data), pre), crop(decode(data, preprocessing=pre), pre)
    assert not np.array_equal(whole, reduced)
    expected = predictor.predict(reduced, policy="deepest").probabilities
    [batched] = predictor.predict_batch([data], policy="deepest")
    for found in (predictor.predict(data, policy="deepest"), batched):
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_a_batch_may_be_an_array_or_whatever_yields_images(
    predictor: Predictor, frames: list[np.ndarray]
) -> None:
    expected = [one.index for one in predictor.predict_batch(frames)]
    several: Any = (np.stack(frames), tuple(frames), iter(frames))
    for batch in several:
        assert [one.index for one in predictor.predict_batch(batch)] == expected
    assert predictor.predict_batch(np.zeros((0, 32, 32, 1), np.uint8)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "one",
    ["a.png", b"bytes", Path("a.png"), np.zeros((32, 32, 3), np.uint8), Image.new("L", (9, 9)), 5],
)
def test_one_image_where_several_are_meant_is_a_clear_error(one: Any, predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=r"one image to predict\(\)"):
        predictor.predict_batch(one)
    with pytest.raises(UsageError, match=r"one image to predict\(\)"):
        next(predictor.stream(one))


@pytest.mark.parametrize("color", ["BGR", "gray", None])
def test_a_color_order_that_is_not_known_is_refused_and_never_taken_for_rgb(
    color: Any, predictor: Predictor, frames: list[np.ndarray]
) -> None:
    with pytest.raises(UsageError, match=f"color must be rgb or bgr, not {color!r}"):
        predictor.predict(frames[0], color=color)


def test_a_stream_reports_a_bad_image_and_goes_on(predictor: Predictor, pictures: Path) -> None:
    bad = pictures / "bad.png"
    bad.write_bytes(b"")
    results = dict(predictor.stream([pictures / "0.png", bad, pictures / "1.png"]))
    assert isinstance(results.pop(str(bad)), ImageError)
    assert all(not isinstance(result, ImageError) for result in results.values())
    assert len(results) == 2


class Unreadable:
    """An array in host memory of a kind that numpy does not know, such as bfloat16."""

    shape = (8, 8)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: object) -> object:
        raise BufferError("no such dtype")


@pytest.mark.parametrize(
    "frame",
    [
        *(12, None, [1, 2], np.zeros((3, 3)), b"", b"junk", "a\0b", Unreadable()),
        Image.new("L", (0, 8)),
        np.zeros((8, 0, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_a_clear_error(frame: Any, predictor: Predictor) -> None:
    with pytest.raises(ImageError):
        predictor.predict(frame)


@pytest.mark.parametrize("policy", ["fst", 1.5, -0.1, float("nan")])
def test_an_unknown_policy_is_a_clear_error(policy: Any, predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="policy|threshold"):
        predictor.set_policy(policy)


@pytest.mark.parametrize("policy", [object(), Deepest, np.zeros(3), b"fast", (0.5, 0.5)])
def test_an_object_that_is_no_policy_is_refused_when_it_is_set(
    policy: Any, predictor: Predictor
) -> None:
    with pytest.raises(UsageError, match="an object with the method decide, not"):
        predictor.set_policy(policy)


SURE = np.full((8, 10), 0.1, np.float32)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda n: (np.ones(n, int), SURE[:n]), r"not \(int64 \[1\], float32 \[1, 10\]\)"),
        (lambda n: (np.ones((n, 1), bool), SURE[:n]), r"bool \[1\], and .* not \(bool \[1, 1\]"),
        (lambda n: ([True] * n, SURE[:n]), "a list, float32"),
        (lambda n: (np.ones(n, bool), SURE[:n, :3]), r"float32 \[1, 3\]"),
        (lambda n: True, "not a bool"),
    ],
)
def test_a_policy_that_answers_in_another_form_is_refused_everywhere(
    answer: Any, says: str, predictor: Predictor, frames: list[np.ndarray], golden: Golden
) -> None:
    class Own:
        def decide(self, logits: np.ndarray) -> Any:
            return answer(len(logits))

    with pytest.raises(UsageError, match=f"policy Own must return.*{says}"):
        predictor.predict(frames[0], policy=Own())
    with pytest.raises(UsageError, match="policy Own must return"):
        predictor.predict_batch(frames, policy=Own())
    with pytest.raises(UsageError, match="policy Own must return"):
        predictor.predict(frames[0], policy=Own(), max_ms=50.0)
    with pytest.raises(UsageError, match="policy Own must return"):
        simulate(Own(), golden["logits"])


def test_a_threshold_may_be_numpys(predictor: Predictor) -> None:
    for threshold in (np.float32(0.5), np.float64(0.5)):
        predictor.set_policy(threshold)  # type: ignore[arg-type]
        assert isinstance(predictor.policy, Confidence)
        assert predictor.policy.thresholds == (0.5, 0.5)


def test_clones_serve_threads_side_by_side_and_one_predictor_refuses_to(
    predictor: Predictor, frames: list[np.ndarray]
) -> None:
    expected = [predictor.predict(frame, policy="deepest").index for frame in frames]
    answers: dict[int, list[int]] = {}

    def work(number: int, own: Predictor) -> None:
        answers[number] = [
            own.predict(f, policy="deepest").index for _ in range(20) for f in frames
        ]

    threads = [threading.Thread(target=work, args=(i, predictor.clone())) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys(range(3), expected * 20)

    class Reentrant(Deepest):
        def decide(self, logits: np.ndarray) -> Any:
            predictor.predict(frames[0])

    with pytest.raises(UsageError, match="clone"):
        predictor.predict(frames[0], policy=Reentrant((1.0, 1.0, 1.0)))
    assert predictor.predict(frames[0]).exit >= 1


def test_threads_that_share_one_predictor_get_right_answers_or_an_error(
    predictor: Predictor, frames: list[np.ndarray]
) -> None:
    expected = [predictor.predict(frame, policy="deepest").index for frame in frames]
    answered: list[tuple[int, int]] = []

    def work() -> None:
        for number in [*range(len(frames))] * 30:
            try:
                found = predictor.predict(frames[number], policy="deepest")
            except UsageError:
                continue
            answered.append((number, found.index))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered
    assert all(index == expected[number] for number, index in answered)


# deadlines, on a clock that moves only when a segment runs


@pytest.fixture
def timed(bundle_folder: Path) -> tuple[Predictor, TimedEngine, Clock]:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    predictor = Predictor(engine, "deepest", clock)
    ms = (1.0, 2.0, 4.0)
    predictor.timing.latencies = LatencyTable(ms, ms, ms, 999, True)
    return predictor, engine, clock


@pytest.mark.parametrize(
    ("max_ms", "exit_", "halted_by", "missed"),
    [
        (0.5, 1, "deadline", True),
        (1.0, 1, "deadline", False),
        (2.99, 1, "deadline", False),
        (3.0, 2, "deadline", False),
        (6.99, 2, "deadline", False),
        (7.0, 3, "last-exit", False),
        (100.0, 3, "last-exit", False),
    ],
)
def test_it_goes_as_deep_as_the_deadline_allows(
    max_ms: float,
    exit_: int,
    halted_by: str,
    missed: bool,
    timed: tuple[Predictor, TimedEngine, Clock],
    frames: list[np.ndarray],
) -> None:
    predictor, engine, _ = timed
    found = predictor.predict(frames[0], max_ms=max_ms)
    assert (found.exit, found.halted_by, found.deadline_missed) == (exit_, halted_by, missed)
    assert engine.ran == list(range(1, exit_ + 1))
    assert found.elapsed_ms == pytest.approx(sum(engine.ms[:exit_]))


def test_the_age_of_a_frame_counts(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, clock = timed
    fresh = predictor.predict(frames[0], max_ms=7.5)
    stale = predictor.predict(frames[0], max_ms=7.5, started_ns=clock() - 2_000_000)
    assert (fresh.exit, stale.exit) == (3, 2)
    assert stale.elapsed_ms == pytest.approx(5.0)


@pytest.mark.parametrize("odd", [1_790_000_000_000_000_000, float("nan"), 1.5, "5"])
def test_a_moment_of_another_clock_or_none_is_refused(
    odd: Any, timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, _ = timed
    inputs = normalize(np.stack(frames[:1]), predictor.manifest.preprocessing)
    for predict, given in ((predictor.predict, frames[0]), (predictor.predict_inputs, inputs)):
        with pytest.raises(UsageError, match=r"started_ns must be a time\.perf_counter_ns"):
            predict(given, started_ns=odd, max_ms=5)  # type: ignore[operator]


def test_numpys_numbers_give_pythons_in_the_prediction(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, clock = timed
    moment: Any = np.int64(clock() - 1000)
    inputs = normalize(np.stack(frames[:1]), predictor.manifest.preprocessing)
    for max_ms in (np.float32(5), np.float64(5), np.int64(5)):
        when: Any = {"max_ms": max_ms, "started_ns": moment}
        for found in (
            predictor.predict(frames[0], **when),
            *predictor.predict_inputs(inputs, **when),
        ):
            assert (type(found.elapsed_ms), type(found.deadline_missed)) == (float, bool)


@pytest.mark.parametrize("max_ms", [0, -1.0, np.float32("nan"), float("inf"), "5", [5]])
def test_a_deadline_that_is_no_positive_number_is_a_clear_error(
    max_ms: Any, predictor: Predictor, frames: list[np.ndarray]
) -> None:
    with pytest.raises(UsageError, match="the deadline must be a positive number of ms, not"):
        predictor.predict(frames[0], max_ms=max_ms)


def test_a_slower_device_answers_from_a_shallower_exit_and_still_in_time(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, engine, _ = timed
    assert predictor.predict(frames[0], max_ms=7.5).exit == 3
    engine.ms = [2.0, 4.0, 8.0]
    found = [predictor.predict(frames[0], max_ms=7.5) for _ in range(10)]
    assert [p.exit for p in found[3:]] == [2] * 7
    assert not any(p.deadline_missed for p in found[3:])
    engine.ms = [1.0, 2.0, 4.0]
    for _ in range(60):
        recovered = predictor.predict(frames[0], max_ms=7.5)
    assert recovered.exit == 3


def test_a_policy_that_is_satisfied_is_not_the_deadlines_doing(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, _, _ = timed
    temperatures = (1.0, 1.0, 1.0)
    found = predictor.predict(frames[0], max_ms=1.0, policy=Confidence((0.0, 0.0), temperatures))
    assert (found.exit, found.halted_by) == (1, "policy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_never_yield_an_answer(
    value: float, timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, engine, _ = timed
    engine.value = value
    with pytest.raises(EngineError, match="segment 1"):
        predictor.predict(frames[0])


@pytest.mark.parametrize("segment", [1, 2, 3])
def test_nor_do_those_of_a_later_exit_or_of_one_image_in_a_batch(
    segment: int, predictor: Predictor, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = type(predictor.engine)
    run = engine.run

    def damaged(self: Engine, k: int) -> np.ndarray:
        logits = run(self, k)
        logits[-1, 3] = np.nan if k == segment else logits[-1, 3]
        return logits

    monkeypatch.setattr(engine, "run", damaged)
    with pytest.raises(EngineError, match=f"segment {segment}"):
        predictor.predict(frames[0], policy="deepest")
    with pytest.raises(EngineError, match=f"segment {segment}"):
        predictor.predict_batch(frames, policy="deepest")


def test_a_rare_hiccup_in_the_measurement_is_no_quantile(bundle_folder: Path) -> None:
    clock = Clock()

    class Hiccuping(TimedEngine):
        rounds = 0

        def run(self, k: int) -> np.ndarray:
            self.rounds += k == 1
            self.clock.pass_ms(50.0 if k == 2 and self.rounds % 300 == 100 else 0.0)
            return super().run(k)

    engine = Hiccuping(read_bundle(bundle_folder), clock, [0.1, 0.2, 0.4])
    table = Predictor(engine, "deepest", clock).measure()
    assert table.exact
    assert max(table.finish_ms) < 1


def test_a_warning_is_filed_under_the_line_that_called(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    lazy = Predictor.load(bundle_folder, lazy=True)
    with pytest.warns(MateEdgeWarning) as said:
        lazy.predict(frames[0], max_ms=10_000)
    assert {one.filename for one in said} == {__file__}


def test_a_predictor_that_is_closed_says_so(bundle_folder: Path, frames: list[np.ndarray]) -> None:
    with Predictor.load(bundle_folder, policy="deepest") as own:
        own.predict(frames[0])

        class Closing(Deepest):
            def decide(self, logits: np.ndarray) -> Any:
                own.close()

        with pytest.raises(UsageError, match="busy"):
            own.predict(frames[0], policy=Closing((1.0, 1.0, 1.0)))
        own.close()
        for attempt in (lambda: own.predict(frames[0]), own.clone, own.measure):
            with pytest.raises(UsageError, match="closed"):
                attempt()


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_predictor_that_would_go_to_another_process_says_what_to_do(
    attempt: Callable[[object], object], predictor: Predictor
) -> None:
    with pytest.raises(UsageError, match=r"clone\(\) it .* load the bundle in each process"):
        attempt(predictor)


def test_one_that_is_closed_while_another_thread_comes_in_does_not_open_again(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    calls: list[Callable[[Predictor], object]] = [
        lambda own: own.predict(frames[0]),
        lambda own: own.predict_batch(frames),
        Predictor.warm_up,
    ]

    def close(frame: Any, event: str, argument: object) -> None:
        if event == "return" and frame.f_code.co_name == "_alone":  # next it takes the lock
            sys.setprofile(None)
            other.submit(own.close).result()

    with ThreadPoolExecutor(1) as other:
        for call in calls:
            own = Predictor.load(bundle_folder)
            sys.setprofile(close)
            try:
                with pytest.raises(UsageError, match="closed"):
                    call(own)
            finally:
                sys.setprofile(None)


def test_a_deadline_without_measurements_measures_first_and_says_so(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    lazy = Predictor.load(bundle_folder, lazy=True, policy="deepest")
    assert lazy.timing.latencies is None
    with pytest.warns(UserWarning, match="never measured on this device"):
        found = lazy.predict(frames[0], max_ms=10_000)
    assert found.halted_by == "last-exit"
    assert not found.deadline_missed
    assert lazy.timing.latencies is not None
    assert lazy.timing.latencies.samples >= 10
    for wrong in (-1, 10**400):
        with pytest.raises(UsageError, match="deadline"):
            lazy.predict(frames[0], max_ms=wrong)


def test_the_first_runs_are_cold_and_no_slow_down(bundle_folder: Path) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    Predictor(engine, "deepest", clock).measure()
    engine.ms = [10.0, 20.0, 40.0]
    later = Predictor(engine, "deepest", clock)
    later.know_latencies()
    twin = later.clone()
    assert later.timing.slow_down.factor == twin.timing.slow_down.factor == 1
    assert later.timing.latencies is not None
    assert later.timing.latencies.median_ms == pytest.approx((1.0, 2.0, 4.0))
    assert later.timing.is_warm
    assert twin.timing.is_warm
    assert not Predictor(engine, "deepest", clock).clone().timing.is_warm


def test_a_warm_up_that_ctrl_c_ends_is_made_up_for(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = TimedEngine(read_bundle(bundle_folder), clock, [1.0, 2.0, 4.0])
    Predictor(engine, "deepest", clock).measure()
    later = Predictor(engine, "deepest", clock)

    def interrupt(k: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine, "open", interrupt)
        with pytest.raises(KeyboardInterrupt):
            later.know_latencies()
    later.know_latencies()
    assert later.timing.is_warm


def test_the_next_process_starts_from_what_was_measured(
    timed: tuple[Predictor, TimedEngine, Clock], recwarn: pytest.WarningsRecorder
) -> None:
    predictor, engine, clock = timed
    measured = predictor.measure()
    engine.ms = [5.0, 5.0, 5.0]
    later = Predictor(engine, "deepest", clock)
    assert later.know_latencies() == measured
    assert later.timing.measured == predictor.timing.measured
    assert not recwarn
    assert measured.median_ms == pytest.approx((1.0, 2.0, 4.0))
    (state,) = Path(os.environ["MATE_EDGE_STATE"]).rglob("latencies-*.json")
    state.write_text("{")
    with pytest.warns(UserWarning, match="never measured"):
        assert Predictor(engine, "deepest", clock).know_latencies().median_ms[0] == 5.0
    assert Predictor(engine, "deepest", clock).know_latencies().median_ms[0] == 5.0


@dataclasses.dataclass
class Slow:
    """A policy that takes its time, on a clock of its own."""

    clock: Clock
    ms: float

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock.pass_ms(self.ms)
        return np.zeros(len(logits), np.bool_), np.full((len(logits), 10), 0.1, np.float32)


def test_a_policy_that_takes_long_to_decide_keeps_its_deadlines_too(
    timed: tuple[Predictor, TimedEngine, Clock], frames: list[np.ndarray]
) -> None:
    predictor, engine, clock = timed
    predictor.measure()
    slow = Predictor(engine, Slow(clock, 0.5), clock)
    for max_ms, exit_ in ((1.6, 1), (3.9, 1), (4.1, 2), (8.4, 2), (8.6, 3)):
        found = [slow.predict(frames[0], max_ms=max_ms) for _ in range(3)]
        assert {(p.exit, p.deadline_missed) for p in found} == {(exit_, False)}, max_ms
        quick = predictor.predict(frames[0], max_ms=max_ms, policy=Slow(clock, 0.5))
        assert quick.exit == exit_, "the policy of a call counts as well"
    assert predictor.predict(frames[0], max_ms=7.1).exit == 3, "and not for others"


def test_of_clones_that_meet_their_first_deadline_together_one_measures(
    bundle_folder: Path, frames: list[np.ndarray]
) -> None:
    first = Predictor.load(bundle_folder, policy="deepest")
    clones = [first.clone() for _ in range(4)]
    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        list(pool.map(lambda one: one.predict(frames[0], max_ms=10_000), clones))
    assert sum("never measured" in str(one.message) for one in said) == 1
    assert len({id(one.timing.measured) for one in clones}) == 1


@pytest.mark.parametrize("several", [False, True])
def test_a_thread_that_was_interrupted_comes_in_again(
    several: bool, predictor: Predictor, frames: list[np.ndarray]
) -> None:
    def answers() -> list[int]:
        if several:
            return [found.index for found in predictor.predict_batch(frames)]
        return [predictor.predict(frames[0]).index]

    expected = answers()
    interrupted = 0

    def interrupt(frame: object, event: str, argument: object) -> None:
        nonlocal interrupted
        if event == "call":
            seen.append(event)
            if len(seen) == at:
                interrupted += 1
                raise KeyboardInterrupt

    for at in range(1, 80):  # noqa: B007 - interrupt() reads it
        seen: list[str] = []
        try:
            sys.setprofile(interrupt)
            answers()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
    assert interrupted > 20
    assert answers() == expected


def test_a_state_that_cannot_be_written_only_costs_the_next_process_its_time(
    timed: tuple[Predictor, TimedEngine, Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    predictor, _, _ = timed
    with pytest.warns(MateEdgeWarning, match="not kept, each process measures anew: .*STATE"):
        assert predictor.measure().median_ms == pytest.approx((1.0, 2.0, 4.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bundle": None}, "a bundle is the path of its folder, not None"),
        ({"bundle": ""}, "a bundle is the path of its folder, not ''"),
        ({"engine": 5}, "unknown --engine 5: choose from onnxruntime, "),
        ({"engine": ["onnxruntime"]}, "unknown --engine .'onnxruntime'.: choose from"),
        ({"engine": ""}, "unknown --engine ''"),
        ({"threads": "2"}, "--threads must lie between 1 and .*, not '2'"),
        ({"threads": 1.5}, "not 1.5"),
        ({"strict": True}, "strict goes with max_ms"),
    ],
)
def test_what_cannot_be_loaded_so_is_a_clear_error(
    options: dict[str, Any], says: str, bundle_folder: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        Predictor.load(**{"bundle": bundle_folder, **options})


def test_a_deadline_given_at_load_is_judged_at_load(bundle_folder: Path) -> None:
    with (
        pytest.warns(UserWarning, match="never measured"),
        Predictor.load(bundle_folder, max_ms=10_000) as predictor,
    ):
        assert predictor.timing.latencies is not None
    with pytest.warns(UserWarning, match="0.0001 ms is less than the .* ms that exit 1 may need"):
        Predictor.load(bundle_folder, max_ms=0.0001).close()
    with pytest.raises(UsageError, match="exit 1 may need"):
        Predictor.load(bundle_folder, max_ms=0.0001, strict=True)
    for odd in (-1, float("nan"), "5"):
        with pytest.raises(UsageError, match="the deadline must be a positive number of ms, not"):
            Predictor.load(bundle_folder, max_ms=odd)  # type: ignore[arg-type]
