"""Segments that hand features over on blocks of channels: the same answers, and nothing else."""

from __future__ import annotations

import platform
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_segments import run

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.images import normalize
from mate_edge.runtime import join
from mate_edge.runtime.build_command import join_if_needed
from mate_edge.runtime.engines import blocked
from mate_edge.runtime.engines.blocked import (
    BLOCKS,
    blocked_folder,
    blocked_path,
    from_blocks,
    read_blocked,
    to_blocks,
)
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.golden import read_golden, run_reference
from mate_edge.runtime.join import keep_blocked, try_blocked
from mate_edge.runtime.latencies import read_latencies
from mate_edge.runtime.predictor import Predictor
from mate_edge.warn import MateEdgeWarning


def say_nothing(line: str) -> None:
    pass


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


@pytest.fixture
def built(bundle: Bundle) -> Bundle:
    """A bundle whose borders are blocked, where ONNX Runtime has blocks."""
    if not any(keep_blocked(bundle, False, say_nothing).borders):
        pytest.skip("onnxruntime computes on no blocks on this CPU")
    return bundle


@given(
    st.sampled_from(BLOCKS), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4),
    st.integers(1, 4),
)  # fmt: skip
def test_features_go_into_blocks_and_back(
    block: int, n: int, blocks: int, height: int, width: int
) -> None:
    shape = (n, blocks * block, height, width)
    features = np.arange(n * blocks * block * height * width).reshape(shape)
    turned = to_blocks(features, block)
    assert turned.shape == shape
    in_blocks = turned.reshape(n, blocks, height, width, block)
    for channel in range(shape[1]):
        one = in_blocks[:, channel // block, :, :, channel % block]
        assert np.array_equal(one, features[:, channel])
    assert np.array_equal(from_blocks(turned, block), features)


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_the_same_bit_by_bit(built: Bundle, golden: Any, threads: int) -> None:
    images = normalize(golden["images"], built.manifest.preprocessing)
    plain = OnnxRuntimeEngine(built, threads, blocked=lambda bundle: None)
    with plain, OnnxRuntimeEngine(built, threads) as ours:
        assert ours.device_key == f"{plain.device_key}-blocked"
        for batch in (images[:1], images, images[1:2], images[:3]):
            for one, other in zip(run(plain, batch), run(ours, batch), strict=True):
                assert np.array_equal(one, other)


def test_what_goes_over_a_border_is_blocked(built: Bundle, golden: Any) -> None:
    kept = read_blocked(built)
    assert kept is not None
    assert all(kept.borders)
    images = normalize(golden["images"], built.manifest.preprocessing)
    with OnnxRuntimeEngine(built, 1) as engine:
        engine.load(images)
        engine.run(1)
        raw = engine._features
        assert np.array_equal(raw, to_blocks(engine.features, blocked.channels_of_block()))
        assert not np.array_equal(raw, engine.features)


def test_a_batch_can_start_at_any_segment_and_shrink(built: Bundle, golden: Any) -> None:
    images = normalize(golden["images"], built.manifest.preprocessing)
    stay = np.array([1, 4, 5])
    with OnnxRuntimeEngine(built, 1) as engine, OnnxRuntimeEngine(built, 1) as whole:
        _, features, *_ = run(whole, images)
        engine.load(features, 2)
        engine.keep(stay)
        found = engine.run(2)
        whole.load(images)
        whole.run(1)
        whole.keep(stay)
        assert np.array_equal(found, whole.run(2))


def test_samples_leave_a_batch_of_many_parts_as_they_do_what_was_exported(built: Bundle) -> None:
    random = np.random.default_rng(0)
    shape = (50, *built.manifest.segments[0].input.shape)
    engines = OnnxRuntimeEngine(built, 1, blocked=lambda bundle: None), OnnxRuntimeEngine(built, 1)
    with engines[0] as plain, engines[1] as blocked:
        images = random.standard_normal(shape, np.float32)
        for engine in engines:
            engine.load(images)
        for k in range(1, plain.num_segments + 1):
            logits = plain.run(k)
            assert np.array_equal(blocked.run(k), logits)
            stay = np.flatnonzero(random.random(len(logits)) < 0.8)
            for engine in engines:
                engine.keep(stay)
            assert np.array_equal(blocked.features, plain.features)


def test_what_was_made_is_kept_until_it_is_forced(bundle: Bundle) -> None:
    said: list[str] = []
    made = keep_blocked(bundle, False, said.append)
    assert read_blocked(bundle) == made
    assert keep_blocked(bundle, False, said.append) == made
    if made.segments:
        assert said[1] == f"{said[0]}: made already"
        times = [blocked_path(bundle, k).stat().st_mtime_ns for k in (1, 2, 3)]
        keep_blocked(bundle, True, said.append)
        assert all(
            blocked_path(bundle, k).stat().st_mtime_ns > before
            for k, before in enumerate(times, start=1)
        )
        assert said[2] == said[0]


def test_onnxruntime_has_blocks_on_x86_and_the_probe_tells_their_size() -> None:
    from onnx import TensorProto, helper

    images, turned = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, blocked.PROBED, 1, 2])
        for name in ("images", "turned")
    )
    node = helper.make_node("ReorderInput", ["images"], ["turned"], domain=join.DOMAIN)
    graph = helper.make_graph([node], "probe", [images], [turned])
    opsets = [helper.make_opsetid(join.DOMAIN, 1), helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert onnx.load_from_string(blocked.PROBE) == model
    found = blocked.channels_of_block()
    assert found in (8, 16) if platform.machine() == "x86_64" else found in (0, *BLOCKS)


def test_of_another_bundle_or_revision_nothing_is_run(built: Bundle) -> None:
    record = blocked_folder(built) / "blocked.json"
    kept = msgspec.json.decode(record.read_bytes())
    for change in (
        {"revision": 0},
        {"bundle_id": "0" * 64},
        {"borders": [True]},
        {"segments": kept["segments"][:2]},
        {"segments": kept["segments"][:2], "borders": [True]},
    ):
        record.write_bytes(msgspec.json.encode({**kept, **change}))
        assert read_blocked(built) is None
        assert not OnnxRuntimeEngine(built, 1).device_key.endswith("blocked")
    record.write_bytes(b"{")
    assert read_blocked(built) is None
    record.write_bytes(msgspec.json.encode(kept))
    assert read_blocked(built) is not None
    blocked_path(built, 2).unlink()
    assert read_blocked(built) is None


def test_each_kind_of_cpu_has_its_own(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = blocked_path(built, 1)
    monkeypatch.setattr(blocked, "channels_of_block", lambda: 2 * max(BLOCKS))
    assert blocked_path(built, 1) != here
    assert read_blocked(built) is None


def test_what_was_measured_with_others_is_void(built: Bundle) -> None:
    with Predictor.load(built.folder, engine="onnxruntime", threads=1) as predictor:
        predictor.measure()
        assert read_latencies(built, predictor.engine) is not None
    keep_blocked(built, False, say_nothing)
    assert read_latencies(built, predictor.engine) is not None
    keep_blocked(built, True, say_nothing)
    assert read_latencies(built, predictor.engine) is None


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_damaged_segment_costs_time_and_no_answer(k: int, built: Bundle, golden: Any) -> None:
    images = normalize(golden["images"], built.manifest.preprocessing)
    with OnnxRuntimeEngine(built, 1) as engine:
        expected = run(engine, images)
    path = blocked_path(built, k)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with OnnxRuntimeEngine(built, 1) as engine:
        with pytest.warns(MateEdgeWarning, match=f"blocked-{k}.onnx is damaged: mate-edge build"):
            found = run(engine, images)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)
        assert not engine.device_key.endswith("blocked")
        for one, other in zip(run(engine, images), expected, strict=True):
            assert np.array_equal(one, other)
    keep_blocked(built, False, say_nothing)
    with OnnxRuntimeEngine(built, 1) as engine:
        assert np.array_equal(run(engine, images)[-1], expected[-1])


def test_samples_that_stay_go_on_when_a_segment_is_damaged(built: Bundle, golden: Any) -> None:
    images, stay = normalize(golden["images"], built.manifest.preprocessing), np.array([1, 3, 4])
    with OnnxRuntimeEngine(built, 1) as engine:
        expected = run(engine, images)[2][stay]
    blocked_path(built, 2).write_bytes(b"?")
    with OnnxRuntimeEngine(built, 1) as engine:
        engine.load(images)
        engine.run(1)
        engine.keep(stay)
        with pytest.warns(MateEdgeWarning, match="damaged"):
            assert np.array_equal(engine.run(2), expected)


def test_two_threads_share_sessions_and_no_features(built: Bundle, golden: Any) -> None:
    frames = list(golden["images"])
    loaded = Predictor.load(built.folder, policy="deepest", engine="onnxruntime")
    with loaded as one, one.clone() as two:
        expected = [one.predict(frame).probabilities for frame in frames]
        turns = [(one, frames), (two, frames[::-1])]
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(
                lambda turn: [turn[0].predict(frame).probabilities for frame in 20 * turn[1]],
                turns,
            )
        for answers, wanted in zip(found, (expected, expected[::-1]), strict=True):
            for answer, same in zip(answers, 20 * wanted, strict=True):
                assert np.array_equal(answer, same)


def test_a_clone_goes_on_when_a_segment_is_damaged(built: Bundle, golden: Any) -> None:
    frames = list(golden["images"])
    with Predictor.load(built.folder, policy="deepest", lazy=True) as one, one.clone() as two:
        one.predict(frames[0], policy=0.0)
        blocked_path(built, 2).write_bytes(b"?")
        with pytest.warns(MateEdgeWarning, match="damaged"):
            found = [one.predict(frame).probabilities for frame in frames]
        with pytest.warns(MateEdgeWarning, match="damaged"):
            assert np.array_equal(two.predict(frames[0]).probabilities, found[0])
        assert np.array_equal(one.clone().predict(frames[1]).probabilities, found[1])


def test_the_networks_whose_borders_are_no_blocks_run_as_they_are(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for module in (join, blocked):
        monkeypatch.setattr(module, "channels_of_block", lambda: 0)
    made = keep_blocked(bundle, False, said.append)
    assert made.segments == ()
    assert len(said) == 1
    assert said[0].startswith("nothing to build: onnxruntime runs the segments")
    assert read_blocked(bundle) == made  # it is not tried again
    with OnnxRuntimeEngine(bundle, 1) as engine:
        assert not engine.device_key.endswith("blocked")


def test_between_stages_not_even_rounding_may_differ(
    built: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(bundle: Bundle, k: int, model: Any) -> None:
        """Make the weights of the last layer larger by a millionth."""
        name = [one for one in model.graph.node if one.op_type == "Gemm"][-1].input[1]
        (stored,) = (one for one in model.graph.initializer if one.name == name)
        weights = onnx.numpy_helper.to_array(stored) * np.float32(1.000001)
        stored.CopyFrom(onnx.numpy_helper.from_array(weights, name))

    monkeypatch.setattr(join, "_add_in_place", nudge)
    said: list[str] = []
    try_blocked(built, True, said.append)
    assert len(said) == 1
    assert "answers otherwise on blocks of channels" in said[0]


def test_segments_that_answer_otherwise_are_not_kept(
    built: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(bundle: Bundle, k: int, model: Any) -> str:
        """Give what the last convolution reads the memory of what it writes."""
        name = bundle.manifest.segments[k - 1].outputs[0].name
        (last,) = (node for node in model.graph.node if name in node.output)
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[-1].name = last.input[0]
        return str(last.input[0])

    monkeypatch.setattr(join, "_add_in_place", overwrite)
    said: list[str] = []
    try_blocked(built, True, said.append)
    assert said == [
        f"the segments of {built.folder} run as they were exported: segment 1 of {built.folder} "
        "answers otherwise on blocks of channels: please report this"
    ]
    assert read_blocked(built) is None


def test_a_state_that_cannot_be_written_is_said(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    said: list[str] = []
    join_if_needed(bundle, "onnxruntime", said.append)
    assert len(said) == 1
    assert "MATE_EDGE_STATE chooses another folder" in said[0]


def test_a_state_whose_name_onnxruntime_cannot_take_is_said(
    built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "\udcff"))
    said: list[str] = []
    join_if_needed(built, "onnxruntime", said.append)
    assert len(said) == 1
    assert "onnxruntime cannot write into" in said[0]
    assert "MATE_EDGE_STATE chooses another folder" in said[0]


def test_the_reference_of_verify_is_what_was_exported(built: Bundle) -> None:
    with Predictor.load(built.folder, engine="onnxruntime") as predictor:
        assert predictor.engine.device_key.endswith("-blocked")
    golden = read_golden(built)
    for k in (1, 2, 3):
        blocked_path(built, k).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run_reference(built, golden)) == 3
