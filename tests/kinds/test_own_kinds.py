"""Kinds that the library does not know, from an author's annotator through a list of tasks to words and pictures."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from graphbuild.annotators.base import Condition, Derived, Request
from graphbuild.cli import app
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig, DegradeAt, HeldOut, SamplerConfig
from graphbuild.tasks.explain import sample as explained
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete

SALIENCY = Kind(
    name="saliency", family="condition", codec="jpeg_gray", description="what draws the eye, bright",
    phrases=("a saliency map", "a map of what draws the eye"),
)  # fmt: skip
REGIONS = Kind(
    name="regions", family="condition", codec="labels", description="halves of a picture", phrases=("a map of halves",)
)
LIST = """
kinds:
  saliency: {codec: jpeg_gray, phrases: [a saliency map, a map of what draws the eye]}
  regions: {codec: labels, description: halves of a picture, phrases: [a map of halves]}
content: {from: caption, of: image}
paths:
  - {name: look, cells: [saliency, image]}
  - {name: halves, cells: [regions, image], weight: 2}
  - {name: plain, cells: [canny, image]}
"""


HAZE = Kind(name="haze", family="degradation", codec="png", description="a veil of white", phrases=("a photo in haze",))


@dataclass(frozen=True, kw_only=True)
class Haze(Condition):
    """A damage that is stored, unlike those of the library."""

    makes: ClassVar = (HAZE,)
    code_version: ClassVar = 1

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"haze": request.inputs["image"].array() // 2 + np.uint8(100)}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Saliency(Condition):
    """Distance from the mean colour; and the upper and lower half, named."""

    makes: ClassVar = (SALIENCY, REGIONS)
    code_version: ClassVar = 1

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._one(request.inputs["image"].array()) for request in batch]

    def _one(self, picture: Any) -> Derived:
        far = np.abs(cv2.GaussianBlur(picture, (0, 0), 3) - picture.mean((0, 1))).mean(2)
        halves = np.zeros(far.shape, np.uint8)
        halves[len(halves) // 2 :] = 1
        attrs = {"labels": ["above", "below"], "palette": [[255, 0, 0], [0, 0, 255]]}
        return Derived({"saliency": far.clip(0, 255).astype(np.uint8), "regions": halves}, attrs=attrs)


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "g"
    complete(build(photos, out, ["canny", Saliency(), Haze()], shard_size=4))
    return out


@pytest.fixture
def paths(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(LIST)
    return file


def test_a_kind_of_ones_own_is_sampled(folder: Path, paths: Path) -> None:
    """Guards against graphs that can be built and not trained on."""
    sampler = PathSampler(Graph.open(folder), paths, seed=1)
    tasks = [sampler.task(index, resolution=48) for index in range(60)]
    words = {task.walk.path.name: task.evaluation.text for task in tasks}
    assert words.keys() == {"look", "halves", "plain"}
    assert any(phrase in words["look"] for phrase in SALIENCY.phrases)
    assert "above in red" in words["halves"] and "below in blue" in words["halves"]
    for task in tasks:
        assert all(cell.shape == (48, 48, 3) for row in task.cells(filled=True) for cell in row)
    task = next(task for task in tasks if task.walk.path.name == "look")
    task.image()
    assert explained(sampler, task.walk.index)["columns"][0]["phrase"] in SALIENCY.phrases


def test_declared_in_python_as_the_annotator_declares_it(folder: Path, paths: Path) -> None:
    """Guards against a second way that draws other tasks."""
    own = (SALIENCY, REGIONS)
    made = PathSet(
        name="mine",
        paths=(
            TaskPath(name="look", cells=("saliency", "image"), targets=(1,), own=own),
            TaskPath(name="halves", cells=("regions", "image"), targets=(1,), weight=2, own=own),
            TaskPath(name="plain", cells=("canny", "image"), targets=(1,)),
        ),
    )
    graph = Graph.open(folder)
    drawn = [[(walk.path.name, walk.rows, walk.holes) for walk in PathSampler(graph, each).walks(0, 50)]
             for each in (made, paths)]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert pickle.loads(pickle.dumps(made)) == made
    assert kind_of("edit_local.saliency", own).phrases == SALIENCY.phrases


@pytest.mark.parametrize("at", get_args(DegradeAt))
def test_a_stored_degradation_is_read(folder: Path, at: DegradeAt) -> None:
    """Guards against looking for it among the degradations that are computed."""
    paths = PathSet(name="own", paths=(TaskPath(name="dehaze", cells=("haze", "image"), targets=(1,), own=(HAZE,)),))
    sampler = PathSampler(Graph.open(folder), paths)
    task = sampler.task(sampler.walk(0), 48, cells=CellConfig(degrade_at=at))
    assert np.array_equal(task.cell(0, 0), sampler.task(0, 48).cell(0, 0)) and task.cell(0, 0).min() >= 100


def test_own_kinds_are_held_out_and_unknown_ones_refused(folder: Path, paths: Path) -> None:
    """Guards against a mistyped held-out task, which would be trained on."""
    graph = Graph.open(folder)
    config = SamplerConfig(held_out=(HeldOut(given=("saliency",), holes=("image",)),))
    sampler = PathSampler(graph, paths, on_missing="drop", config=config)
    assert {walk.path.name for walk in sampler.walks(0, 200)} == {"halves", "plain"}
    with pytest.raises(ValueError, match=r"unknown kind 'salience' \(did you mean 'saliency'\?\); known kinds: .*"):
        PathSampler(graph, paths, config=SamplerConfig(held_out=(HeldOut(given=("salience",)),)))


def test_the_command_line_takes_the_list(folder: Path, paths: Path, tmp_path: Path) -> None:
    """Guards against a list that only Python can use."""
    listed = CliRunner().invoke(app, ["tasks", str(folder), "--paths", str(paths), "--json"])
    assert {row["name"]: row["items"] > 0 for row in json.loads(listed.output)} == dict.fromkeys(
        ("look", "halves", "plain"), True
    )
    options = ["--paths", str(paths), "--count", "3", "--resolution", "32", "--out", str(tmp_path / "grids")]
    drawn = CliRunner().invoke(app, ["sample", str(folder), *options])
    assert drawn.exit_code == 0, drawn.output
    assert len(list((tmp_path / "grids").glob("*.png"))) == 3


def test_a_kind_is_declared_one_way(folder: Path, tmp_path: Path) -> None:
    """Guards against label maps drawn as pictures because a task list says another codec than the annotator."""
    (tmp_path / "odd.yaml").write_text(LIST.replace("codec: labels", "codec: png8"))
    with pytest.raises(ValueError, match=r"'regions'.*odd.* the codec png8.*labels.*Saliency"):
        PathSampler(Graph.open(folder), tmp_path / "odd.yaml", on_missing="drop")
