"""What the tests share: the command line, one trained run and one bundle.

The tests under `core` and `runtime` need no torch: given a bundle in `MATE_EDGE_TEST_BUNDLE` they
run in an environment that has only the core's dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("slow machine", deadline=None)
settings.load_profile("slow machine")

CHECKOUT = Path(__file__).parents[1]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mate_edge", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `mate-edge ARGUMENTS` in a process of its own."""
    return run_cli


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder in which a user typed train and export, with nothing else."""
    folder = tmp_path_factory.mktemp("home")
    trained = run_cli("train", "--data", "digits", "--epochs", "3", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    exported = run_cli("export", "--target", "cpu", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    return folder


@pytest.fixture(scope="session")
def run_folder(home: Path) -> Path:
    """A finished run: resnet8 on digits, MATE."""
    return home / "runs" / "digits-resnet8-mate"


@pytest.fixture(scope="session")
def bundle_folder(request: pytest.FixtureRequest) -> Path:
    """The bundle of that run, never to be changed by a test."""
    given = os.environ.get("MATE_EDGE_TEST_BUNDLE")
    if given:
        return Path(given)
    home: Path = request.getfixturevalue("home")
    return home / "bundles" / "digits-resnet8-mate-cpu.mate"


def write_stages(folder: Path, layers: str) -> str:
    """Write a module of a small network's stages into `folder`; return its `--arch`."""
    (folder / "own_stages.py").write_text(
        "from torch import nn\n"
        "def stages(channels, size):\n"
        "    widths = (channels, 8, 16)\n"
        f"    return [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), {layers})\n"
        "            for i, o in zip(widths, widths[1:])]\n"
    )
    return "own_stages:stages"


@pytest.fixture
def without_batch_norm(tmp_path: Path) -> str:
    """The `--arch` of a small network without BatchNorm, for who works in `tmp_path`."""
    return write_stages(tmp_path, "nn.ReLU()")


@pytest.fixture
def with_dropout(tmp_path: Path) -> str:
    """The `--arch` of a small network whose training draws random numbers."""
    return write_stages(tmp_path, "nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(0.2)")


@pytest.fixture
def own_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "own.mate"))


@pytest.fixture(scope="session")
def golden(bundle_folder: Path) -> dict[str, np.ndarray]:
    """The bundle's golden inputs, uint8 [n, H, W, C], and logits [n, K, C]."""
    from mate_edge.bundle import read_bundle

    bundle = read_bundle(bundle_folder)
    return bundle.arrays(bundle.manifest.golden)


@pytest.fixture
def pictures(golden: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A folder with the golden inputs as PNG files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(golden["images"]):
        Image.fromarray(pixels[..., 0]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it."""
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "bundles", "__pycache__")
    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=unwanted)
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)],
        check=True,
        capture_output=True,
    )
    return folder
