"""The page in a real browser, on a desk and on a phone. Needs playwright and a Chromium: -m slow."""

import shutil
from pathlib import Path

import PIL.Image
import pytest

from ldae.demo.page import build_page, launch_page
from ldae.demo.watch import WatchedRun
from tests.demo.conftest import STORED, open_stored


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
def run(tmp_path_factory: pytest.TempPathFactory) -> WatchedRun:
    """A run in training, with a model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(STORED / "ddae", folder)
    run = WatchedRun(folder, lambda: open_stored("ddae"))
    run.folder.log({"images": 64, "event": "train", "loss": 0.5, "learning_rate": 1e-3, "images_per_second": 20.0})
    run.load_newest()
    return run


@pytest.fixture(scope="module")
def url(run: WatchedRun):
    page = build_page(run.demo, run)
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


def test_the_training_is_followed_without_a_click(browser, url: str, run: WatchedRun, tmp_path: Path) -> None:
    tab = browser.new_page(viewport={"width": 400, "height": 900})
    tab.goto(url)
    tab.get_by_role("tab", name="Training").click()
    tab.wait_for_function("document.querySelector('#progress').innerText.includes('Loss 0.5 at')")
    tab.wait_for_selector("#newest img")
    before = tab.locator("#loss img").get_attribute("src")
    run.folder.log({"images": 128, "event": "train", "loss": 0.25, "learning_rate": 1e-3, "images_per_second": 20.0})
    tab.wait_for_function("document.querySelector('#progress').innerText.includes('Loss 0.25 at')")
    assert tab.locator("#loss img").get_attribute("src") != before
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    tab.screenshot(path=str(tmp_path / "training.png"), full_page=True)
    tab.close()


# What a visitor is told of the control in focus: its name, and whether an outline shows where the focus is.
IN_FOCUS = """() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  e.dataset.visited = true;
  const parts = [...e.querySelectorAll("[aria-label], img[alt]")].map(x => x.getAttribute("aria-label") || x.alt);
  const labels = [...(e.labels || [])].map(x => x.innerText);
  const name = [e.getAttribute("aria-label"), ...labels, e.innerText, ...parts].find(Boolean) || "";
  const style = getComputedStyle(e);
  return {name: name.trim(), outlined: style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2};
}"""
NOT_VISITED = """() => [...document.querySelectorAll("button, input, a[href], select, textarea")]
  .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.disabled && e.type !== "file")
  .filter(e => e.getBoundingClientRect().width > 0 && !e.dataset.visited).map(e => e.outerHTML)"""


def test_every_control_is_reached_seen_and_used_by_keyboard(browser, url: str, tmp_path: Path) -> None:
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.goto(url)
    tab.wait_for_selector("#examples img")
    tab.add_style_tag(content="* { transition: none !important; }")  # outlines are there at once

    def walk(until: str | None = None) -> list[dict]:
        """Press Tab to the end of the page, or to the control of a name."""
        visited = []
        for _ in range(100):
            tab.keyboard.press("Tab")
            found = tab.evaluate(IN_FOCUS)
            if found is None and visited and until is None:
                return visited
            if found is not None:
                visited.append(found)
                if found["name"] == until:
                    return visited
        raise AssertionError(f"{until!r} is not among {visited}")

    walk("Drop an image file here to upload")
    PIL.Image.radial_gradient("L").save(tmp_path / "mine.png")
    with tab.expect_file_chooser() as chooser:
        tab.keyboard.press("Enter")
    chooser.value.set_files(str(tmp_path / "mine.png"))
    tab.wait_for_function("document.querySelector('#status').innerText.includes('greyscale')")
    walk("Thumbnail 3 of 8")
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelector('#status').innerText.includes('Example 3 is shown')")
    tab.wait_for_selector("#denoised img")
    for name, button, result in (
        ("Layer × t", "Draw the grid", "#grid img"),
        ("Neighbours", "Find neighbours", "#neighbours img"),
        ("Duplicates", "Find pairs", "#pairs img"),
        ("Samples", "Generate", "#samples img"),
    ):
        walk(name)
        tab.keyboard.press("Enter")
        walk(button)
        tab.keyboard.press("Enter")
        tab.wait_for_selector(result)
    for name in [found.inner_text() for found in tab.get_by_role("tab").all()]:
        walk(name)
        tab.keyboard.press("Enter")
        walk()
        controls = walk()
        assert [c for c in controls if not (c["name"] and c["outlined"])] == [], name
        assert tab.evaluate(NOT_VISITED) == [], name
    tab.close()
