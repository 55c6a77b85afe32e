"""`mate-edge verify`: what is accepted, what is refused, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_tensorrt import compile_to_fake
from timed import Clock

from mate_edge.bundle import Build, Bundle, read_bundle
from mate_edge.decide.policy import Confidence
from mate_edge.errors import BundleError, EngineError
from mate_edge.files import arrays_to_bytes
from mate_edge.report.verification import Verification, print_verification
from mate_edge.runtime import build
from mate_edge.runtime import verify as verification
from mate_edge.runtime.agreement import TOLERANCES, compare, compare_exits, tolerance
from mate_edge.runtime.build import build_engines
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.golden import read_golden
from mate_edge.runtime.state import read_state, state_folder
from mate_edge.runtime.verify import verify, verify_engine

CLOCK = Clock()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, and a clock that moves when it is told to."""
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(verification, "MOST_ROUNDS", 20)
    fake = SimpleNamespace(perf_counter_ns=CLOCK, monotonic=lambda: CLOCK() / 1e9)
    monkeypatch.setattr(verification, "time", fake)
    return tmp_path / "state"


class Tampered(OnnxRuntimeEngine):
    """The real engine, whose segment 2 does what `after` does to its logits."""

    after: Callable[[np.ndarray], np.ndarray] = staticmethod(lambda logits: logits)

    def run(self, k: int) -> np.ndarray:
        logits = super().run(k)
        return self.after(logits) if k == 2 else logits


def judged(
    folder: Path,
    after: Callable[[np.ndarray], np.ndarray] | None = None,
    kind: type[OnnxRuntimeEngine] = Tampered,
    max_batch: int = 1,
    thresholds: tuple[float, ...] | None = None,
) -> Verification:
    bundle = read_bundle(folder)
    manifest = msgspec.structs.replace(bundle.manifest, build=Build(max_batch=max_batch))
    if thresholds is not None:
        manifest.operating_points["accurate"].parameters["thresholds"] = thresholds
    engine = kind(Bundle(bundle.folder, manifest, bundle.id), 1)
    if after is not None:
        engine.after = after  # type: ignore[attr-defined]
    unsplit = OnnxRuntimeEngine(bundle.unsplit(), 1)
    return verify_engine(engine, unsplit, read_golden(bundle), "onnxruntime")


# accepted


def test_the_real_engine_is_accepted_and_the_record_kept(
    cli: Any, bundle_folder: Path, state: Path
) -> None:
    done = cli("verify", bundle_folder)
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines()
    assert first.startswith("accepted: ")
    assert "onnxruntime" in first
    for word in ("exit 3", "8/8", "0.0001", "unsplit", "balanced"):
        assert word in done.stdout
    assert re.search(r"\bn = \d+\b", done.stdout)  # 500, or fewer on a slow machine
    (file,) = state.rglob("verification.json")
    kept = json.loads(file.read_bytes())
    bundle = read_bundle(bundle_folder)
    assert kept["accepted"] is True
    assert kept["bundle_id"] == bundle.id
    assert kept["versions"].keys() >= {"python", "mate-edge", "onnxruntime"}
    assert kept["device_key"].startswith("onnxruntime-")
    folder = state_folder(bundle.id, kept["device_key"])
    assert folder == file.parent
    read = read_state(folder, "verification", Verification)
    assert read is not None
    assert all(0 < exit_.times.median_ms <= exit_.times.max_ms for exit_ in read.exits)
    spoken = cli("verify", bundle_folder, "--json")
    assert json.loads(spoken.stdout).keys() == kept.keys()


def test_every_exit_is_compared_chained_alone_and_in_a_batch(bundle_folder: Path) -> None:
    for max_batch in (1, 3, 8):
        found = judged(bundle_folder, max_batch=max_batch)
        assert found.accepted, found.refusals
        assert found.remarks == ()
        assert len(found.exits) == 3
        for k, exit_ in enumerate(found.exits):
            assert exit_.alone is not None
            assert exit_.chained.agree == exit_.alone.agree == 8
            assert exit_.chained.share is not None
            assert exit_.chained.share < 1e-5
            assert exit_.times.samples == 20
            if max_batch == 1:
                assert exit_.batch is None
            else:
                assert exit_.batch is not None
                kept = {3: (8, 5, 3), 8: (8, 5, 3)}[max_batch][k]
                assert exit_.batch.images == exit_.batch.agree == kept
        assert set(found.operating_points) == {"fast", "balanced", "accurate"}
        assert all(point.agree == 8 for point in found.operating_points.values())
        assert found.unsplit_ms is not None


def test_half_precision_is_accepted_on_the_cpu_by_its_own_tolerance(half_bundle: Path) -> None:
    found = judged(half_bundle, kind=OnnxRuntimeEngine)
    assert found.accepted, found.refusals
    assert {exit_.chained.allowed for exit_ in found.exits} == {TOLERANCES["fp16"].cpu}


def test_what_falls_back_to_plain_launches_is_said_and_accepted(bundle_folder: Path) -> None:
    class Graphs(OnnxRuntimeEngine):
        graphs = "off: this operation is not permitted while a stream is captured"

    found = judged(bundle_folder, kind=Graphs)
    assert found.accepted
    (remark,) = found.remarks
    assert "no CUDA graphs (off: this operation is not permitted" in remark
    assert found.graphs == Graphs.graphs


def test_where_onnxruntime_is_no_reference_the_chain_is_judged_all_the_same(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(bundle: Bundle, golden: Any) -> Any:
        raise EngineError("onnxruntime 1.23 quantises fp16 wrongly")

    monkeypatch.setattr(verification, "run_reference", refuse)
    found = judged(bundle_folder)
    assert found.accepted
    assert [exit_.alone for exit_ in found.exits] == [None] * 3
    (remark,) = found.remarks
    assert remark.startswith("the segments are not checked one by one: onnxruntime 1.23 quant")
    print_verification(found)
    wrong = judged(bundle_folder, lambda logits: np.roll(logits, 1, axis=-1))
    assert wrong.refusals[0].startswith("exit 2 answers another class")


def test_the_gpu_engine_is_built_verified_in_batches_and_accepted(
    install: Callable[..., Any],
    gpu_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "build_engines", partial(build_engines, compiler=compile_to_fake))
    install()
    bundle = gpu_bundle(max_batch=4)
    said: list[str] = []
    found = verify(bundle.folder, "tensorrt", said.append)
    assert found.accepted, found.refusals
    assert (found.graphs, found.max_batch) == ("on", 4)
    assert all(exit_.batch is not None and exit_.batch.passed for exit_ in found.exits)
    assert "not built on this device" in said[0]


def test_verify_builds_what_is_missing_first(gpu: None, builder: Any, half_bundle: Path) -> None:
    said: list[str] = []
    found = verify(half_bundle, None, said.append, threads=1)
    assert found.accepted, found.refusals
    assert found.engine == "tensorrt"
    assert builder.done
    assert "not built on this device" in said[0]


# refused


def nudged(logits: np.ndarray) -> np.ndarray:
    """Move the least logit a little: no answer changes."""
    moved = logits.copy()
    moved[..., logits.argmin()] += 1e-3 * np.abs(logits).max()
    return moved


def slowly(logits: np.ndarray) -> np.ndarray:
    CLOCK.pass_ms(0.11)  # the unsplit network takes nothing here
    return logits


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (nudged, "exit 2 differs by 0.00"),
        (lambda logits: np.roll(logits, 1, axis=-1), "exit 2 answers another class than"),
        (lambda logits: logits * np.nan, "exit 2 returns a logit that is no number"),
        (lambda logits: logits + np.inf, "exit 2 returns a logit that is no number"),
        (slowly, "segment 2 takes 0.11 ms at best, more than 1.5 times the 0 ms"),
    ],
    ids=["wrong logit", "other answer", "nan", "infinity", "slow"],
)
def test_a_segment_that_misbehaves_is_refused_by_name(
    after: Callable[[np.ndarray], np.ndarray], says: str, bundle_folder: Path
) -> None:
    found = judged(bundle_folder, after)
    assert not found.accepted
    assert found.refusals[0].startswith(says)
    assert not any("exit 1 " in refusal or "exit 3 " in refusal for refusal in found.refusals)
    msgspec.json.decode(msgspec.json.encode(found), type=Verification)


@pytest.mark.parametrize(("ms", "accepted"), [(1.59, True), (1.61, False)])
def test_a_segment_may_take_half_as_long_again_as_the_unsplit_network_whatever_stalls(
    ms: float, accepted: bool, bundle_folder: Path
) -> None:
    class Paced(OnnxRuntimeEngine):
        segment_ms: tuple[float, ...] = (0.5, ms, 0.5)
        ran = 0

        def run(self, k: int) -> np.ndarray:
            self.ran += 1
            CLOCK.pass_ms(self.segment_ms[k - 1] + (50 if self.ran % 5 else 0))  # other load
            return super().run(k)

    bundle = read_bundle(bundle_folder)
    unsplit = Paced(bundle.unsplit(), 1)
    unsplit.segment_ms = (1.0,)
    found = verify_engine(Paced(bundle, 1), unsplit, read_golden(bundle), "onnxruntime")
    assert found.accepted is accepted, found.refusals
    assert found.refusals == () or found.refusals[0].startswith("segment 2 takes 1.61 ms at best")


def test_another_exit_is_refused_by_the_name_of_the_operating_point(bundle_folder: Path) -> None:
    found = judged(bundle_folder, lambda logits: logits * 0.1, thresholds=(1.0, 0.4))
    (refusal,) = [line for line in found.refusals if "operating point accurate" in line]
    assert "exit 3 instead of 2" in refusal
    assert found.operating_points["accurate"].agree < 8


def test_a_segment_that_fails_is_refused_with_its_reason(bundle_folder: Path) -> None:
    def fail(logits: np.ndarray) -> np.ndarray:
        raise EngineError("segment 2 failed: the device was lost")

    found = judged(bundle_folder, fail)
    assert found.refusals == ("segment 2 failed: the device was lost",)
    assert found.exits == ()


def test_answers_that_change_from_run_to_run_are_refused(bundle_folder: Path) -> None:
    class Forgetful(OnnxRuntimeEngine):
        ran = 0

        def run(self, k: int) -> np.ndarray:
            self.ran += 1
            logits = super().run(k)
            return logits if k == 1 or self.ran < 80 else np.roll(logits, 1, axis=-1)

    found = judged(bundle_folder, kind=Forgetful)
    assert [line.partition(" gives")[0] for line in found.refusals] == ["exit 2", "exit 3"]


def test_features_that_are_handed_over_wrongly_are_told_from_a_wrong_segment(
    bundle_folder: Path,
) -> None:
    class BadBorder(OnnxRuntimeEngine):
        def run(self, k: int) -> np.ndarray:
            logits = super().run(k)
            if k == 1:
                assert self._features is not None
                self._features = self._features[:, ::-1].copy()
            return logits

    found = judged(bundle_folder, kind=BadBorder)
    assert found.refusals[0].startswith("exit 2 ")
    assert not any("alone" in refusal for refusal in found.refusals)
    assert found.exits[1].alone is not None
    assert found.exits[1].alone.passed
    assert any("features that segment 1 hands over" in remark for remark in found.remarks)


def test_a_batch_that_mixes_up_its_samples_is_refused(bundle_folder: Path) -> None:
    class MixesUp(OnnxRuntimeEngine):
        def keep(self, rows: np.ndarray) -> None:
            super().keep(rows[::-1])

    assert judged(bundle_folder, kind=MixesUp).accepted
    found = judged(bundle_folder, kind=MixesUp, max_batch=4)
    assert found.refusals[0].startswith("exit 2 in batches of 4 ")


# tolerances and excuses


def test_a_gpu_may_differ_more_than_a_cpu_and_lower_precision_more_than_higher() -> None:
    for tolerances in TOLERANCES.values():
        assert 0 < tolerances.cpu <= tolerances.gpu < 1
    for engine in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        fp32, fp16, int8 = (tolerance(name, engine) for name in ("fp32", "fp16", "int8"))
        assert fp32 < fp16 < int8


def test_another_answer_is_excused_only_within_the_references_own_margin() -> None:
    expected = np.array([[10.0, 9.95, 0], [10.0, 8.0, 0]], np.float32)
    found = np.array([[9.95, 10.0, 0], [8.0, 8.1, 0]], np.float32)
    result = compare(found, expected, 0.01)
    assert (result.agree, result.excused) == (0, 1)
    assert not result.answers_agree
    assert compare(found[:1], expected[:1], 0.01).passed
    assert not compare(found[:1], expected[:1], 0.004).answers_agree
    assert result.share == pytest.approx(0.2)


def test_another_exit_is_excused_only_when_the_tolerance_could_turn_the_choice() -> None:
    expected = np.zeros((2, 2, 2), np.float32)
    expected[:, 0] = [[2.0, 0.0], [4.0, 0.0]]  # confidences 0.881 and 0.982
    policy = Confidence((0.88,), (1.0, 1.0))
    found = expected.copy()
    found[0, 0, 0] = 1.98  # 0.879: goes on
    figures, wrong = compare_exits(policy, found, expected, 0.02)
    assert (figures.agree, figures.excused, wrong) == (1, 1, [])
    found[1, 0, 0] = 1.0
    figures, wrong = compare_exits(policy, found, expected, 0.02)
    assert (figures.agree, figures.excused) == (0, 1)
    assert wrong == ["image 1 exit 2 instead of 1"]
    assert not figures.passed


# golden files


def with_golden(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    data = arrays_to_bytes(arrays)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / manifest["golden"]["path"]).write_bytes(data)
    manifest["golden"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_wrong_golden_logits_are_refused_with_exit_code_1_and_suspected(
    cli: Any, own_bundle: Path, golden: dict[str, np.ndarray]
) -> None:
    logits = golden["logits"].copy()
    logits[:, 0] = np.roll(logits[:, 0], 1, axis=-1)
    with_golden(own_bundle, {**golden, "logits": logits})
    done = cli("verify", own_bundle)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("refused: exit 1 answers another class")
    assert "suspect the bundle's golden.npz" in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: {"images": g["images"]}, "holds no logits"),
        (lambda g: {**g, "logits": g["logits"][:, :2]}, "logits are float32 [8, 2, 10] instead"),
        (lambda g: {**g, "images": g["images"].astype(np.float32)}, "instead of uint8"),
        (lambda g: {**g, "images": g["images"][:3]}, "3 images and 8 logits"),
        (lambda g: {n: a[:0] for n, a in g.items()}, "0 images"),
        (lambda g: {**g, "logits": g["logits"] * np.nan}, "a logit is no number"),
    ],
)
def test_a_damaged_golden_file_is_a_clear_error(
    change: Any, says: str, own_bundle: Path, golden: dict[str, np.ndarray]
) -> None:
    with pytest.raises(BundleError, match=r"golden.npz is damaged") as caught:
        read_golden(read_bundle(with_golden(own_bundle, change(golden))))
    assert says in str(caught.value)


def test_an_altered_golden_file_stops_the_command(cli: Any, own_bundle: Path) -> None:
    (own_bundle / "golden.npz").write_bytes(b"PK")
    done = cli("verify", own_bundle)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "golden.npz is truncated" in line


def test_a_file_that_only_tune_reads_is_checked_too(cli: Any, own_bundle: Path) -> None:
    (own_bundle / "calibration.npz").unlink()
    done = cli("verify", own_bundle)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "calibration.npz is missing" in line


def test_a_verdict_that_cannot_be_kept_is_given_all_the_same(
    bundle_folder: Path, state: Path
) -> None:
    state.write_text("a file in the way")
    said: list[str] = []
    assert verify(bundle_folder, None, said.append, threads=1).accepted
    assert "the result is not kept" in said[-1]
