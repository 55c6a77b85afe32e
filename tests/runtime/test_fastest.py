"""The fastest engine on a CPU: measured by `build`, kept in the device state, taken by `run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from timed import Clock, TimedEngine

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.errors import EngineError
from mate_edge.runtime import engines, fastest
from mate_edge.runtime.bench.bench import bench
from mate_edge.runtime.bench.options import Options
from mate_edge.runtime.build_command import build_bundle
from mate_edge.runtime.doctor.hardware import cpu_name
from mate_edge.runtime.doctor.machine import Machine
from mate_edge.runtime.engines import choose_engine, installed_engines, make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.fastest import Fastest, keep_fastest, read_fastest

NAMES = ["onnxruntime", "openvino"]
Make = Callable[[str], Engine]
MS = [1.0, 2.0, 4.0]
CPU = cpu_name(Machine())


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


@pytest.fixture(autouse=True)
def _both_installed_and_measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_importable", lambda module: True)
    monkeypatch.setattr(fastest, "MEASURE_S", 0.0)


@pytest.fixture
def engines_of(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Make]:
    """Make engines that take `MS` a segment, the one called `slow` twice that, on its own clock."""
    clock = Clock()
    measured_by = SimpleNamespace(perf_counter_ns=clock, monotonic=lambda: clock() / 1e9)
    monkeypatch.setattr(fastest, "time", measured_by)

    def engines_of(slow: str) -> Make:
        return lambda name: TimedEngine(bundle, clock, [ms * (1 + (name == slow)) for ms in MS])

    return engines_of


@pytest.mark.parametrize(
    ("slow", "best"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")]
)
def test_the_faster_one_is_kept_and_chosen_from_then_on(
    slow: str, best: str, bundle: Bundle, engines_of: Callable[[str], Make]
) -> None:
    assert choose_engine(bundle) == "onnxruntime"
    said: list[str] = []
    found = keep_fastest(bundle, NAMES, engines_of(slow), said.append)
    assert (found.engine, choose_engine(bundle)) == (best, best)
    assert found.median_ms[slow] == pytest.approx(2 * found.median_ms[best])
    assert said[-1] == f"mate-edge run will take {best} for {bundle.folder} on this device"


def test_segments_count_by_how_often_they_are_reached(
    bundle: Bundle, engines_of: Callable[[str], Make]
) -> None:
    shares = bundle.manifest.operating_points["balanced"].val_exit_shares
    found = keep_fastest(bundle, NAMES, engines_of("openvino"), lambda line: None)
    expected = sum(share * sum(MS[:k]) for k, share in enumerate(shares, start=1))
    assert found.median_ms["onnxruntime"] == pytest.approx(expected)


def test_an_engine_that_cannot_run_the_bundle_is_left_out(bundle: Bundle) -> None:
    def make(name: str) -> Engine:
        if name == "openvino":
            raise EngineError("it has no such operator")
        return OnnxRuntimeEngine(bundle, 1)

    said: list[str] = []
    assert keep_fastest(bundle, NAMES, make, said.append).engine == "onnxruntime"
    assert said[0] == "openvino cannot run it: it has no such operator"
    with pytest.raises(EngineError, match="no such operator"):
        keep_fastest(bundle, NAMES[::-1], make, said.append)


def test_an_engine_that_fails_when_it_runs_is_left_out_and_closed(bundle: Bundle) -> None:
    closed: list[str] = []

    class Failing(OnnxRuntimeEngine):
        def run(self, k: int) -> np.ndarray:
            raise EngineError("no memory")

        def close(self) -> None:
            closed.append("openvino")
            super().close()

    def make(name: str) -> Engine:
        return (Failing if name == "openvino" else OnnxRuntimeEngine)(bundle, 1)

    said: list[str] = []
    assert keep_fastest(bundle, NAMES, make, said.append).engine == "onnxruntime"
    assert said[0] == "openvino cannot run it: no memory"
    assert closed == ["openvino"]


def test_the_times_are_said_where_the_choice_cannot_be_kept(
    bundle: Bundle,
    engines_of: Callable[[str], Make],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    said: list[str] = []
    found = keep_fastest(bundle, NAMES, engines_of("openvino"), said.append)
    assert (found.engine, len(said)) == ("onnxruntime", 3)
    assert all("ms an image, median" in line for line in said[:2])
    assert said[2].startswith("onnxruntime is not kept as the engine to take: cannot make")


def test_what_is_no_longer_installed_or_unknown_is_not_chosen(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fastest._folder(bundle)

    def keep(engine: str, versions: dict[str, str], cpu: str = CPU) -> None:
        kept = Fastest(engine=engine, cpu=cpu, median_ms=dict.fromkeys(versions, 1.0),
                       versions=versions)  # fmt: skip
        fastest.write_state(folder, "fastest", kept)

    keep("tensorrt", {})
    assert choose_engine(bundle) == "onnxruntime"
    keep("openvino", {})
    assert choose_engine(bundle) == "openvino"
    keep("openvino", {"onnxruntime": "1"})
    assert read_fastest(bundle) is None, "measured with another library"
    keep("openvino", {}, cpu="another")
    assert read_fastest(bundle) is None, "measured on another CPU"
    keep("openvino", {})
    monkeypatch.setattr(engines, "_importable", lambda module: False)
    assert installed_engines(bundle) == ["onnxruntime"]
    assert choose_engine(bundle) == "onnxruntime"
    with pytest.raises(EngineError, match=r"pip install 'mate-edge\[openvino\]'"):
        make_engine("openvino", bundle, 1, False)
    (folder / "fastest.json").write_text("{")
    assert read_fastest(bundle) is None


def test_build_measures_what_is_installed(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    build_bundle(bundle.folder, None, None, None, None, force=False, json=False)
    chosen = read_fastest(bundle)
    assert chosen in NAMES
    said = capsys.readouterr().err
    for text in ("onnxruntime", "OpenVINO", "ms an image, median", f"will take {chosen} for"):
        assert text in said


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an OpenVINO says that is installed and lacks a library."""
    says = "libtbb.so.12: cannot open shared object file"
    (tmp_path / "openvino.py").write_text(f"raise ImportError({says!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "mate_edge.runtime.engines.openvino"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return says


def test_an_engine_that_cannot_be_imported_is_a_clear_error(broken: str, bundle: Bundle) -> None:
    with pytest.raises(
        EngineError, match=f"openvino is installed, but cannot be imported .{broken}"
    ) as raised:
        make_engine("openvino", bundle, 1, False)
    assert str(raised.value).endswith("install it again, or give --engine onnxruntime")


def test_ctrl_c_while_an_engine_is_imported_ends_it_as_at_any_other_time(
    broken: str, bundle: Bundle, typed: Any, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text(
        "raise ImportError('initialization failed') from KeyboardInterrupt()\n"
    )
    command = ("run", "--bundle", bundle.folder, "--engine", "openvino", "a.png")
    done = typed(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_build_and_bench_go_on_without_an_engine_that_cannot_be_imported(
    broken: str, bundle: Bundle, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(bundle.folder, None, None, None, None, force=False, json=False)
    assert read_fastest(bundle) == "onnxruntime"
    assert "openvino cannot run it: openvino is installed, but" in capsys.readouterr().err
    said: list[str] = []
    (found,) = bench(
        bundle.folder,
        Options(rounds=2),
        engine=None,
        engines="all",
        images=None,
        say=said.append,
        progress=lambda what, share: None,
    )
    assert found.engine.startswith("onnxruntime")
    assert any(line.startswith("without openvino: openvino is installed, but") for line in said)


def test_a_bundle_for_a_gpu_is_no_business_of_openvinos(
    gpu_bundle: Callable[..., Bundle], no_gpu: None
) -> None:
    pytest.importorskip("openvino")
    of_gpu = gpu_bundle("tensorrt")
    assert installed_engines(of_gpu) == ["onnxruntime"]
    with pytest.raises(
        EngineError, match="is for cuda, not for OpenVINO: use --engine onnxruntime"
    ):
        make_engine("openvino", of_gpu, 1, False)


def test_a_model_that_openvino_cannot_read_is_a_clear_error(own_bundle: Path) -> None:
    pytest.importorskip("openvino")
    import json

    from mate_edge.files import sha256

    (own_bundle / "segments" / "1.onnx").write_bytes(b"not onnx")
    manifest = json.loads((own_bundle / "manifest.json").read_bytes())
    manifest["segments"][0]["file"] |= {"bytes": 8, "sha256": sha256(b"not onnx")}
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    with (
        make_engine("openvino", read_bundle(own_bundle), 1, False) as engine,
        pytest.raises(EngineError, match="OpenVINO cannot load segment 1 of") as raised,
    ):
        engine.open(1)
    assert "\n" not in str(raised.value)
