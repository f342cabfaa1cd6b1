"""Layouts of tasks: what is shown where, in which order, and with which words."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.store.graph import Graph
from graphbuild.tasks import sheet
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import Keep
from graphbuild.tasks.paths import PathSet, TaskPath, load
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.graphs import same, write_graph

LIST = """
content: {from: caption, of: image}
paths:
  - {name: control, canvas: [[canny, canny], [canny, image]]}
  - {name: middle, canvas: [[canny, image, gray]], target: image}
  - {name: beside, layout: canvas, cells: [gray, image]}
  - {name: seen, layout: views, cells: [canny, image]}
  - {name: plain, cells: [canny, gray, image], order: fixed}
  - {name: long, layout: canvas, cells: [gray, image], words: full}
"""


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> PathSet:
    file = tmp_path_factory.mktemp("lists") / "list.yaml"
    file.write_text(LIST)
    return load(file)


@pytest.fixture(scope="module")
def sampler(photos: Path, listed: PathSet, tmp_path_factory: pytest.TempPathFactory) -> PathSampler:
    folder = tmp_path_factory.mktemp("arranged")
    out, few = folder / "g", folder / "few"
    few.mkdir()
    for file in sorted(photos.glob("*.jpg"))[:5]:
        shutil.copy(file, few)
        (few / f"{file.stem}.txt").write_text(f"what {file.stem} shows")
    complete(build(few, out, ["canny", "source_caption"], shard_size=18))
    config = SamplerConfig(rows=(0.5, 0.5), mask="target", keep=Keep(task=1, content=1, all=1))
    return PathSampler(Graph.open(out), listed, config=config)


def task_of(sampler: PathSampler, name: str, rows: int = 1) -> GridTask:
    items = next(walk.rows for walk in sampler.walks(0, 40) if len(walk.rows) == rows)
    return sampler.task(sampler.walk(3, path=name, items=items), 48)


def shown(task: GridTask) -> list[list[str]]:
    """Kinds where they are shown, the picture to be made in capitals."""
    return [
        [task.kinds[place[1]].name.upper() if task.hole_mask[place] else task.kinds[place[1]].name for place in line]
        for line in task.places
    ]


def test_cells_are_shown_where_the_list_draws_them(sampler: PathSampler) -> None:
    """Guards against a target that is always last, and conditions in another order than was declared."""
    assert shown(task_of(sampler, "control")) == [["canny", "canny"], ["canny", "IMAGE"]]
    assert shown(task_of(sampler, "middle")) == [["canny", "IMAGE", "gray"]]
    assert shown(task_of(sampler, "beside", rows=2)) == [["gray", "image"], ["gray", "IMAGE"]]
    assert shown(task_of(sampler, "seen", rows=2)) == [["IMAGE", "canny", "canny", "image"]]
    for walk in sampler.walks(0, 60):
        assert walk.columns == tuple(range(len(walk.columns))), "a fixed order is never shuffled"


def test_the_picture_shows_the_canvas_as_it_is_trained(sampler: PathSampler) -> None:
    """Guards against a sheet that shows rows where a canvas is trained; its parts touch each other."""
    task = task_of(sampler, "control")
    drawn = np.asarray(task.image())
    top, left = 2 * sheet.LABEL, sheet.MARGIN  # two lines have other labels
    part = drawn[top : top + 96, left : left + 96]
    edges, photo = task.cell(0, 0), task.cell(0, 1)
    assert np.array_equal(part[:48, :44], edges[:, :44]) and np.array_equal(part[:44, 48:92], edges[:44, :44])
    assert np.array_equal(part[54:90, 54:90], photo[6:42, 6:42])
    assert {tuple(drawn[top + 70, left + 48 + at]) for at in (-2, 49)} == {sheet.HOLE}


def test_a_canvas_says_the_content_and_nothing_else(sampler: PathSampler) -> None:
    """Guards against sentences about grids in CLIP's 75 tokens: ONE-PIC's text is the description of the picture."""
    task = task_of(sampler, "control")
    caption = sampler.graph.read(task.walk.rows[-1], "caption").text
    assert task.prompt == task.evaluation.text == caption
    assert task_of(sampler, "long").prompt.startswith(f"The last image of the last row depicts: {caption} Th")
    assert task_of(sampler, "plain").prompt.startswith("A grid layout with 1 rows and 3 columns")
    dropped = task.words("pipeline", Keep(task=1, content=0, all=1))
    assert dropped.text == ""


def test_a_canvas_is_no_task_for_the_pipeline(sampler: PathSampler) -> None:
    with pytest.raises(ValueError, match="path 'control': layout canvas, words content; allowed for the pipeline"):
        task_of(sampler, "control").pipeline_kwargs()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"canvas": (("canny", "image"), ("canny",))}, "allowed: lines of one length"),
        ({"canvas": (("canny", "depth", "image"),)}, "'depth' is not both a cell and on the canvas"),
        ({"canvas": (("canny", "image", "image"),)}, "the target 'image' comes 2 times; allowed: once"),
        ({"canvas": (("canny", "image"),), "layout": "rows"}, "layout: 'rows'; allowed beside a canvas: canvas"),
        ({"layout": "views", "order": "shuffled"}, "order: 'shuffled'; allowed for layout views: fixed"),
        ({"layout": "table"}, "layout: 'table'; allowed: rows, canvas, views"),
        ({"words": "few"}, "words: 'few'; allowed: full, content, tokens"),
        ({"views": (3, 2)}, r"views: \(3, 2\); allowed: the fewest and the most items"),
    ],
)
def test_what_cannot_be_arranged_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskPath(name="a", cells=("canny", "image"), targets=(1,), **fields)


def test_an_objective_arranges_only_what_has_no_layout(listed: PathSet) -> None:
    """Guards against a canvas that is trained as rows; and a list as it always was keeps its digest, so that runs
    resume."""
    bare = PathSet(name="a", paths=(TaskPath(name="a", cells=("canny", "image"), targets=(1,)),))
    assert bare.arranged("rows").digest == bare.digest != bare.arranged("canvas").digest
    with pytest.raises(ValueError, match="path 'control': layout: 'canvas'; allowed: rows"):
        listed.arranged("rows")


def test_views_are_of_one_group(tmp_path: Path) -> None:
    """Guards against a portrait from pictures of two people, and groups that are too small or never drawn."""
    groups = [*"aaaaabbbccd", None]
    spine = [{"group": group} for group in groups]
    graph = write_graph(tmp_path / "g", spine, {"canny": same(12, 1, "image")})
    path = TaskPath(name="id", cells=("image",), targets=(0,), views=(2, 4), layout="views")
    sampler = PathSampler(graph, PathSet(name="one", paths=(path,)), config=SamplerConfig(rows=(1.0,)))
    counts, queries = Counter[int](), Counter[int]()
    for walk in sampler.walks(0, 3000):
        assert len({groups[item] for item in walk.rows}) == 1 and len({*walk.rows}) == len(walk.rows)
        counts[len(walk.rows)] += 1
        queries[walk.rows[-1]] += 1
    assert all(900 < counts[rows] < 1100 for rows in (2, 3, 4)) and set(queries) == set(range(10))
    assert sampler.most_rows() == {"id": 4} and sampler.walk(5) == sampler.walks(0, 9)[5]
    with pytest.raises(ValueError, match="allowed: different items of one group"):
        sampler.walk(0, items=[0, 5])
    big = PathSet(name="one", paths=(TaskPath(name="id", cells=("image",), targets=(0,), views=(6, 9)),))
    with pytest.raises(ValueError, match="no group has 6 such items"):
        PathSampler(graph, big)
