"""A person clicks through every page in a real browser: nothing breaks, nothing leaves the machine, all can be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graphbuild.tasks.config import HeldOut, SamplerConfig
from graphbuild.view.server import Viewer
from tests.support.viewed import HOSTILE_NAME

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SERIOUS = {"serious", "critical"}

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright leaves its pipes to the collector
]


class Browser:
    """A page of Chromium, and what it complained about or asked of others."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        page.set_default_timeout(10_000)
        page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}") if said.type != "log" else None)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda asked: None if asked.url.startswith(url) else self.faults.append(f"asks {asked.url}"))
        page.on("response", lambda got: self.faults.append(f"{got.status} {got.url}") if got.status >= 400 else None)

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def check(self) -> None:
        """No fault so far, no serious one of accessibility, and no page wider than the window."""
        from axe_playwright_python.sync_playwright import Axe

        self.page.wait_for_load_state()
        assert self.faults == [], (self.page.url, self.faults)
        found = Axe().run(self.page).response["violations"]
        faults = {each["id"]: [node["html"] for node in each["nodes"]] for each in found if each["impact"] in SERIOUS}
        assert faults == {}, self.page.url
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{self.page.url} is too wide"
        broken = (
            "[...document.images].filter((i) => i.complete && !i.naturalWidth && i.loading != 'lazy').map((i) => i.src)"
        )
        assert self.page.evaluate(broken) == [], self.page.url


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any, serve: Callable[..., Viewer], seen: Path) -> Iterator[Callable[..., Browser]]:
    opened = []

    def start(width: int = 1280, scheme: str = "light", graph: Path | None = None, **settings: Any) -> Browser:
        viewer = serve(graph or seen / "graph", training=(seen / "lora",), **settings)
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.append(context)
        return Browser(context.new_page(), viewer.address.rstrip("/"))

    yield start
    for context in opened:
        context.close()


PAGES = ("/", "/item/0", "/item/4", "/failures", "/coverage", "/runs", "/versions", "/tasks", "/training")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_can_be_read(browse: Callable[..., Browser], width: int, scheme: str) -> None:
    browser = browse(width, scheme)
    for path in PAGES:
        browser.open(path)
        assert browser.page.locator("h1").count() == 1
        browser.check()


def test_clicking_through(browse: Callable[..., Browser]) -> None:
    browser = browse()
    page = browser.page
    browser.open("/")
    assert page.locator("h1").inner_text() == "13 items"
    assert page.locator(".card").count() == 13
    page.get_by_label("Kind").select_option("hed")
    page.wait_for_url("**/?kind=hed**")
    page.get_by_label("Outcome").select_option("failed")
    page.wait_for_url("**status=failed**")
    assert "order" not in page.url or "order=item" in page.url
    assert page.locator(".card .badge").all_inner_texts() == ["failed: error"] * 3
    page.get_by_label("Annotator").select_option("lsd")
    page.wait_for_url("**/?annotator=lsd**")
    assert "kind" not in page.url
    browser.check()
    page.get_by_label("Annotator").select_option("fragile")
    page.wait_for_url("**/?annotator=fragile&status=failed**")
    assert page.locator(".card .badge").all_inner_texts() == ["failed: error"] * 3
    page.locator(".card a").first.click()
    page.wait_for_url("**/item/*")
    row = page.locator("tr#hed-0")
    assert "too wide" in row.inner_text() and "graphbuild retry" in row.locator("code").inner_text()
    page.get_by_label("Opacity").fill("80")
    assert page.locator("[data-image=above]").evaluate("image => image.style.opacity") == "0.8"
    page.get_by_label("Above").select_option("lines")
    page.wait_for_function("document.querySelector('[data-image=above]').src.includes('/lines/')")
    with page.expect_download() as download:
        page.get_by_label("Download image", exact=True).click()
    assert Path(download.value.path()).read_bytes()[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")
    for name in ("Failures", "Coverage", "Runs", "Versions", "Tasks", "Training"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        page.wait_for_url(f"**/{name.lower()}*")
        assert page.locator("[aria-current=page]").inner_text() == name
    browser.check()


def test_keys(browse: Callable[..., Browser]) -> None:
    browser = browse()
    page = browser.page
    browser.open("/")
    page.keyboard.press("/")
    page.keyboard.type("p04")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=p04")
    assert page.locator(".key").all_inner_texts() == ["p04-again.jpg", "p04.jpg"]
    browser.open("/item/4")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/item/5")
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.wait_for_url("**/coverage")
    browser.check()


def test_hostile_names_and_captions_are_text(browse: Callable[..., Browser]) -> None:
    browser = browse()
    for path in ("/?text=onerror", "/?kind=caption", "/item/0", "/versions?kind=canny", "/tasks?path=canny-to-image"):
        browser.open(path)
        assert browser.page.title() != "taken" and browser.page.locator("main script").count() == 0
        browser.check()
    browser.open("/item/0")
    assert browser.page.locator("h1").inner_text() == HOSTILE_NAME
    said = browser.page.locator("dd").nth(1).inner_text()
    assert said.startswith("<script>document.title='taken'</script> \\x1b[31mred")
    assert "{{ 7 * 7 }}" in said and "line\\nbreak" in said and "\\u202e" in said


def test_held_out_tasks_are_marked(browse: Callable[..., Browser]) -> None:
    config = SamplerConfig(held_out=(HeldOut(given=("canny",), holes=("image",)),))
    browser = browse(sampler=config)
    browser.open("/tasks?path=canny-to-image")
    assert "held out: never drawn in training" in browser.page.locator("main").inner_text()
    browser.check()


def test_excluding_from_the_page(browse: Callable[..., Browser], seen: Path, tmp_path: Path) -> None:
    graph = Path(shutil.copytree(seen / "graph", tmp_path / "graph"))
    browser = browse(graph=graph, edit=True)
    page = browser.page
    browser.open("/item/2")
    page.get_by_label("Exclude, because").fill("a takedown")
    page.get_by_role("button", name="Exclude").click()
    page.get_by_text("Excluded from every task: a takedown").wait_for()
    browser.check()
    page.get_by_role("button", name="Put it back").click()
    page.get_by_label("Exclude, because").wait_for()
    assert "takedown" not in page.locator("main").inner_text()
    browser.check()
