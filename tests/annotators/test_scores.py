"""Scores of nodes: each fault gets the lowest, and a sampler that asks for good ones draws no faulty one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import graphbuild.cli
from graphbuild.annotators.base import Annotator, Condition, Derived, Request
from graphbuild.annotators.changed import Changed
from graphbuild.annotators.cycle import Cycle
from graphbuild.annotators.marigold_normals import normal_colours
from graphbuild.annotators.mask_boxes import MaskBoxes
from graphbuild.annotators.normal_depth import NormalDepth
from graphbuild.annotators.outside_mask import OutsideMask
from graphbuild.annotators.pair_quality import PairQuality
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.paths import PathSet, TaskPath, load
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete

SIDE = 96
FAULTS = {"leaks": "edit_local", "unchanged": "edit_local", "stranger": "style_semantic", "swapped": "mask",
          "tilted": "normal"}  # fmt: skip
"""Item -> the kind of it that is faulty."""
KEYS = (*FAULTS, "good0", "good1", "good2", "good3")
Picture = NDArray[np.uint8]


def scene(number: int) -> tuple[Picture, NDArray[np.bool_], NDArray[np.bool_]]:
    """A picture of a disc and a square before a rough slope, and where they are; each number has other places."""
    draws = np.random.default_rng(number)
    slope = np.linspace(40, 160, SIDE)[None, :] if number % 2 else np.linspace(160, 40, SIDE)[:, None]
    rough = cv2.GaussianBlur(draws.normal(0, 60, (SIDE, SIDE)), (0, 0), 1.5)
    picture = np.repeat(np.clip(slope + rough, 0, 255).astype(np.uint8)[..., None], 3, 2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    disc = np.hypot(rows - draws.integers(24, 40), columns - draws.integers(24, 70)) < 16
    top, left = (int(draws.integers(60, 70)), int(draws.integers(10, 60)))
    square = (rows >= top) & (rows < top + 20) & (columns >= left) & (columns < left + 24)
    picture[disc], picture[square] = (230, 60, 40), (40, 90, 220)
    return picture, disc, square


def numbered(request: Request) -> int:
    return KEYS.index(Path(request.item.key).stem)


@dataclass(frozen=True, kw_only=True)
class Objects(Annotator):
    """Where the objects are: disc as foreground, both as boxes and mask; the masks of `swapped` are each other's."""

    makes: ClassVar[tuple[str, ...]] = ("foreground_mask", "boxes", "mask")

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._of(request) for request in batch]

    def _of(self, request: Request) -> Derived:
        _, disc, square = scene(numbered(request))
        palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
        objects = [
            {"label": name, "colour": colour, "box": [*map(int, (c.min(), r.min(), c.max() + 1, r.max() + 1))]}
            for name, colour, (r, c) in zip(
                ("disc", "square"), palette[1:], map(np.nonzero, (disc, square)), strict=True
            )
        ]
        labels = np.where(disc, 1, np.where(square, 2, 0)).astype(np.uint8)
        if request.item.key.startswith("swapped"):
            labels = np.where(labels > 0, 3 - labels, 0).astype(np.uint8)
        boxes = {"width": SIDE, "height": SIDE, "boxes": objects}
        return Derived({"foreground_mask": disc, "boxes": boxes, "mask": labels}, attrs={"palette": palette})


@dataclass(frozen=True, kw_only=True)
class Edits(Annotator):
    """The disc in two other colours. The second one of `leaks` has stripes all over, those of `unchanged` are red."""

    makes: ClassVar[tuple[str, ...]] = ("edit_local",)
    variants: int = 2

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"edit_local": self._of(request)}) for request in batch]

    def _of(self, request: Request) -> Picture:
        picture, disc, _ = scene(numbered(request))
        if request.item.key.startswith("unchanged"):
            return picture
        picture[disc] = (60, 200 - 60 * request.variant, 60)
        if request.item.key.startswith("leaks") and request.variant:
            picture[::8] = (250, 250, 0)
        return picture


@dataclass(frozen=True, kw_only=True)
class Styled(Annotator):
    """The picture with its channels exchanged; of `stranger` the next item's, turned over."""

    makes: ClassVar[tuple[str, ...]] = ("style_semantic",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"style_semantic": self._of(request)}) for request in batch]

    def _of(self, request: Request) -> Picture:
        number = numbered(request)
        if request.item.key.startswith("stranger"):
            return np.ascontiguousarray(scene(number + 1)[0][::-1, :, ::-1])
        return np.ascontiguousarray(scene(number)[0][:, :, [1, 2, 0]])


@dataclass(frozen=True, kw_only=True)
class Depth(Condition):
    """Brightness as depth."""

    makes: ClassVar[tuple[str, ...]] = ("depth",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        grey = [request.inputs["image"].array().mean(2) for request in batch]
        return [Derived({"depth": cv2.GaussianBlur(each, (0, 0), 3).astype(np.uint8)}) for each in grey]


@dataclass(frozen=True, kw_only=True)
class Normals(Annotator):
    """The normals of the depth; those of `tilted` are of the picture turned over."""

    needs: ClassVar[tuple[str, ...]] = ("image", "depth")
    makes: ClassVar[tuple[str, ...]] = ("normal",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"normal": self._of(request)}) for request in batch]

    def _of(self, request: Request) -> Picture:
        depth = cv2.GaussianBlur(request.inputs["depth"].values().astype(float), (0, 0), 2)
        down, right = np.gradient(depth)
        towards = -1 if request.item.key.startswith("tilted") else 1
        return normal_colours(np.stack([-right * towards, down * towards, np.full(depth.shape, 2.0)], 2))


SCORES = (
    OutsideMask(), Changed(), Cycle(), MaskBoxes(), NormalDepth(),
    Changed(of="style_semantic"), PairQuality(of="image"),
)  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("scores")
    (folder / "photos").mkdir()
    for number, key in enumerate(KEYS):
        Image.fromarray(scene(number)[0]).save(folder / "photos" / f"{key}.png")
    made = [Objects(), Edits(), Styled(), Depth(), Depth(of="style_semantic"), Normals()]
    complete(build(folder / "photos", folder / "graph", [*made, *SCORES]))
    return Graph.open(folder / "graph")


def scores(graph: Graph, kind: str) -> dict[str, list[float]]:
    keys = [Path(key).stem for key in graph.items()["key"].to_pylist()]
    return dict(zip(keys, graph.scores(kind).tolist(), strict=True))


@pytest.mark.parametrize(
    ("kind", "faulty"),
    [
        ("edit_local.score.outside_mask", ("leaks", 1)),
        ("edit_local.score.changed", ("unchanged", 0)),
        ("style_semantic.score.cycle_depth", ("stranger", 0)),
        ("mask.score.mask_boxes", ("swapped", 0)),
        ("normal.score.normal_depth", ("tilted", 0)),
    ],
)
def test_each_fault_has_the_lowest_score(graph: Graph, kind: str, faulty: tuple[str, int]) -> None:
    found = scores(graph, kind)
    key, variant = faulty
    low = found[key][variant]
    good = [value for name, values in found.items() if name != key for value in values]
    assert low < 0.5 < min(good) and max(good) <= 1, found
    document = json.loads(graph.read(0, kind).text)
    assert document["value"] == pytest.approx(scores(graph, kind)[KEYS_SORTED[0]][0], abs=1e-5)


KEYS_SORTED = sorted(KEYS)

LIST = """
kinds:
  edit_local: {where: {score.outside_mask: [0.6, null], score.changed: [0.4, 1]}}
  style_semantic: {where: {score.cycle_depth: [0.6, null]}}
  mask: {where: {score.mask_boxes: [0.6, null]}}
paths:
  - {name: edit, cells: [edit_local, image]}
  - {name: style, cells: [image, style_semantic]}
  - {name: masks, cells: [mask, image]}
  - {name: normals, cells: [normal, image], where: {score.normal_depth: [0.6, null]}}
"""


@pytest.fixture
def listed(tmp_path: Path) -> PathSet:
    (tmp_path / "good.yaml").write_text(LIST)
    return load(tmp_path / "good.yaml")


def drawn(sampler: PathSampler) -> set[tuple[str, str, int]]:
    """Path, item and variant of the judged cell, of every row that is drawn."""
    judged = {"edit": "edit_local", "style": "style_semantic", "masks": "mask", "normals": "normal"}
    return {
        (walk.path.name, KEYS_SORTED[item], walk.variants[row][walk.kinds.index(judged[walk.path.name])])
        for walk in sampler.walks(0, 3000)
        for row, item in enumerate(walk.rows)
    }


def test_a_sampler_that_asks_for_good_nodes_draws_no_faulty_one(graph: Graph, listed: PathSet) -> None:
    found = drawn(PathSampler(graph, listed))
    faulty = {("edit", "leaks", 1), ("edit", "unchanged", 0), ("edit", "unchanged", 1), ("style", "stranger", 0),
              ("masks", "swapped", 0), ("normals", "tilted", 0)}  # fmt: skip
    everything = {(path, key, variant) for path in ("edit", "style", "masks", "normals") for key in KEYS
                  for variant in range(2 if path == "edit" else 1)}  # fmt: skip
    assert found == everything - faulty
    bare = PathSet(name="bare", paths=tuple(_without(path) for path in listed.paths))
    assert drawn(PathSampler(graph, bare)) == everything


def _without(path: TaskPath) -> TaskPath:
    return replace(path, where=None)


def test_a_condition_of_the_sampler_is_on_every_kind_that_has_the_score(graph: Graph, listed: PathSet) -> None:
    bare = PathSet(name="bare", paths=tuple(_without(path) for path in listed.paths))
    found = drawn(PathSampler(graph, bare, config=SamplerConfig(where={"score.changed": [0.4, None]})))
    assert ("edit", "unchanged", 0) not in found and ("edit", "leaks", 1) in found
    assert ("style", "good0", 0) in found and ("masks", "swapped", 0) in found
    both = SamplerConfig(where={"score.changed": [0.4, None], "width": {">": 4096}})
    with pytest.raises(GraphError, match="no item is left by where"):
        PathSampler(graph, bare, config=both)


def test_items_are_drawn_in_proportion_to_a_score(graph: Graph, listed: PathSet) -> None:
    """Guards against a weight that does nothing, or that reaches paths whose kinds do not have the score."""
    bare = PathSet(name="bare", paths=tuple(_without(path) for path in listed.paths))
    sampler = PathSampler(graph, bare, config=SamplerConfig(rows=(1.0,), item_weight="score.changed"))
    walks = [*sampler.walks(0, 40_000)]
    edits = Counter(walk.rows[0] for walk in walks if walk.path.name == "edit")
    weight = np.nan_to_num(graph.scores("edit_local.score.changed")).max(axis=1)
    assert weight.min() < 0.5 * weight.max()
    shares = weight / weight.sum() * edits.total()
    assert all(abs(edits[item] - share) < 5 * share**0.5 + 3 for item, share in enumerate(shares))
    masks = Counter(walk.rows[0] for walk in walks if walk.path.name == "masks")
    assert min(masks.values()) > 0.8 * max(masks.values())
    with pytest.raises(GraphError, match="has no score 'chnged'"):
        PathSampler(graph, bare, config=SamplerConfig(item_weight="score.chnged"))


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            {"score.chnged": [0.4, None]},
            r"has no score 'chnged' \(did you mean 'changed'\?\).*it has: changed, cycle_depth",
        ),
        ({"score.cycle_depth": [0.6, None]}, "no kind of it with a score cycle_depth"),
        ({"score.outside_mask": [1.5, None]}, "no edit_local whose scores are in range"),
    ],
)
def test_scores_that_are_not_there_are_named(graph: Graph, where: Mapping[str, Any], told: str) -> None:
    path = TaskPath(name="edit", cells=("edit_local", "image"), targets=(1,), where=where)
    with pytest.raises(GraphError, match=told):
        PathSampler(graph, PathSet(name="own", paths=(path,)))


@pytest.mark.parametrize("bounds", [0.5, [0.5], [0.5, "x"], {">": 0.5}, [True, None]])
def test_ranges_that_are_none_are_refused(bounds: object) -> None:
    with pytest.raises(
        ValueError, match=r"score\.changed: .*allowed: the lowest and highest value, such as \[0.6, null\]"
    ):
        SamplerConfig(where={"score.changed": bounds})


def test_status_shows_a_histogram_of_each_score(graph: Graph) -> None:
    told = CliRunner().invoke(graphbuild.cli.app, ["status", graph.url, "--json"])
    counts = json.loads(told.stdout)["scores"]
    assert counts["edit_local.score.changed"][0] == 2 and sum(counts["edit_local.score.changed"]) == 2 * len(KEYS)
    assert counts["image.score.pair_quality"] == [0] * 10  # no source has an assessment of these
    lines = CliRunner().invoke(graphbuild.cli.app, ["status", graph.url]).stdout
    (line,) = [line for line in lines.splitlines() if line.startswith("edit_local.score.changed")]
    assert line.split(" from 0 to 1, ")[1] == "18 nodes, 2 below 0.1" and line.count("█") == 1
