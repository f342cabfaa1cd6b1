"""What a notebook shows of a graph and what comes out of it."""

from __future__ import annotations

import io
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

import graphbuild as gb
from tests.support.annotators import build, complete, write_photos
from tests.support.viewed import HOSTILE_NAME, Fragile


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> gb.Graph:
    folder = tmp_path_factory.mktemp("notebook")
    photos = write_photos(folder / "photos", range(3))
    (photos / "p00.jpg").rename(photos / HOSTILE_NAME)
    (photos / f"{HOSTILE_NAME[:-4]}.txt").write_text("<script>alert(1)</script> a face")
    report = complete(build(photos, folder / "graph", ["canny", "source_caption", Fragile()]))
    shown = report._repr_html_()
    assert "<td>canny</td>" in shown and "units in" in shown
    return gb.Graph.open(folder / "graph")


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(b64decode(data))) for data in found]


def test_a_graph_shows_its_kinds(graph: gb.Graph) -> None:
    shown = graph._repr_html_()
    assert "3 items" in shown and "<td>canny</td><td>3</td><td>canny</td>" in shown


def test_an_item_shows_its_nodes(graph: gb.Graph) -> None:
    shown = str(graph.show(0))
    image, canny, *_ = pictures(shown)
    assert np.array_equal(np.asarray(image), graph.read(0, "image").array())
    assert np.array_equal(np.asarray(canny.convert("RGB")), graph.read(0, "canny").array())
    assert "&lt;script&gt;" in shown and "<script" not in shown
    assert "hed: item 2 has no hed: failed (error)" in str(graph.show(2))


def test_nodes_and_tasks_are_pictures_or_words(graph: gb.Graph) -> None:
    node = graph.read(0, "canny")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(node._repr_png_() or b"")).convert("RGB")), node.array())
    caption = graph.read(0, "caption")
    assert node._repr_html_() is None and caption._repr_png_() is None
    assert "&lt;script&gt;alert(1)&lt;/script&gt; a face" in str(caption._repr_html_())
    sampler = gb.PathSampler(graph, on_missing="drop")
    task = sampler.task(4, 64)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(task._repr_png_()))), np.asarray(task.image()))
    shown = pictures(str(sampler.show(2, start=4, resolution=64)))
    assert len(shown) == 2 and np.array_equal(np.asarray(shown[0]), np.asarray(task.image()))
    mixture = gb.TaskMixture([(graph, "graph200k", 1.0)], on_missing="drop")
    assert len(pictures(str(mixture.show(3, resolution=64)))) == 3
