"""The report in one file, and the sheet of the dataset card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.store.card import renew_card
from graphbuild.store.exclusions import exclude
from graphbuild.store.graph import Graph
from graphbuild.store.verify import verify
from tests.view.test_browser import CHROMIUM, FLAGS, SERIOUS


@pytest.fixture(scope="module")
def written(seen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A graph with the sheet of its card, and its report."""
    folder = tmp_path_factory.mktemp("report")
    graph = Path(shutil.copytree(seen / "graph", folder / "graph"))
    result = CliRunner().invoke(app, ["report", str(graph), "--out", str(folder / "report.html"), "--card"])
    assert result.exit_code == 0, result.output
    return graph, folder / "report.html"


def test_it_says_what_the_graph_holds(written: tuple[Path, Path]) -> None:
    text = written[1].read_text(encoding="utf-8")
    parts = ["Coverage, sizes and speeds", "One item", "Pictures", "Grid tasks", "Failures", "Scores", "Provenance"]
    assert re.findall(r"<h2>(.*?)</h2>", text) == [*parts, "Licences"]
    assert "hed: error" in text and f"graphbuild retry {written[0]}" in text
    assert "&lt;script&gt;document.title=" in text and "<script" not in text
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"", text) == []
    assert text.count("data:image/jpeg;base64,") > 60


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_browser_shows_it_alone(written: tuple[Path, Path]) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda said: faults.append(said.text))
        page.on("request", lambda asked: None if asked.url.startswith("data:") else faults.append(asked.url))
        page.goto(written[1].as_uri())
        assert faults == [written[1].as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = Axe().run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in SERIOUS] == []
        browser.close()


def test_the_card_shows_the_sheet(written: tuple[Path, Path]) -> None:
    graph = written[0]
    text = (graph / "README.md").read_text(encoding="utf-8")
    assert "![Nodes of the first items](sheet.jpg)" in text
    assert "| hed | 1 | 3 | " in text and "Licences: not said (13)." in text
    assert np.asarray(Image.open(graph / "sheet.jpg")).std() > 30
    assert verify(str(graph), "full").problems == []


def test_what_is_excluded_is_shown_no_more(written: tuple[Path, Path], tmp_path: Path) -> None:
    graph = Path(shutil.copytree(written[0], tmp_path / "graph"))
    opened = Graph.open(graph)
    (item_id,) = (row["item_id"] for row in opened.items().to_pylist() if row["key"] == "p01.png")
    exclude(opened.fs, [item_id], "takedown")
    renew_card(graph)
    assert not (graph / "sheet.jpg").exists() and "sheet.jpg" not in (graph / "README.md").read_text()
    CliRunner().invoke(app, ["report", str(graph), "--out", str(tmp_path / "report.html")])
    assert "p01.png" in written[1].read_text() and "p01.png" not in (tmp_path / "report.html").read_text()
    assert verify(str(graph), "full").problems == []
