"""What the command line says of itself: help, examples, completion, version."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import mate_edge
from mate_edge.cli import app, complete
from mate_edge.cli.groups import GROUPS
from mate_edge.cli.shared import ENGINE_HELP
from mate_edge.names import look_up
from mate_edge.runtime.engines import ENGINES

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BIN = Path(sys.executable).parent


def example_of(name: str) -> str:
    """Return the example of a command's help."""
    _, example = COMMANDS[name].help.split("\n\n")[:2]
    assert example.startswith("Example: ")
    return str(example.removeprefix("Example: "))


def test_help_lists_every_command_once_under_a_heading_and_cuts_no_summary(
    typed: Any, tmp_path: Path
) -> None:
    shown = typed("--help", cwd=tmp_path).stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    for title, names in GROUPS.items():
        section = shown.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        listed = re.findall(r"^  (\S+)", section, re.MULTILINE)  # a long summary goes on below
        assert listed == list(names)
    assert typed(cwd=tmp_path).stdout == shown, "no command at all is a call for help"


def test_every_file_that_registers_a_command_is_listed() -> None:
    folder = Path(mate_edge.__file__).parent / "cli"
    files = {file.stem for file in folder.glob("*.py") if "@app.command()" in file.read_text()}
    assert files == set(COMMANDS) == {name for names in GROUPS.values() for name in names}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_begins_with_what_it_does_and_an_example_of_real_options(
    name: str,
) -> None:
    program, command, *rest = shlex.split(example_of(name))
    assert (program, command) == ("mate-edge", name)
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known
    assert len(example_of(name)) < 70, "it must fit a line of 80 columns, indented"


def test_completion_knows_the_names_that_the_commands_know() -> None:
    from mate_edge.decide.policy import THRESHOLDS
    from mate_edge.export.targets import TARGETS
    from mate_edge.runtime.engines import ENGINES
    from mate_edge.train.backbones import BACKBONES
    from mate_edge.train.data import DATASETS
    from mate_edge.train.heads import HEADS
    from mate_edge.train.losses import METHODS

    tables = {"arch": BACKBONES, "data": DATASETS, "head": HEADS, "method": METHODS,
              "target": TARGETS, "engine": ENGINES, "thresholds": THRESHOLDS}  # fmt: skip
    assert set(tables) == set(complete.TABLES)
    for kind, table in tables.items():
        assert sorted(complete.names(kind)) == sorted(table), kind


def test_completion_of_a_policy_names_the_newest_bundles_operating_points(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert complete.policies("") == ["fast", "balanced", "accurate", "deepest", "exit-1",
                                     "patience-2"]  # fmt: skip
    assert complete.policies("ba") == ["balanced"]
    monkeypatch.chdir(tmp_path)
    assert complete.policies("d") == ["deepest"]


def test_the_last_of_several_names_is_completed() -> None:
    assert complete.some_of("method")("ce,ma") == ["ce,mate"]
    assert look_up("--method", "ce", dict.fromkeys(complete.names("method"))) is None


def test_bash_completes_commands_and_names_and_waits_for_neither_torch_nor_numpy(
    tmp_path: Path,
) -> None:
    def complete_in_bash(line: str) -> list[str]:
        words = shlex.split(line)
        script = (
            'eval "$(mate-edge --show-completion)"\n'
            f"COMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n"
            "_mate_edge_completion mate-edge\n"
            'printf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                 "PYTHONPROFILEIMPORTTIME": "1"},
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
        assert "mate_edge.cli" in loaded
        assert not loaded & {"torch", "numpy"}
        return done.stdout.split()

    assert {"profile"} == set(complete_in_bash("mate-edge prof"))
    assert complete_in_bash("mate-edge train --arch resnet5") == ["resnet50", "resnet56"]


def test_completion_installs_itself_for_bash(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", "mate-edge --install-completion; . ~/.bashrc; complete -p mate-edge"],
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_mate_edge_completion" in done.stdout


def test_the_version_is_the_packages() -> None:
    done = subprocess.run(
        [BIN / "mate-edge", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mate_edge.__version__
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{mate_edge.__version__}"\n' in project


def test_the_version_is_all_that_is_printed(typed: Any, tmp_path: Path) -> None:
    done = typed("--version", "doctor", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, mate_edge.__version__)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["bench", ""], "what follows bench is empty"),
        (["evaluate", "my.mate", ""], "what follows my.mate is empty"),
        (["run", "photo.jpg", "--bundle", ""], "what follows --bundle is empty"),
        (["bench", "--images="], "--images= is empty"),
    ],
)
def test_an_empty_argument_is_never_taken_for_the_working_folder(
    line: list[str], says: str, typed: Any, tmp_path: Path
) -> None:
    done = typed(*line, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mate-edge: {says}")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        "verify locked/b", "run a.png --csv locked/a.csv", "report RUN --out locked/x.html",
        "train --data locked/x",
    ],
)  # fmt: skip
def test_a_folder_that_may_not_be_searched_is_one_line(
    command: str, run_folder: Path, tmp_path: Path
) -> None:
    rights = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv, which takes root's rights away, is not installed")
        rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    (tmp_path / "locked").mkdir(mode=0)
    (tmp_path / "folder").mkdir()
    words = [str(run_folder) if word == "RUN" else word for word in command.split()]
    done = subprocess.run(
        [*rights, sys.executable, "-m", "mate_edge", *words],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    (tmp_path / "locked").chmod(0o700)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "locked" in line
    assert "Permission denied" in line or "may not be" in line


@pytest.mark.parametrize("command", ["verify BUNDLE --json", "bench BUNDLE --rounds 3 --json",
                                     "tune BUNDLE --max-drop 1 --json"])  # fmt: skip
def test_a_bundle_whose_name_is_no_utf8_is_shown_as_well_as_can_be(
    command: str, own_bundle: Path, typed: Any, tmp_path: Path
) -> None:
    strange = own_bundle.rename(tmp_path / os.fsdecode(b"b\xff.mate"))
    words = [str(strange) if word == "BUNDLE" else word for word in command.split()]
    done = typed(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_help_names_every_engine() -> None:
    assert set(ENGINES) == set(re.findall(r"\w+", ENGINE_HELP.partition(";")[0])) - {"or"}


@pytest.mark.parametrize("command", [["doctor"], ["verify", "BUNDLE"]])
def test_who_stops_reading_has_not_been_refused(command: list[str], bundle_folder: Path) -> None:
    arguments = [word.replace("BUNDLE", str(bundle_folder)) for word in command]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "mate_edge", *arguments],
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
