"""Building engines: with TensorRT for RTX on this CPU, and what is kept, refused and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_tensorrt import build_fakes, compile_to_fake

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, EngineNotBuilt, UsageError
from mate_edge.files import sha256
from mate_edge.runtime.build import build_engines, parse_capabilities
from mate_edge.runtime.compile import compile_onnx
from mate_edge.runtime.engines.tensorrt import TensorRTEngine
from mate_edge.runtime.frames import GRAPH
from mate_edge.runtime.plans import FrameFormat

GpuBundle = Callable[..., Bundle]


@pytest.fixture
def rtx_bundle(gpu_bundle: GpuBundle) -> Bundle:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    pytest.importorskip("polygraphy")
    return gpu_bundle("tensorrt_rtx", max_batch=4)


def engines(state: Path) -> set[tuple[str, str]]:
    return {(path.parent.name, path.name) for path in state.rglob("*.engine")}


def test_every_segment_is_built_ahead_of_time_for_named_gpus(
    rtx_bundle: Bundle, cli: Any, tmp_path: Path
) -> None:
    asked = ("build", rtx_bundle.folder, "--compute-capability", "8.6,8.9", "--json")
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["what"] for line in lines[:4]] == [
        *(f"segment {k} of 3" for k in (1, 2, 3)), "the unsplit network"
    ]  # fmt: skip
    library = lines[0]["device_key"].rpartition("-")[0]
    assert library.startswith("tensorrt_rtx-")
    keys = [line["device_key"] for line in lines]
    assert keys == [f"{library}-sm86"] * 4 + [f"{library}-sm89"] * 4
    for line in lines:
        path = Path(line["path"])
        record = json.loads(path.with_suffix(".json").read_bytes())
        assert record["sha256"] == sha256(path.read_bytes())
        assert record["key"]["bundle"] == rtx_bundle.id
        assert record["key"]["recipe"]["max_batch"] == 4
        assert line["seconds"] > 0
    again = cli(*asked)
    assert "built already" in again.stderr
    assert [json.loads(line)["seconds"] for line in again.stdout.splitlines()] == [0.0] * 8
    assert len(engines(tmp_path / "state")) == 8


def test_a_segment_that_is_refused_is_named_with_the_node_and_the_reason(
    rtx_bundle: Bundle, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(rtx_bundle.read(rtx_bundle.manifest.segments[1].file))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name = "Bernoulli", "dice"
    with pytest.raises(EngineError, match=r"refuses segment 2 of 3 .*node dice \(Bernoulli\): "):
        build_engines(
            replace_segment(rtx_bundle, 1, model.SerializeToString()),
            capabilities=[(8, 6)],
            say=lambda line: None,
        )
    assert len(engines(tmp_path / "state")) == 1


def replace_segment(bundle: Bundle, index: int, data: bytes) -> Bundle:
    from mate_edge.bundle import read_bundle

    manifest = json.loads((bundle.folder / "manifest.json").read_bytes())
    file = manifest["segments"][index]["file"]
    (bundle.folder / file["path"]).write_bytes(data)
    file.update(bytes=len(data), sha256=sha256(data))
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    return read_bundle(bundle.folder)


def test_what_is_not_onnx_at_all_is_refused(rtx_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="refuses segment 1 of 3 .*parse"):
        build_engines(
            replace_segment(rtx_bundle, 0, b"junk"), capabilities=[(8, 6)], say=lambda line: None
        )


def test_int8_with_a_zero_point_is_refused_by_the_builder_or_the_parser(
    rtx_bundle: Bundle,
) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    model = onnx.load_from_string(rtx_bundle.read(rtx_bundle.manifest.segments[0].file))
    graph, name = model.graph, model.graph.input[0].name
    for node in graph.node:
        node.input[:] = ["quantised_back" if value == name else value for value in node.input]
    graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]))
    graph.initializer.append(helper.make_tensor("zero", TensorProto.INT8, [], [3]))
    pair = [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["quantised_back"]),
    ]
    nodes = [*pair, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    with pytest.raises(EngineError, match="segment 1 of 3 .*zero"):
        build_engines(
            replace_segment(rtx_bundle, 0, model.SerializeToString()),
            capabilities=[(8, 6)],
            say=lambda line: None,
        )


def test_a_build_that_was_interrupted_goes_on_where_it_stopped(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    bundle = gpu_bundle()
    compiled: list[str] = []

    def stop_at_the_third(library: Any, model: bytes, what: str, *more: Any) -> bytes:
        if len(compiled) == 2:
            raise KeyboardInterrupt
        compiled.append(what)
        return compile_to_fake(library, model, what, *more)

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, say=lambda line: None, compiler=stop_at_the_third)
    lines: list[str] = []
    report = build_engines(bundle, say=lines.append, compiler=compile_to_fake)
    assert [line.rpartition(": ")[2] for line in lines[1:3]] == ["built already"] * 2
    assert (report.built, len(report.engines)) == (2, 4)


def test_another_largest_batch_builds_again_and_stays(install: Any, gpu_bundle: GpuBundle) -> None:
    install()
    bundle = gpu_bundle(max_batch=1)

    def built(max_batch: int | None) -> int:
        return build_fakes(bundle, max_batch=max_batch).built

    assert [built(None), built(None), built(16), built(None), built(1)] == [4, 0, 4, 0, 4]


@pytest.mark.parametrize(
    ("change", "remembered"),
    [
        ({"version": "10.13.0.35"}, True),
        ({"driver": 13000, "runtime": 13000}, True),
        ({"multiprocessors": 8}, True),
        ({"capability": (8, 9)}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_outlive_the_version_and_the_power_mode_but_not_the_gpu(
    change: dict[str, Any], remembered: bool, install: Any, gpu_bundle: GpuBundle
) -> None:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    bundle = gpu_bundle(max_batch=1)
    install()
    frame = FrameFormat(width=64, height=40, color="bgr")
    for size in (48, 64):
        asked = msgspec.structs.replace(frame, width=size)
        build_engines(bundle, max_batch=16, frame=asked, say=str, compiler=compile_to_fake)
    gpu = install(**{name: value for name, value in change.items() if name == "version"})
    vars(gpu).update(change)
    with pytest.raises(EngineNotBuilt):
        TensorRTEngine(bundle)
    assert build_engines(bundle, say=str, compiler=compile_to_fake).built == 4 + remembered
    engine = TensorRTEngine(bundle)
    assert engine.max_batch == (16 if remembered else 1)
    assert (engine.frame_shape, engine.frame_color) == (
        ((40, 64), "bgr") if remembered else (None, "rgb")
    )


def test_a_build_replaces_the_preprocessing_of_another_mate_edge(
    install: Any, gpu_bundle: GpuBundle, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    bundle = gpu_bundle()
    install()
    frame = FrameFormat(width=64, height=40, color="rgb")
    build_engines(bundle, frame=frame, say=str, compiler=compile_to_fake)
    (record,) = (tmp_path / "state").rglob("frame.json")
    found = json.loads(record.read_bytes())
    found["key"]["recipe"]["frame"]["graph"] = GRAPH - 1
    record.write_text(json.dumps(found))
    assert TensorRTEngine(bundle).frame_shape is None
    assert build_engines(bundle, say=str, compiler=compile_to_fake).built == 1
    assert TensorRTEngine(bundle).frame_shape == (40, 64)


def test_a_build_tells_how_far_it_is(rtx_bundle: Bundle) -> None:
    told: dict[str, list[float]] = {}
    build_engines(
        rtx_bundle,
        capabilities=[(8, 6)],
        say=lambda line: None,
        progress=lambda what, share: told.setdefault(what, []).append(share),
    )
    assert list(told) == [*(f"segment {k} of 3" for k in (1, 2, 3)), "the unsplit network"]
    for shares in told.values():
        assert shares == sorted(shares)
        assert 0 <= shares[0] < 0.3
        assert 0.7 < shares[-1] <= 1


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("met_in", ["progress", "logger"])
def test_ctrl_c_stops_a_build_and_leaves_nothing_half_written(
    met_in: str, rtx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is met: Python raises it in whatever code it runs just then."""
    second = "segment 2 of 3"
    pressed: list[int] = []

    def press() -> None:
        if not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)

    def compile_and_press(library: Any, model: bytes, what: str, *more: Any) -> bytes:
        if met_in == "logger" and what.startswith(second):
            heard = type(library.logger).log
            monkeypatch.setattr(
                type(library.logger), "log", lambda *record: (press(), heard(*record))[1]
            )
        return compile_onnx(library, model, what, *more)

    def show(what: str, share: float) -> None:
        if met_in == "progress" and what == second and share > 0.3:
            press()

    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engines(
            rtx_bundle,
            capabilities=[(8, 6)],
            say=lambda line: None,
            progress=show,
            compiler=compile_and_press,
        )
    assert len(engines(tmp_path / "state")) == 1
    assert signal.getsignal(signal.SIGINT) is earlier


def test_a_progress_bar_that_breaks_stops_the_build_with_its_own_error(
    rtx_bundle: Bundle, tmp_path: Path
) -> None:
    def show(what: str, share: float) -> None:
        raise BrokenPipeError("nobody reads stderr")

    with pytest.raises(BrokenPipeError, match="nobody reads stderr"):
        build_engines(rtx_bundle, capabilities=[(8, 6)], say=lambda line: None, progress=show)
    assert len(engines(tmp_path / "state")) == 0


def test_two_builds_at_once_do_the_work_once(rtx_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mate_edge", "build", str(rtx_bundle.folder),
               "--compute-capability", "8.0", "--json"]  # fmt: skip
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    seconds = []
    for process in both:
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 0
        seconds += [json.loads(line)["seconds"] for line in out.splitlines()]
    assert len(seconds) == 8
    assert sum(value > 0 for value in seconds) == 4
    assert not list((tmp_path / "state").rglob("*.tmp"))


def test_who_waits_for_another_build_is_told_so(install: Any, gpu_bundle: GpuBundle) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
    install()
    bundle = gpu_bundle()
    report = build_fakes(bundle)
    told: list[str] = []
    with open(report.engines[0].path.parent / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            told.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        build_engines(bundle, say=say, compiler=compile_to_fake)
    assert told[0] == "another process builds these engines: waiting for it"
    assert sum("built already" in line for line in told) == 4


def test_a_state_folder_that_cannot_be_written_says_which_variable_chooses_another(
    install: Any, gpu_bundle: GpuBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="Not a directory; MATE_EDGE_STATE chooses another"):
        build_fakes(gpu_bundle())


def test_a_bundle_for_the_cpu_is_built_for_this_cpu(
    cli: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    done = cli("build", bundle_folder)
    assert done.returncode == 0
    (record,) = (tmp_path / "state").glob("*/*/blocked.json")
    blocked = json.loads(record.read_bytes())["segments"]
    says = "computes on blocks of" if blocked else "nothing to build: onnxruntime"
    assert says in done.stderr
    again = cli("build", bundle_folder)
    assert ("made already" in again.stderr) == bool(blocked)
    for options, says in (
        (("--max-batch", "4"), "--target jetson"),
        (("--color", "bgr"), "--color goes with --frame"),
    ):
        refused = cli("build", bundle_folder, *options)
        assert refused.returncode == 2
        assert says in refused.stderr


def test_an_engine_that_is_built_anew_must_be_verified_and_measured_anew(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    bundle = gpu_bundle()
    report = build_fakes(bundle)
    folder = report.engines[0].path.parent
    records = [folder / f"{name}.json" for name in ("verification", "bench-1a", "latencies-1a")]
    for record in records:
        record.write_text("{}")
    build_fakes(bundle)
    assert all(record.exists() for record in records), "all were built already"
    build_fakes(bundle, force=True)
    assert not any(record.exists() for record in records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max-batch must lie between 1 and 1024, not 0"),
        ({"max_batch": 5000}, "--max-batch"),
        ({"capabilities": [(8, 6)]}, "this machine only.*--target rtx"),
    ],
)
def test_options_that_make_no_sense_are_named(
    options: dict[str, Any], message: str, install: Any, gpu_bundle: GpuBundle
) -> None:
    install()
    with pytest.raises(UsageError, match=message):
        build_fakes(gpu_bundle(), **options)


def test_a_gpu_that_the_library_does_not_know_is_answered_with_those_that_it_does(
    rtx_bundle: Bundle,
) -> None:
    with pytest.raises(UsageError, match=r"compute capability 8.7: choose from 7.5, 8.0, 8.6"):
        build_engines(rtx_bundle, capabilities=[(8, 7)], say=lambda line: None)


@pytest.mark.parametrize("text", ["8", "8.6,", "sm86", "8.6;8.9", "", "-8.6"])
def test_compute_capabilities_that_cannot_be_read_are_shown(text: str) -> None:
    with pytest.raises(UsageError, match="8.6,8.9"):
        parse_capabilities(text)
    assert parse_capabilities(" 8.6, 12.0") == [(8, 6), (12, 0)]


def test_the_preprocessing_of_raw_frames_is_built_beside_the_segments(
    rtx_bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    for width, new in ((64, 5), (64, 0), (48, 1)):
        report = build_engines(
            rtx_bundle,
            capabilities=[(8, 6)],
            frame=FrameFormat(width=width, height=40, color="bgr"),
            say=lambda line: None,
        )
        assert report.engines[-1].what == "the preprocessing"
        assert report.built == new
    (record,) = (tmp_path / "state").rglob("frame.json")
    recipe = json.loads(record.read_bytes())["key"]["recipe"]
    assert recipe["frame"] == {"width": 48, "height": 40, "color": "bgr", "graph": GRAPH}
