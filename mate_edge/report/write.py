"""A report as files: one page, or a folder, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mate_edge import files
from mate_edge.bundle import MANIFEST, find_bundle
from mate_edge.errors import UsageError
from mate_edge.report.content import Content
from mate_edge.report.drawing import to_png, to_svg
from mate_edge.report.markdown import to_markdown
from mate_edge.report.page import to_html
from mate_edge.runs import RUNS, newest_run

REPORTS = Path("reports")
GENERATOR = b'<meta name="generator" content="mate-edge '
FORMATS = {"html": "a page", "md": "a folder", "svg": "a folder", "png": "a folder"}
"""What each format is written as."""


def choose_out(name: str, kind: str, out: Path | None) -> Path:
    """Return where a report goes; a page replaces the one before, a folder never does.

    Args:
        name: of the run or bundle.
        kind: a name in `FORMATS`.
        out: what the user asked for; None: under `reports/`.

    Raises:
        UsageError: something else where a page should go, or something where a folder should.
    """
    if FORMATS[kind] == "a page":
        chosen = out or REPORTS / f"{name}.html"
        if chosen.is_dir():
            raise UsageError(f"--out {chosen} is a folder: name a file, such as {chosen}.html")
        files.check_replaces(chosen, "report", lambda head: GENERATOR in head)
    elif out is None:
        chosen = files.unused(REPORTS / f"{name}-{kind}")
    else:
        chosen = out
        if chosen.exists() or chosen.is_symlink():
            raise UsageError(f"{chosen} exists already: choose another --out")
    above = next(parent for parent in chosen.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "may not be written" if above.is_dir() else "is a file"
        raise UsageError(f"--out {chosen} cannot be written: {above} {reason}")
    return chosen


def find_source(path: Path | None, needs_bundle: bool) -> tuple[Path, bool]:
    """Return the run or bundle that the user means, and whether it is a bundle.

    Args:
        path: what was named; None: `newest_run`, or the newest bundle where there is no run.
        needs_bundle: whether options were given that go with a bundle.

    Raises:
        UsageError: neither a run nor a bundle, or a run with a bundle's options.
        BundleError: there is no bundle.
        RunError: there is no run.
    """
    if path is None:
        newest = None if needs_bundle else newest_run()
        return (find_bundle(None), True) if newest is None else (newest, False)
    if (path / MANIFEST).is_file():
        return path, True
    if (path / files.RUN).is_file():
        if needs_bundle:
            raise UsageError(
                f"{path} is a run, and --images, --engine and --threads go with a bundle: type "
                f"mate-edge export {path} first"
            )
        return path, False
    what = "holds neither run.json nor manifest.json" if path.is_dir() else "is no folder"
    raise UsageError(f"{path} {what}: name a run or a bundle, such as {RUNS}/NAME")


def write_report(content: Content, kind: str, out: Path) -> None:
    """Write a report as `kind`, a name in `FORMATS`, to what `choose_out` returned.

    Raises:
        UsageError: a place that cannot be written.
    """
    if kind == "html":
        page = to_html(content)
        files.make_folder(out.parent)
        files.write_whole(out, page)
        return
    if kind == "md":
        found = to_markdown(content)
    else:
        draw = to_svg if kind == "svg" else to_png
        found = {f"{plot.name}.{kind}": draw(plot) for plot in content.plots}
    with files.whole_folder(out) as folder:
        for path, data in found.items():
            target = folder / path
            with files.write_errors(target):
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(data)
