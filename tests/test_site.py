"""The site that docs/ is built into: no warning, no dead link, nothing fetched from elsewhere."""

from __future__ import annotations

import functools
import html
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

from mate_edge.cli import app

CHECKOUT = Path(__file__).parents[1]
FETCHING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"),
            ("link", "href"), ("form", "action"), ("use", "href")}  # fmt: skip
"""What a browser asks for by itself."""


class Page(HTMLParser):
    """The links, the fetched addresses and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if value and (tag, name) in FETCHING:
                self.fetched.append(value)
            elif value and (tag, name) == ("a", "href"):
                self.links.append(value)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    """Every page of the site by its name."""
    found = {path.name: Page(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}
    assert {f"{page.stem}.html" for page in (CHECKOUT / "docs").glob("*.md")} <= set(found)
    return found


def test_every_page_is_in_the_navigation(pages: dict[str, Page]) -> None:
    shown = {link.partition("#")[0] for link in pages["index.html"].links}
    assert set(pages) - {"404.html"} <= {name if name != "." else "index.html" for name in shown}


def test_no_link_leads_to_a_file_or_an_anchor_that_is_not_there(
    site: Path, pages: dict[str, Page]
) -> None:
    followed = 0
    for name, page in pages.items():
        if name == "404.html":  # it is served anywhere, so its links are absolute
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), f"{name}: {link}"
                continue
            target = unquote(parts.path) or name
            target = "index.html" if target == "." else target
            assert (site / target).is_file(), f"{name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{name}: {link}"
            followed += 1
    assert followed > 500


def test_no_page_and_no_style_names_anything_to_fetch_from_elsewhere(
    site: Path, pages: dict[str, Page]
) -> None:
    fetched = [(name, address) for name, page in pages.items() for address in page.fetched]
    assert len(fetched) > 50
    for name, address in fetched:
        assert not urlsplit(address).netloc, f"{name} fetches {address}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        for address in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", text):
            assert not urlsplit(address).netloc, f"{style.name} fetches {address}"


def test_the_command_reference_has_every_command_and_option(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = text.partition(f'id="mate-edge-{name}"')[2].partition("<h2")[0]
        options = [name for parameter in command.params for name in parameter.opts if "--" in name]
        assert options
        for option in options:
            assert option in section, f"{name} {option}"
        assert f"Example: <code>mate-edge {name}" in section


def test_the_list_of_messages_has_those_of_every_part(site: Path) -> None:
    text = html.unescape((site / "messages.html").read_text(encoding="utf-8"))
    assert text.count("<code>") > 180
    for said in (
        "there is no run under runs/ yet: type mate-edge train, or name a run folder",
        "… is damaged: …",
        "--lr must lie between 0 and 100, not …",
        "--exits must keep the last exit, …",
        "this predictor is busy in another thread: use clone() for each",
    ):
        assert f"<code>{said}</code>" in text


def test_files_of_the_checkout_are_named_and_not_linked(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert "train/losses/mate.py" in text
    assert "../train" not in text


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on this machine."""
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_browser_fetches_nothing_from_elsewhere_and_the_search_finds(
    address: str, browser: Any
) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/troubleshooting.html")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 0, "the page is wider than a phone"
    page.set_viewport_size({"width": 1280, "height": 800})
    page.click("input[name=query]")
    page.keyboard.type("drift")
    page.wait_for_selector(".md-search-result__item")
    page.close()
    assert not errors
    assert len(asked) > 3
    assert [url for url in asked if not url.startswith(address)] == []
