"""The site builds, says what the code has, and asks nothing of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import graphbuild as gb
from graphbuild.annotators import BUILTIN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "mkdocs.yml").is_file():
        pytest.skip("there is no site here")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "GRAPHBUILD_TEST_DATA": ""}  # where no weights are
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text()


@pytest.mark.slow
def test_pages_made_from_the_code_have_all_of_it(site: Path) -> None:
    """Guards against a command, an annotator or a public name that the reference lacks."""
    said = {name: _page(site, name) for name in ("cli", "annotator-table", "api")}
    for command in ("graphbuild run", "graphbuild models fetch", "graphbuild-train sample"):
        assert f"<code>{command}</code>" in said["cli"]
    assert "--shard-size" in said["cli"]
    assert all(f"<code>{name}</code>" in said["annotator-table"] for name in BUILTIN)
    assert all(f'id="graphbuild.{name}"' in said["api"] for name in gb.__all__)


@pytest.mark.slow
def test_annotators_without_weights_have_an_example(site: Path) -> None:
    """Guards against a table without pictures, and against black ones."""
    shown = re.findall(r'<img alt="Example of (\w+)"[^>]* src="../(examples/[^"]+)"', _page(site, "annotator-table"))
    assert {"canny", "lsd", "grabcut", "dis_flow", "style_picker", "foreground", "masked_brush"} <= {*dict(shown)}
    for name, file in shown:
        picture = np.asarray(Image.open(site / file))
        assert picture.std() > 30, name
        if name in BUILTIN:  # what is made is another picture than what is read
            half = (picture.shape[1] - 4) // 2
            assert np.abs(picture[:, :half].astype(int) - picture[:, -half:]).mean() > 10, name


@pytest.mark.slow
def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    """Guards against a site that tells others who reads it, and is broken without a network."""
    loaded = (
        r'<(?:script|img|iframe)[^>]*\ssrc="https?:[^"]+',
        r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:[^"]+',
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert [hit for page in pages for pattern in loaded for hit in re.findall(pattern, page.read_text())] == []
