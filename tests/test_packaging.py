"""The wheel and the sdist hold the whole package, symbolic links resolved."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from warm import Warm

CHECKOUT = Path(__file__).parents[1]


def sources() -> set[str]:
    """Return every module's path inside the package."""
    package = CHECKOUT / "mate_edge"
    found = {str(f.relative_to(CHECKOUT)) for f in package.rglob("*.py")}
    for stage in ("train", "export", "runtime"):
        found |= {f"mate_edge/{f.relative_to(CHECKOUT)}" for f in (CHECKOUT / stage).rglob("*.py")}
    return found


def test_the_wheel_and_the_sdist_hold_every_module(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources() <= names
    assert {"mate_edge/py.typed", "mate_edge/runtime/serve/page.html"} <= names
    templates = {f"mate_edge/report/templates/report.{kind}" for kind in ("html", "css", "md")}
    assert templates <= names
    assert not any(name.startswith(("train/", "export/", "runtime/", "tests/")) for name in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
        assert all(not member.issym() for member in archive.getmembers())
    assert sources() <= inside
    assert {"LICENSE", "README.md", "pyproject.toml"} <= inside


def test_the_package_index_would_take_both_without_a_warning(built: Path) -> None:
    files = sorted(built.iterdir())
    assert len(files) == 2
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_installed_wheel_imports_every_module_away_from_the_checkout(
    built: Path, tmp_path: Path, warm: Warm
) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")  # what pip does with a wheel of Python alone
    names = sorted(
        source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for source in sources()
        if not source.endswith("__main__.py")
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib, sys\n"
        f"sys.path[0] = {str(site)!r}\n"
        f"for name in {names!r}:\n"
        "    file = importlib.import_module(name).__file__\n"
        "    assert file.startswith(sys.path[0]), file\n"
    )
    subprocess.run([warm.python, program], check=True, cwd=tmp_path)
