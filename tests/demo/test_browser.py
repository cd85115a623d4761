"""The page in a real browser, on a desk and on a phone. Needs playwright and a Chromium: -m slow."""

import shutil
from pathlib import Path

import PIL.Image
import pytest

from ldae.demo.page import build_page, launch_page
from tests.demo.conftest import open_stored


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url():
    page = build_page(open_stored("ddae"))
    yield launch_page(page, wait=False)
    page.close()


@pytest.mark.parametrize("width", [1200, 400])
def test_a_visitor_drops_a_picture_moves_t_and_drops_a_text(
    browser, url: str, width: int, tmp_path: Path, text_file: Path
) -> None:
    PIL.Image.radial_gradient("L").convert("RGB").save(tmp_path / "mine.png")
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(url)
    tab.wait_for_selector("#examples img")

    def send(path: Path) -> None:
        tab.locator("input[type=file]").first.set_input_files(str(path))

    def shown() -> list[str]:
        return [tab.locator(f"#{name} img").get_attribute("src") for name in ("clean", "noisy", "denoised")]

    send(tmp_path / "mine.png")
    tab.wait_for_selector("#denoised img")
    before = shown()
    t = tab.locator("#t input[type=number]")
    t.fill("700")
    t.press("Enter")
    tab.wait_for_function("src => document.querySelector('#denoised img').src != src", arg=before[2])
    assert [a == b for a, b in zip(before, shown(), strict=True)] == [True, False, False]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"

    tab.reload()
    tab.wait_for_selector("#examples img")
    send(text_file)  # named as a picture: the page finds out
    tab.wait_for_function("document.querySelector('#status').innerText.includes('cannot be shown: not an image')")
    (tmp_path / "notes.txt").write_text("no picture")
    send(tmp_path / "notes.txt")
    tab.get_by_text("Invalid file type: notes.txt").first.wait_for()
    tab.locator("#examples button").nth(3).click()
    tab.wait_for_selector("#denoised img")
    tab.screenshot(path=str(tmp_path / f"{width}.png"), full_page=True)
    tab.close()
