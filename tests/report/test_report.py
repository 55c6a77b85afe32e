"""`mate-edge report`: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from mate_edge import files
from mate_edge.bundle import read_bundle
from mate_edge.errors import UsageError
from mate_edge.report import write
from mate_edge.report.content import Content
from mate_edge.report.drawing import plain_names
from mate_edge.report.subject import ExitCost
from mate_edge.report.write import choose_out, write_report
from mate_edge.runs import read_finished_run, read_flops
from mate_edge.runtime.engines import make_engine
from mate_edge.runtime.latencies import record_latencies
from mate_edge.runtime.reported import deadlines_of, ends_ms, gather_bundle
from mate_edge.train.reported import gather_run

Cli = Callable[..., Any]


class Page(HTMLParser):
    """What a page holds: tags, ids, references, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["run", "bundle"])
def test_a_page_is_one_small_file_without_scripts_or_links_elsewhere(
    name: str, documented: Any
) -> None:
    assert documented.page(name).stat().st_size < 3_000_000
    page = Page(documented.page(name))
    assert not page.tags["script"] + page.tags["iframe"] + page.tags["object"]
    for attribute, value in page.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href", "xlink:href"):
            assert value.startswith(("data:", "#")), value
    assert "url(http" not in documented.page(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["run", "bundle"])
def test_ids_are_unique_and_whatever_is_referred_to_is_there(name: str, documented: Any) -> None:
    page = Page(documented.page(name))
    assert not [ident for ident, count in Counter(page.ids).items() if count > 1]
    referred = {
        ident
        for attribute, value in page.attributes
        for ident in (
            value.split() if attribute.startswith("aria-labelledby") else
            re.findall(r"url\(#([^)]+)\)", value) + re.findall(r"^#(.+)", value)
        )
    }  # fmt: skip
    assert page.tags["svg"] >= 8
    assert referred
    assert referred <= set(page.ids)


def test_the_page_of_a_run_shows_everything_that_a_run_knows(documented: Any) -> None:
    page = Page(documented.page("run"))
    for text in (
        "At balanced the exits",
        "Accuracy over FLOPs",
        "Costs are stated in FLOPs only",
        "Reliability as trained",
        "Confusion at exit 3",
        "What teacher 1 is made of",
        "Loss over the epochs",
        "Leave first",
        "The exits disagree",
        "git commit",
        "mate (alpha=1",
    ):
        assert text in page.text, text
    assert page.tags["img"] >= 24
    assert "Accuracy over milliseconds" not in page.text


def test_a_bundle_that_was_not_benched_says_what_it_cannot_show(
    hostile: Content, tmp_path: Path
) -> None:
    write_report(hostile, "html", tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    for text in ("--images DIR shows labelled images", "mate-edge report RUN shows the curves",
                 "was not measured on this device as it is now", "a little too good"):  # fmt: skip
        assert text in page.text, text
    assert "Accuracy over milliseconds" not in page.text
    assert re.search(r"bundle id[0-9a-f]{64} target", page.text)


def test_a_benched_bundle_has_milliseconds_deadlines_and_the_verdict_of_bench(
    documented: Any,
) -> None:
    page = Page(documented.page("bundle"))
    for text in ("of the time on this device", "more time on this device"):
        if text in page.text:
            break
    else:
        pytest.fail("the verdict is not about this device's time")
    for text in ("Accuracy over milliseconds on this device", "Which exit answers under a deadline",
                 "mate-edge bench says: at balanced the exits", "200 rounds"):  # fmt: skip
        assert text in page.text, text


def test_a_bundle_shows_labelled_images_of_ones_own(documented: Any) -> None:
    (printed,) = (text for line, text in documented.printed.items() if "--json" in line)
    found = json.loads(printed)
    assert found["report"] == "mine.html"
    assert found["images"] == 8
    assert found["exits"][-1]["accuracy"] == 1.0, "they were labelled by the last exit"
    assert set(found["points"]) == {"fast", "balanced", "accurate"}
    page = Page(documented.page("own"))
    assert page.tags["img"] >= 1
    assert "1 more could not be read" in page.text
    assert "a little too good" not in page.text


def test_a_run_whose_data_and_metrics_are_gone_is_reported_without_them(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "own"))
    run = msgspec.structs.replace(read_finished_run(folder), images_sha256="0" * 64)
    costs = [ExitCost(flops) for flops in read_flops(folder, run)]
    (folder / "metrics.csv").write_text("epoch,loss\nfirst,much\n")
    subject = gather_run(folder, run, costs, None)
    assert subject.pictures is None
    assert "the data set has changed since" in subject.no_pictures
    assert subject.training is None
    assert "metrics.csv is damaged" in subject.no_training
    (folder / "metrics.csv").unlink()
    assert "metrics.csv is missing" in gather_run(folder, run, costs, None).no_training


@pytest.mark.parametrize("data", ["cifar10", "tinyimagenet"])
def test_a_data_set_that_is_not_here_is_not_downloaded_for_a_report(
    data: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*arguments: object, **options: object) -> None:
        pytest.fail("nobody asked for a download")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    monkeypatch.setenv("MATE_EDGE_DATA", str(tmp_path / "data"))
    run = msgspec.structs.replace(read_finished_run(run_folder), data=data)
    subject = gather_run(run_folder, run, [ExitCost(1)] * run.exits, None)
    assert subject.pictures is None
    assert f"cannot be shown: {data} was not found: " in subject.no_pictures
    assert not (tmp_path / "data").exists()


def test_no_name_of_a_manifest_becomes_markup(
    hostile: Content, tmp_path: Path, browser: Any
) -> None:
    write_report(hostile, "html", tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    assert not page.tags["script"] + page.tags["img"] + page.tags["b"]
    assert "<script>window.hacked=1</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    opened = browser.new_page()
    opened.goto((tmp_path / "out.html").as_uri())
    assert opened.evaluate("window.hacked") is None
    assert opened.evaluate("document.querySelectorAll('script, img').length") == 0
    assert opened.title().startswith("</title><script>")
    opened.close()


def test_markdown_shows_names_as_they_are_and_links_what_is_there(
    hostile: Content, tmp_path: Path
) -> None:
    write_report(dataclasses.replace(hostile, parts=hostile.parts[3:7]), "md", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<" not in text
    assert "a\\|b" in text
    for table in re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, "every row of a table has as many cells"
    check_links(text, tmp_path / "out")


def check_links(text: str, folder: Path) -> None:
    links = re.findall(r"(?<!\\)\]\(([^)]+)\)", text)
    assert len(links) > 5
    assert all((folder / link).is_file() for link in links)


def test_the_markdown_of_a_run_links_its_plots_and_images(documented: Any) -> None:
    folder = documented.folder / "in-markdown"
    text = (folder / "report.md").read_text(encoding="utf-8")
    check_links(text, folder)
    assert len(list((folder / "pictures").glob("early-*.png"))) == 12
    assert (folder / "pictures" / "teacher-1.png").is_file()


def test_pictures_can_be_had_as_svg_and_png(hostile: Content, tmp_path: Path) -> None:
    some = dataclasses.replace(hostile, parts=hostile.parts[4:6])
    for kind in ("svg", "png"):
        write_report(some, kind, tmp_path / kind)
        drawn = sorted((tmp_path / kind).iterdir())
        assert [path.stem for path in drawn] == sorted(plot.name for plot in some.plots)
        for path in drawn:
            if kind == "svg":
                root = ElementTree.parse(path).getroot()  # noqa: S314 - our own
                assert root.tag.endswith("svg")
                assert "var(--" not in path.read_text(encoding="utf-8")
            else:
                assert Image.open(path).width > 500


def test_a_report_goes_to_the_reports_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_out("mine", "html", None) == Path("reports/mine.html")
    (tmp_path / "reports" / "mine-md").mkdir(parents=True)
    assert choose_out("mine", "md", None) == Path("reports/mine-md-2")


def test_points_whose_names_begin_alike_are_drawn_apart() -> None:
    names = ["fast", "factory-line-north-a", "factory-line-north-b"]
    assert len(set(plain_names(names, [1, 2, 3]))) == 3
    assert plain_names(names, [1, 2, 3])[0] == "fast"
    assert all(len(name) <= 16 for name in plain_names(names, [1, 2, 3]))


def test_a_manifest_cannot_claim_to_be_another_bundle(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_bytes())
    manifest["provenance"] |= {"bundle id": "another", "bundle_id": "another", "bundle": "there"}
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = read_bundle(own_bundle)
    subject = gather_bundle(opened, None, None, None, print)
    told = dict(subject.provenance)
    assert (told["bundle"], told["bundle id"]) == (str(own_bundle), opened.id)


def test_a_report_leaves_the_bundle_as_it_is_and_a_folder_that_exists(
    bundle_folder: Path, tmp_path: Path, typed: Cli
) -> None:
    before = {path: path.read_bytes() for path in bundle_folder.rglob("*") if path.is_file()}
    (tmp_path / "taken").mkdir()
    done = typed("report", bundle_folder, "--format", "svg", "--out", "taken", cwd=tmp_path)
    assert (done.returncode, list((tmp_path / "taken").iterdir())) == (2, [])
    assert "taken exists already" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_report_that_fails_half_way_leaves_nothing(
    hostile: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def fail_at_the_third(plot: Any) -> bytes:
        drawn.append(plot)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return b"fine"

    def to_html(content: Any) -> bytes:
        return b"new"

    monkeypatch.setattr(write, "to_png", fail_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        write_report(hostile, "png", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "page.html").write_text("old")
    monkeypatch.setattr(write, "to_html", to_html)
    monkeypatch.setattr(files.os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "x")))
    with pytest.raises(UsageError, match="cannot write"):
        write_report(hostile, "html", tmp_path / "page.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no folder: name a run or a bundle"),
        (["empty"], "empty holds neither run.json nor manifest.json"),
        ([], "there is no bundle under bundles/ yet"),
        (["BUNDLE", "--format", "htlm"], "unknown --format 'htlm': choose from html, md, svg, png"),
        (["BUNDLE", "--out", "empty"], "--out empty is a folder"),
        (["BUNDLE", "--out", "notes.txt"], "notes.txt is there and is no report"),
        (["BUNDLE", "--out", "file/out.html"], "--out file/out.html cannot be written"),
        (["BUNDLE", "--images", "empty"], "holds no images of the bundle's classes"),
        (["BUNDLE", "--engine", "onnx"], "unknown --engine 'onnx'"),
        (["BUNDLE", "--threads", "0"], "--threads must lie between 1 and"),
        (["RUN", "--images", "empty"], "is a run, and --images, --engine and --threads go with"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str],
    said: str,
    run_folder: Path,
    bundle_folder: Path,
    tmp_path: Path,
    typed: Cli,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    places = {"BUNDLE": str(bundle_folder), "RUN": str(run_folder)}
    done = typed("report", *(places.get(word, word) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_its_libraries_it_says_how_to_get_them(
    package: str,
    bundle_folder: Path,
    tmp_path: Path,
    typed: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = typed("report", bundle_folder, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{package} is missing: pip install 'mate-edge[report]'" in done.stderr


def test_the_deadline_curves_follow_the_rounds_that_were_measured(bundle_folder: Path) -> None:
    opened = read_bundle(bundle_folder)
    n = 300
    measured = record_latencies(
        make_engine("onnxruntime", opened, 1, False), [(1.0,) * n] * 3, (0.5,) * n
    )
    ends = ends_ms(measured)
    assert np.allclose(ends, [[1.5, 2.5, 3.5]] * n)
    found = {deadline.max_ms: deadline.endings for deadline in deadlines_of(measured, ends)}
    for max_ms, (ending,) in found.items():
        # the rule keeps a third of the time outside of segments in reserve once more
        reserve = 1 + 0.5 / 3
        deepest = 1 + (max_ms >= 1.5 + reserve) + (max_ms >= 2.5 + reserve)
        assert ending.allowed == deepest
        assert ending.in_time == (deepest if max_ms >= 1.5 else 0)
        assert ending.share == 1.0
    assert min(found) < 1.5
    assert max(found) > 4.0
