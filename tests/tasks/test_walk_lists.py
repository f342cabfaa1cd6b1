"""Both shipped lists, all of their paths, over 200,000 walks of a graph that holds every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from graphbuild.annotators.base import Annotator, Derived, Each, Request, each, parameter
from graphbuild.kinds.registry import KINDS
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import ROWS, SamplerConfig
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import load
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walks
from tests.support.annotators import build, complete
from tests.support.sources import rated
from tests.tasks.test_walk import p_value

COUNT = 200_000
STYLED = ("style_content", "style_semantic")


def stored(kind: str, photo: NDArray[np.uint8], boxes: int) -> Any:
    """A photograph as a node of a kind, in the form its codec takes."""
    grey = photo.mean(axis=2).astype(np.uint8)
    size = {"width": photo.shape[1], "height": photo.shape[0]}
    box = {"label": f"thing {boxes}", "box": [8, 8, 40, 40], "colour": [255, 0, 0]}
    forms: Mapping[str, Any] = {
        "png1": grey > 127,
        "png8": grey,
        "jpeg_gray": grey,
        "labels": grey // 64,
        "pose": {**size, "people": [{"keypoints": [[20 + 2 * n, 30 + boxes, 1.0] for n in range(18)]}]},
        "boxes": {**size, "boxes": [box]},
        "text": f"photograph {boxes}",
    }
    return forms.get(str(KINDS[kind].codec), photo)


@dataclass(frozen=True, kw_only=True)
class Photographs(Annotator):
    """The photograph itself as every kind that has one variant and needs a model."""

    makes: ClassVar[tuple[str, ...]] = tuple(
        name for name, kind in KINDS.items()
        if not kind.is_computed and kind.family not in ("style", "edit") and name != "image"
    )  # fmt: skip

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [self._one(request) for request in batch]

    def _one(self, request: Request) -> Derived:
        photo = request.inputs["image"].array()
        return Derived({kind: stored(kind, photo, request.item.item_ix) for kind in self.makes})


@dataclass(frozen=True, kw_only=True)
class Variants(Photographs):
    """Shifted photographs as the kinds that have several variants and no parent but the photograph."""

    makes: ClassVar[tuple[str, ...]] = ("style_reference", "edit_local", "edit_global")
    variants: int = parameter(3, output=False)

    def _one(self, request: Request) -> Derived:
        photo = np.roll(request.inputs["image"].array(), 5 * request.variant, axis=0)
        return Derived({kind: stored(kind, photo, request.item.item_ix) for kind in self.makes})


@dataclass(frozen=True, kw_only=True)
class Stylised(Variants):
    """One picture for each style reference."""

    needs: ClassVar[tuple[str | Each, ...]] = ("image", each("style_reference"))
    makes: ClassVar[tuple[str, ...]] = STYLED


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("lists") / "g"
    complete(build(rated(photos, out.parent / "photos", 8), out, [Photographs(), Variants(), Stylised()]))
    return Graph.open(out)


@pytest.fixture(scope="module", params=["graph200k", "graph200k_released"])
def walks(graph: Graph, request: pytest.FixtureRequest) -> Walks:
    return PathSampler(graph, request.param).walks(0, COUNT)


def counted(values: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(*(found.tolist() for found in np.unique(values, return_counts=True)), strict=True))


def test_every_path_is_drawn_as_often_as_listed(walks: Walks) -> None:
    """All 134, and all 129, with type and path chances of the list."""
    name = "graph200k" if len(walks.paths) == 134 else "graph200k_released"
    chances = load(name).probabilities()
    assert len(walks.paths) == {"graph200k": 134, "graph200k_released": 129}[name]
    assert p_value(counted(walks.path), dict(enumerate(chances))) > 1e-4


def test_rows_have_the_papers_chances_for_every_length(walks: Walks) -> None:
    """One to three rows; the number does not depend on the path."""
    lengths = np.array([len(path.cells) for path in walks.paths])[walks.path]
    assert p_value(counted(walks.count), dict(enumerate(ROWS, 1))) > 1e-4
    for length in (2, 3, 4):
        assert p_value(counted(walks.count[lengths == length]), dict(enumerate(ROWS, 1))) > 1e-4


def test_masks_have_the_released_codes_chances(walks: Walks) -> None:
    """The target alone with 1/2 + 1/2L, each condition with 1/2L, wherever the shuffle puts it."""
    lengths = np.array([len(path.cells) for path in walks.paths])[walks.path]
    cell = np.take_along_axis(walks.columns, walks.holes.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (walks.holes.sum(axis=1) == 1).all()
    for length in (2, 3, 4):
        chances = dict.fromkeys(range(length), 0.5 / length) | {length - 1: 0.5 + 0.5 / length}
        assert p_value(counted(cell[lengths == length]), chances) > 1e-4


def test_rows_are_different_items_and_columns_orders(walks: Walks) -> None:
    """No item twice in a walk; every order of the conditions as often as any other."""
    ordered = np.sort(np.where(walks.rows < 0, -1 - np.arange(3), walks.rows), axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    four = np.array([len(path.cells) == 4 for path in walks.paths])[walks.path]
    orders = Counter(map(tuple, walks.columns[four].tolist()))
    assert len(orders) == 6 and p_value(orders, dict.fromkeys(orders, 1.0)) > 1e-4


def test_style_rows_hold_their_own_reference(walks: Walks) -> None:
    """In every one of the rows, not only in the query."""
    checked = 0
    for walk in walks[:20_000]:
        for row in walk.variants:
            drawn = dict(zip(walk.kinds, row, strict=True))
            for kind in set(drawn) & set(STYLED):
                assert drawn[kind] == drawn["style_reference"]
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize("mask", ["code", "paper"])
def test_every_pair_of_path_and_hole_is_listed_and_drawn(graph: Graph, mask: Any) -> None:
    """What `masks` lists for both lists is exactly what is drawn: so a held-out check over it is complete."""
    config = SamplerConfig(mask=mask)
    sampler = PathSampler(graph, config=config)
    walks = sampler.walks(0, COUNT)
    cells = np.zeros_like(walks.holes)
    np.put_along_axis(cells, walks.columns, walks.holes, axis=1)
    codes = np.unique(np.stack([walks.path, cells @ (1 << np.arange(cells.shape[1]))], axis=1), axis=0)
    listed = {
        (at, sum(1 << cell for cell in holes))
        for at, path in enumerate(walks.paths)
        for holes, _ in masks(path, config)
    }
    assert set(map(tuple, codes.tolist())) == listed


def test_their_pictures_can_be_read(graph: Graph) -> None:
    """Every cell that a walk names is there."""
    sampler = PathSampler(graph)
    seen = {sampler.walk(0, path=path.name, items=(0, 1)).path.name for path in sampler.paths}
    assert len(seen) == 134
    for path in sampler.paths[::9]:
        walk = sampler.walk(7, path=path.name)
        for item, row, seed in zip(walk.rows, walk.variants, walk.seeds, strict=True):
            for kind, variant in zip(walk.kinds, row, strict=True):
                assert graph.read(item, kind, variant, seed=seed).kind == kind
