"""What is asked of TensorRT when it compiles, and what is made of what it says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mate_edge.errors import EngineError
from mate_edge.runtime import compile as compiling
from mate_edge.runtime.compile import WORKSPACE_BYTES, compile_onnx
from mate_edge.runtime.tensorrt_library import import_library

pytest.importorskip("polygraphy", reason="Polygraphy is not installed")

Compile = Callable[..., bytes]


@pytest.fixture
def compile_with(install: Any, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compile where the builder logs `said` and gives `plan`; keeps the options it was given."""

    def run(name: str, plan: bytes | None, said: str = "", given: Any = None) -> bytes:
        install(name)
        library = import_library(name)
        module: Any = library.module
        module.ProfilingVerbosity = SimpleNamespace(LAYER_NAMES_ONLY="names")
        module.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        module.BuilderFlag = SimpleNamespace(REQUIRE_USER_ALLOCATION="user")
        module.ComputeCapability = SimpleNamespace(__members__={"SM86": 86})
        flags: list[str] = []

        def make_config(**options: Any) -> Callable[[Any, Any], Any]:
            if given is not None:
                given.update(options)
            return lambda builder, network: SimpleNamespace(set_flag=flags.append)

        def engine_bytes(network: Any, config: Any) -> Callable[[], bytes | None]:
            def build() -> bytes | None:
                config(*network[:2])
                if said:
                    library.logger.log(library.logger.ERROR, said)
                if given is not None:
                    given["flags"] = flags
                return plan

            return build

        loaders = SimpleNamespace(EngineBytesFromNetwork=engine_bytes)
        monkeypatch.setattr(compiling, "_polygraphy", lambda library: (loaders, make_config))
        monkeypatch.setattr(compiling, "_parse", lambda *given: ("builder", "network", "parser"))
        monkeypatch.setattr(compiling, "_profile", lambda *given: "profile")
        monkeypatch.setattr(
            compiling, "_make_monitor", lambda *given: SimpleNamespace(stopped_by=None)
        )
        return compile_onnx(library, b"onnx", "segment 1", 1, (8, 6), lambda share: None)

    return run


def test_a_kernel_that_did_not_work_is_no_reason_to_throw_a_plan_away(
    compile_with: Compile,
) -> None:
    with pytest.warns(UserWarning, match="built segment 1, and said: .*Skipping tactic"):
        assert compile_with("tensorrt", b"plan", "Error Code: 9: Skipping tactic 0x1") == b"plan"


def test_without_a_plan_it_says_why(compile_with: Compile) -> None:
    with pytest.raises(EngineError, match="cannot build segment 1: .*no implementation"):
        compile_with("tensorrt", None, "no implementation")


def test_a_library_that_tries_nothing_has_no_reason_to_log_an_error(compile_with: Compile) -> None:
    with pytest.raises(EngineError, match="cannot build segment 1: .*out of memory"):
        compile_with("tensorrt_rtx", b"plan", "out of memory")


def test_memory_is_limited_and_nothing_is_left_to_a_graphs_recording(compile_with: Compile) -> None:
    given: dict[str, Any] = {}
    compile_with("tensorrt", b"plan", given=given)
    assert given["memory_pool_limits"] == {"workspace": WORKSPACE_BYTES}
    assert given["tf32"] is True
    assert given["profiling_verbosity"] == "names"
    assert given["flags"] == []
    compile_with("tensorrt_rtx", b"plan", given=given)
    assert given["compute_capabilities"] == [(8, 6)]
    assert given["flags"] == ["user"]
