"""The page in a real browser: tiles appear; zoom, swipe and overlays work; no complaint, nothing from elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import imagecodecs
import numpy as np
import pytest
import tifffile
from conftest import Sample
from test_server_process import served

from ditic_stream.doors.server.served import Catalog

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SETTLED = """() => {
  const world = window.ditic && ditic.viewer.world;
  if (!world || !world.getItemCount()) return false;
  for (let place = 0; place < world.getItemCount(); place++) {
    const item = world.getItemAt(place);
    if (item.getOpacity() > 0 && !item.getFullyLoaded()) return false;
  }
  return !ditic.viewer.isAnimating();
}"""
"""Nothing moves, and no tile that is seen is still to come."""


@dataclass
class Seen:
    """An open page and all that happened on it."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    """What was asked for while the page was small."""

    def settle(self) -> None:
        """Wait until every tile in view is there, and stays.  (The page's policy forbids waiting by a string.)"""

        def still() -> bool:
            for _ in range(4):
                self.page.wait_for_timeout(50)
                if not self.page.evaluate(SETTLED):
                    return False
            return True

        self.until(still)

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not true():
            assert time.monotonic() < end, f"it did not come to that; {self.complaints}"
            self.page.wait_for_timeout(50)

    def pixels(self) -> np.ndarray:
        """What the part below the buttons looks like, (rows, columns, 3)."""
        return np.asarray(imagecodecs.png_decode(self.page.locator("main").screenshot()))[..., :3].astype(int)

    def pressed(self, what: str) -> bool:
        return self.page.get_attribute(what, "aria-pressed") == "true"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install one to test the page")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def seen(browser: Any, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """The page of the sample with its source at hand, small at first, then 800 x 600."""
    add = Catalog.add
    monkeypatch.setattr(Catalog, "add", lambda self, archive: add(self, archive, source=sample.scene, threads=1))
    with served(sample.archive, page_format="png") as (address, _):
        page = browser.new_page(viewport={"width": 320, "height": 300})
        found = Seen(page, address)
        page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("requestfailed", lambda request: found.complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: found.asked.append(request.url))
        page.goto(f"{address}/scene/")
        found.until(lambda: page.get_attribute("body", "data-ready") == "yes")
        found.settle()
        found.early = list(found.asked)
        page.set_viewport_size({"width": 800, "height": 600})
        page.wait_for_timeout(200)
        page.click("#home")
        found.settle()
        yield found
        page.close()


def test_the_page_shows_the_scene_and_all_its_buttons_work(seen: Seen, sample: Sample) -> None:
    page = seen.page
    # Tiles appear: the middle of the page looks like the middle of the decoded scene.
    assert page.get_attribute("body", "data-drawn") == "yes" and page.title() == "scene"
    first = seen.pixels()
    middle = first[first.shape[0] // 2 - 60 : first.shape[0] // 2 + 60, 340:460]
    decoded = tifffile.imread(sample.decoded).astype(int)
    assert np.abs(middle.mean((0, 1)) - decoded[230:370, 280:420].mean((0, 1))).max() < 8
    assert "700 x 600" in page.inner_text("#about") and "lossy" in page.inner_text("#about")

    # Zoom: small, coarse levels alone were asked for; at 1:1 the very pixels are shown.
    assert any("/image_files/9/" in url for url in seen.early)
    assert not any("/image_files/10/" in url for url in seen.early)
    assert any("/image_files/10/" in url for url in seen.asked)
    page.click("#one")
    seen.settle()
    close = seen.pixels()
    left, top = page.evaluate("""() => {
        const {viewer, items} = ditic;
        const point = viewer.viewport.pixelFromPoint(items.decoded.imageToViewportCoordinates(300, 250, true), true);
        return [point.x, point.y];
    }""")
    spot = close[round(top) : round(top) + 40, round(left) : round(left) + 40]
    assert np.abs(spot - decoded[250:290, 300:340]).mean() < 3  # half a pixel of placement, at most
    page.click("#zoom-in")
    seen.settle()
    assert np.abs(seen.pixels() - close).mean() > 3
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -400)
    seen.settle()
    words = page.inner_text("#place")
    assert words.startswith("column ") and "; tile 1,1" in words and "x 40" in words
    page.click("#home")
    seen.settle()
    assert np.abs(seen.pixels() - first).mean() < 0.5

    # Overlays: on, they change the picture; off, nothing of them stays.
    for button in ("#grid", "#rate"):
        page.click(button)
        seen.until(lambda button=button: seen.pressed(button))
        seen.settle()
        assert np.abs(seen.pixels() - first).max() > 60
        if button == "#rate":
            assert page.is_visible("#legend") and float(page.inner_text("#legend-high")) > 0
        page.click(button)
        seen.settle()
        assert not seen.pressed(button) and np.abs(seen.pixels() - first).mean() < 0.5

    # Swipe: left of the line the original, right of it the decoded, as far as the line is drawn.
    assert not any("original_files" in url for url in seen.asked)
    page.click("[data-mode=original]")
    seen.settle()
    original = seen.pixels()
    assert np.abs(original - first).mean() > 1
    page.click("[data-mode=swipe]")
    seen.settle()
    for share in (0.5, 0.3):
        if share != 0.5:
            page.mouse.move(400, 320)
            page.mouse.down()
            page.mouse.move(800 * share, 320, steps=4)
            page.mouse.up()
            seen.settle()
        both, line = seen.pixels(), round(800 * share)
        assert np.abs(both - original)[60:200, : line - 15].mean() < 0.5
        assert np.abs(both - first)[60:200, line + 15 :].mean() < 0.5
    zoom = page.evaluate("ditic.viewer.viewport.getZoom()")
    page.mouse.move(240, 300)
    page.mouse.wheel(0, -200)  # with the pointer on the line, too
    seen.until(lambda: page.evaluate("ditic.viewer.viewport.getZoom()") > zoom)
    page.click("#home")
    seen.settle()
    page.focus("#swipe")
    page.keyboard.press("ArrowRight")
    seen.until(lambda: page.get_attribute("#swipe", "aria-valuenow") == "32")
    page.click("[data-mode=decoded]")
    seen.settle()
    assert not page.is_visible("#swipe") and np.abs(seen.pixels() - first).mean() < 0.5

    # Nothing was complained of, and everything came from the one server.
    assert seen.complaints == []
    assert {urlsplit(url).netloc for url in seen.asked if url.startswith("http")} == {urlsplit(seen.address).netloc}


def test_sixteen_bits_are_shown_by_a_stretch_that_is_named_and_nodata_is_clear(browser: Any, deep: Path) -> None:
    with served(deep, page_format="png") as (address, _):
        page = browser.new_page(viewport={"width": 800, "height": 600})
        seen = Seen(page, address)
        page.goto(f"{address}/deep/")
        seen.until(lambda: page.get_attribute("body", "data-ready") == "yes")
        seen.settle()
        assert "stretched" in page.inner_text("#about") and "percentiles 2 and 98" in page.inner_text("#about")
        assert not page.is_visible("#modes")  # the original is not at hand
        shown = seen.pixels()
        height, width = shown.shape[:2]
        assert shown[height // 2 + 20 :, width // 4 : width // 2].std() > 30  # a picture
        clear = shown[height // 2 - 60 : height // 2 - 20, width // 4 : width // 2 - 20]
        assert clear.max() < 48  # the dark ground under it
        page.close()


def test_the_index_leads_to_the_page_and_a_wrong_name_says_so(seen: Seen) -> None:
    page = seen.page
    page.goto(seen.address)
    page.click("a.name")
    seen.until(lambda: page.get_attribute("body", "data-ready") == "yes")
    seen.settle()
    assert page.url == f"{seen.address}/scene/" and seen.complaints == []
    page.goto(f"{seen.address}/none/")
    assert "no archive of this name" in page.inner_text("body")
