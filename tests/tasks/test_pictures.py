"""Grid tasks from rows of pictures: they are those of a graph that holds the same pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from graphbuild.kinds.registry import Kind
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.pictures import PictureRows
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete

SALIENCY = Kind(
    name="saliency",
    family="condition",
    codec="jpeg_gray",
    description="what draws the eye",
    phrases=("a saliency map",),
)


def picture(seed: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("fit", ["crop_square", "stretch_square", "aspect"])
def test_the_cells_are_those_of_a_graph_with_the_same_pictures(photos: Path, tmp_path: Path, fit: Any) -> None:
    """Sampling from own pictures must show a model what it was trained on."""
    complete(build(photos, tmp_path / "g", ["canny", "lsd"], limit=3))
    graph = Graph.open(tmp_path / "g")
    path = TaskPath(name="own", cells=("canny", "lines", "image"), targets=(2,))
    sampler = PathSampler(graph, PathSet(name="one", paths=(path,)))
    walk = sampler.walk(0, items=[0, 1], columns=[0, 1, 2], hole=2)
    cells = CellConfig(cell_fit=fit)
    wanted = sampler.task(walk, 48, cells=cells)
    rows = [[graph.read(item, kind).array() for kind in path.kinds] for item in (0, 1)]
    truth = PictureRows(rows, path.kinds).task(48, cells=cells)
    hidden = PictureRows([rows[0], [*rows[1][:2], None]], path.kinds).task(48, cells=cells)
    for task, filled in ((truth, True), (truth, False), (hidden, False)):
        for row, expected in zip(task.cells(filled=filled), wanted.cells(filled=filled), strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(row, expected, strict=True))
    ours, theirs = hidden.pipeline_kwargs(), wanted.pipeline_kwargs()
    assert ours["image"][1][2] is None and np.array_equal(ours["image"][1][0], theirs["image"][1][0])
    assert not hidden.cells(filled=True)[1][2].any()


def test_any_rows_holes_and_kinds(tmp_path: Path) -> None:
    """Own kinds, a kind twice, files and bytes, one row or many, several holes: all reach cells and words."""
    (tmp_path / "b.png").write_bytes(png(picture(1)))
    kinds = [SALIENCY, "image", "image"]
    rows = PictureRows([[picture(0), tmp_path / "b.png", png(picture(2))], [picture(3), None, None]], kinds)
    task = rows.task(32)
    assert task.holes == task.walk.targets == (1, 2) and task.hole_mask.sum() == 2
    assert task.rows[0][1].array().tolist() == picture(1).tolist()
    assert task.rows[0][2].array().tolist() == picture(2).tolist()
    assert "[IMAGE1] a saliency map" in task.prompt and "2 rows and 3 columns" in task.prompt
    assert task.document().holes == [1, 2] and task.image().width > 96
    alone = PictureRows([[picture(0), None]], [SALIENCY, "image"], caption="A red door.").task(32)
    assert alone.prompt.endswith("The last image of the last row depicts: A red door.")
    assert alone.pipeline_kwargs()["content_prompt"] == "A red door."
    reverse = PictureRows([[picture(0), picture(1)]], [SALIENCY, "image"]).task(32, holes=[0])
    assert reverse.holes == (0,) and np.array_equal(reverse.cells()[0][1], reverse.cell(0, 1))
    free = PictureRows([[None, None]], ["image", "reference"], caption="A red door.").task(32)
    assert free.holes == (0, 1) and not np.any(free.cells())


def test_a_degraded_picture_is_shown_as_it_is() -> None:
    """`gaussian_noise` of one's own is a noisy photo, whatever `degrade_at` says; computing it needs an `image`."""
    noisy = picture(4, 32, 32)
    for degrade_at in ("512", "source", "cell"):
        cells = CellConfig(degrade_at=degrade_at)  # type: ignore[arg-type]
        task = PictureRows([[noisy, None]], ["gaussian_noise", "image"]).task(32, cells=cells)
        assert np.array_equal(task.cell(0, 0), noisy)


def test_the_seed_chooses_the_phrases() -> None:
    rows = PictureRows([[picture(0), None]], ["canny", "image"])
    prompts = {rows.task(32, seed=seed).prompt for seed in range(12)}
    assert len(prompts) > 3 and rows.task(32, seed=5).prompt == rows.task(32, seed=5).prompt


@pytest.mark.parametrize(
    ("rows", "kinds", "says"),
    [
        ([], ["canny", "image"], "at least the query row"),
        ([[picture(0)]], ["canny", "image"], r"row 0: 1 pictures; allowed: 2 \(canny, image\)"),
        ([[picture(0), None], [picture(0), None]], ["canny", "image"], "row 0, image: no picture"),
        ([[picture(0), b"no picture"]], ["canny", "image"], "row 0, image: .*"),
        ([["no/such.png", None]], ["canny", "image"], "row 0, canny: no/such.png"),
        ([[picture(0)[:, :, 0], None]], ["canny", "image"], r"row 0, canny: uint8 of shape \(40, 60\)"),
        ([[picture(0), None]], ["cany", "image"], "unknown kind 'cany'"),
        ([[picture(0), None]], ["caption", "image"], "is a text"),
    ],
)
def test_refusals_name_row_and_kind(rows: Any, kinds: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PictureRows(rows, kinds).task(32)


@pytest.mark.parametrize("holes", [[], [0], [2], [-1, 1]])
def test_holes_are_columns_and_cover_what_is_missing(holes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"holes: .*allowed: columns 0\.\.1"):
        PictureRows([[picture(0), None]], ["canny", "image"]).task(32, holes=holes)
