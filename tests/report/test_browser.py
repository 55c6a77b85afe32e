"""The pages in a real browser: three widths, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(e => {
  const right = e.getBoundingClientRect().right;
  return right > document.documentElement.clientWidth + 0.5 && !e.closest('.scroll, .hidden, svg');
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("name", ["run", "bundle"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_page_fits_and_can_be_read_in_light_and_dark(
    name: str, width: int, documented: Any, browser: Any
) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(documented.page(name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOW) == []
        contrasts = page.evaluate(CONTRAST)
        assert len(contrasts) > 300
        assert [found for found in contrasts if found["ratio"] < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "details opened"
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert grounds[0] != grounds[1], "there is a dark theme"


def test_the_contrast_script_sees_what_cannot_be_read(tmp_path: Path, browser: Any) -> None:
    page = browser.new_page()
    page.set_content(
        "<p style='color:#999'>pale</p><svg width=100 height=50><rect width=100 height=50 "
        "fill='#333'/><text x=10 y=20 fill='#111'>dark</text></svg>"
    )
    found = {entry["text"]: entry["ratio"] for entry in page.evaluate(CONTRAST)}
    page.close()
    assert found["pale"] == pytest.approx(2.85, abs=0.05)
    assert found["dark"] < 2


def test_a_page_prints_in_the_colours_of_paper(documented: Any, browser: Any) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(documented.page("bundle").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 39, 51)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.set_viewport_size({"width": 720, "height": 1000})  # what A4 has between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.pdf(format="A4")[:4] == b"%PDF"
    page.close()
