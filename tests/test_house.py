"""The rules of the house: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mate_edge

ROOT = Path(mate_edge.__file__).parent
STAGES = ("train", "export", "runtime")
HEAVY = {"torch", "torchvision", "onnxruntime", "onnx", "fvcore", "accelerate", "safetensors"}
MAY_IMPORT = {"train": {"train"}, "runtime": {"runtime"}, "export": {"train", "export", "runtime"}}


def modules() -> list[Path]:
    found = sorted(ROOT.rglob("*.py")) + [
        file for stage in STAGES for file in sorted((ROOT / stage).resolve().rglob("*.py"))
    ]
    return sorted({file.resolve() for file in found})


def imports(file: Path) -> list[tuple[str, bool]]:
    """Return every module imported, and whether at the top of the file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in tree.body:  # blocks such as `if TYPE_CHECKING:` do not run
        assert not isinstance(node, ast.Try), f"{file}: no guarded imports"
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.append((node.module or "", id(node) in top))
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def stage_of(file: Path) -> str | None:
    parts = file.relative_to(ROOT.resolve().parent).parts
    return next((part for part in parts if part in STAGES), None)


def test_there_is_something_to_check() -> None:
    found = {stage_of(file) for file in modules()}
    assert found == {None, *STAGES}


@pytest.mark.parametrize("file", modules(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_module_imports_only_what_the_house_allows(file: Path) -> None:
    stage = stage_of(file)
    for name, at_top in imports(file):
        target = name.split(".")
        if file.name != "__main__.py" and file.parent.name != "cli":
            assert target[:2] != ["mate_edge", "cli"], "nobody imports the command line"
        if target[0] == "mate_edge" and len(target) > 1 and target[1] in STAGES:
            if stage is None:
                front_door = file.name in {"demo.py", "__init__.py", "text.py"}
                assert front_door or file.parent.name == "cli", f"{file} imports {target[1]}"
                assert not at_top or file.name == "demo.py"
            else:
                assert target[1] in MAY_IMPORT[stage], f"{stage} imports {target[1]}"
        if stage is None:
            assert target[0] not in HEAVY, f"the front door imports {target[0]}"
        if stage == "runtime":
            allowed = {"onnxruntime"}
            if file.name in ("frames.py", "join.py") and not at_top:  # they write graphs to build
                allowed.add("onnx")
            assert target[0] not in HEAVY - allowed, f"the runtime imports {target[0]}"


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_mate_edge_loads_neither_numpy_nor_torch_nor_typer() -> None:
    assert not loaded_by("import mate_edge") & {"numpy", "PIL", "typer", "msgspec", *HEAVY}


def test_running_a_bundle_loads_neither_torch_nor_what_is_slow_to_import() -> None:
    loaded = loaded_by("import mate_edge.cli, mate_edge.runtime.classify")
    assert not loaded & {"torch", "rich", "pydantic", "matplotlib", "scipy", "sklearn"}


BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_a_benchmark_imports_what_there_is(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mate_edge"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
