"""Names that the shell completes, read off the tables that define them.

The tables lie in modules that import torch, which takes seconds: a key is pressed and waits. So
their keys are read from the source, which is there wherever the package is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
Complete = Callable[[str], list[str]]

TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "arch": ("train/backbones/__init__.py", ("BACKBONES", "TORCHVISION")),
    "data": ("train/data/__init__.py", ("OF_ONE_SIZE", "LAYOUTS")),
    "head": ("train/heads.py", ("HEADS",)),
    "method": ("train/losses/__init__.py", ("METHODS",)),
    "target": ("export/targets.py", ("TARGETS",)),
    "engine": ("runtime/engines/__init__.py", ("ENGINES",)),
    "thresholds": ("decide/policy.py", ("THRESHOLDS",)),
}
"""What is completed -> the file and the tables, dictionaries whose keys are the names."""


def names(kind: str) -> list[str]:
    """Return the keys of the tables of `kind`, in the tables' order."""
    import ast

    file, tables = TABLES[kind]
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    found = []
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in tables:
                found += [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    return [str(name) for name in found]


def one_of(kind: str) -> Complete:
    """Complete one name of `kind`."""
    return lambda incomplete: _begin_with(incomplete, names(kind))


def some_of(kind: str) -> Complete:
    """Complete the last of several names with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in _begin_with(last, names(kind))]

    return complete


def words(*choices: str) -> Complete:
    """Complete one of a few fixed words."""
    return lambda incomplete: _begin_with(incomplete, choices)


def policies(incomplete: str) -> list[str]:
    """Complete what `run --policy` takes: the newest bundle's operating points, and the rules."""
    import json

    from mate_edge.bundle import MANIFEST, find_bundle
    from mate_edge.errors import MateEdgeError

    try:
        manifest = json.loads((find_bundle(None) / MANIFEST).read_bytes())
        points = [str(name) for name in manifest["operating_points"]]
    except (MateEdgeError, OSError, ValueError, KeyError, TypeError):
        points = []  # nothing is completed; the command itself says what is wrong
    return _begin_with(incomplete, [*points, "deepest", "exit-1", "patience-2"])


def _begin_with(incomplete: str, choices: Iterable[str]) -> list[str]:
    return [choice for choice in choices if choice.startswith(incomplete)]
