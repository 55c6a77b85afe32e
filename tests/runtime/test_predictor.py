"""The predictor on real segments: its answers, what it refuses, and its threads."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timed import Clock, TimedEngine

import mate_edge
from mate_edge.decide.policy import THRESHOLDS, Confidence, Deepest
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import softmax
from mate_edge.errors import EngineError, ImageError, UsageError
from mate_edge.images import crop, decode, normalize
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.predictor import Predictor

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def predictor(bundle_folder: Path) -> Predictor:
    return mate_edge.load(bundle_folder)


def test_one_shot_prediction_opens_no_segment_that_it_does_not_reach(
    own_bundle: Path, frames: list[np.ndarray]
) -> None:
    (own_bundle / "segments" / "3.onnx").unlink()
    lazy = Predictor.load(own_bundle, policy=0.0, lazy=True)
    assert lazy.predict(frames[0]).exit == 1


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


SCORES = {"confidence": 0.5, "entropy": 0.4, "margin": 0.3, "ensemble": 0.5}


@pytest.mark.parametrize("policy", [*SCORES, "patience-2", "exit-2", "deepest", "fast"])
def test_alone_in_a_batch_and_simulated_a_policy_gives_the_same_answers(
    policy: str, predictor: Predictor, frames: list[np.ndarray]
) -> None:
    shifted = [np.roll(frame, by, axis=1) for by in range(5) for frame in frames]
    logits = []
    for frame in shifted:
        predictor.predict(frame, policy="deepest")
        logits.append(np.stack(predictor.passed, axis=1)[0])
    chosen: Any = policy
    if policy in SCORES:
        temperatures = predictor.manifest.temperatures
        chosen = THRESHOLDS[policy]((SCORES[policy],) * (len(temperatures) - 1), temperatures)
    expected = simulate(resolve_policy(predictor.bundle, chosen), np.stack(logits))
    alone = [predictor.predict(frame, policy=chosen) for frame in shifted]
    together = predictor.predict_batch(shifted, policy=chosen)  # in parts, see AT_ONCE
    for found in (alone, together):
        assert [p.exit for p in found] == expected.exits.tolist()
        assert [p.index for p in found] == expected.predictions.tolist()
    assert [p.halted_by for p in alone] == [p.halted_by for p in together]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    if policy in SCORES or policy == "patience-2":
        assert len(set(expected.exits)) > 1, "images leave at several exits"


def test_of_no_images_there_are_no_predictions(predictor: Predictor) -> None:
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


def test_the_logits_of_the_exits_that_the_last_image_passed_are_kept(
    predictor: Predictor, frames: list[np.ndarray], golden: dict[str, np.ndarray]
) -> None:
    for policy, count in (("exit-1", 1), ("deepest", 3), (Patient(2), 2)):
        predictor.predict(frames[0], policy=policy)
        first = predictor.passed
        assert len(first) == count
        predictor.predict(frames[1], policy=policy)
        for found, number in ((first, 0), (predictor.passed, 1)):
            expected = golden["logits"][number, :count]
            np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-3)
    predictor.predict_batch(frames[2:5], policy="deepest")
    np.testing.assert_allclose(np.concatenate(predictor.passed), expected, atol=1e-3)


class Patient:
    """Somebody's own policy: leaves at one exit."""

    def __init__(self, exit_: int) -> None:
        self.exit = exit_

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leave = np.full(len(logits), logits.shape[1] >= self.exit)
        return leave, softmax(logits[:, -1])


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
    assert interrupted > 10
    assert answers() == expected


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
