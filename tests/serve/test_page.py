"""The page at `/`, in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(params=[(1100, 800), (360, 740)], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, server: Any) -> Iterator[Any]:
    """The page, which must log nothing and stay inside the window."""
    width, height = request.param
    found = browser.new_page(viewport={"width": width, "height": height})
    troubles: list[str] = []
    found.on("console", lambda message: troubles.append(message.text))
    found.on("pageerror", lambda error: troubles.append(str(error)))
    found.goto(f"http://127.0.0.1:{server.port}/")
    yield found
    assert not troubles
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    found.close()


def wait(page: Any, selector: str, count: int) -> None:
    page.locator(selector).nth(count - 1).wait_for(state="attached")
    assert page.locator(selector).count() == count


def test_an_image_is_answered_and_the_deadline_moves_the_exit(
    page: Any, images: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "digit.png"
    Image.fromarray(images[0][..., 0]).save(file)
    wait(page, "#exits .bar", 3)
    assert "digits version 1" in page.inner_text("#about")
    page.select_option("#policy", "deepest")
    page.set_input_files("#file", file)
    page.locator("#how", has_text="exit 3 of 3").wait_for()
    assert "the last exit" in page.inner_text("#how")
    assert page.inner_text("#label").endswith("%")
    assert page.locator("#exits .bar.answered .name").inner_text() == "exit 3"
    assert page.locator("#classes .bar").count() == 5
    page.locator("#slider").fill("0")
    assert page.inner_text("#deadline") == "0.10 ms"
    page.locator("#how", has_text="exit 1 of 3").wait_for()
    assert "after the deadline" in page.inner_text("#how")
    assert page.locator("#exits .bar.answered .name").inner_text() == "exit 1"
    assert page.locator("#exits .value", has_text=re.compile(r"\d")).count() == 1
    page.locator("#slider").fill("100")
    page.locator("#how", has_text="exit 3 of 3").wait_for()
    assert page.locator("#counts .value").all_inner_texts()[2] != "0"


def test_what_was_chosen_stays_when_another_version_is_loaded(page: Any) -> None:
    wait(page, "#exits .bar", 3)
    page.select_option("#policy", "fast")
    page.evaluate("start()")  # as after an answer of another version
    assert page.input_value("#policy") == "fast"
    page.evaluate("change(model().policy)")
    assert page.input_value("#policy") == page.evaluate("model().policy") != "fast"


def test_the_webcam_is_answered_frame_by_frame_until_it_is_stopped(page: Any) -> None:
    wait(page, "#exits .bar", 3)
    page.click("#webcam")
    page.locator("#counts .answered").wait_for()
    until = time.monotonic() + 20
    while sum(map(int, page.locator("#counts .value").all_inner_texts())) < 3:
        assert time.monotonic() < until
        page.wait_for_timeout(20)
    assert page.inner_text("#webcam") == "Stop the webcam"
    page.click("#webcam")
    assert page.inner_text("#webcam") == "Use the webcam"
    assert page.locator("#trouble").is_hidden()
