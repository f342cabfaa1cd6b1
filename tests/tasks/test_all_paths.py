"""Every path of Graph200K, drawn to the last pixel from a graph that was built like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphbuild.annotators.base import Annotator, Derived, Each, Request, each, parameter
from graphbuild.kinds.registry import Kind
from graphbuild.store.graph import Graph
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Halves, build, complete
from tests.support.sources import rated


@dataclass(frozen=True, kw_only=True)
class Photos(Annotator):
    """Stores real photographs, rolled by the seed, as the kinds that need models."""

    makes: ClassVar[tuple[str, ...]] = (
        *("reference", "hed", "depth", "normal", "pose", "semantic", "segments", "mask", "boxes"),
        "edit_global",
    )
    needs: ClassVar[tuple[str | Each, ...]] = ("image",)

    def codec(self, kind: Kind) -> str:
        return "jpeg"

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        made = tuple(kind if isinstance(kind, str) else kind.name for kind in self.makes)
        return [Derived(dict.fromkeys(made, np.roll(r.inputs["image"].array(), r.seed % 50, axis=1))) for r in batch]


@dataclass(frozen=True, kw_only=True)
class PhotoReferences(Photos):
    makes: ClassVar[tuple[str, ...]] = ("style_reference",)
    variants: int = parameter(3, output=False)


@dataclass(frozen=True, kw_only=True)
class PhotoStyles(Photos):
    needs: ClassVar[tuple[str | Each, ...]] = ("image", each("style_reference"))
    makes: ClassVar[tuple[str, ...]] = ("style_content", "style_semantic")


@dataclass(frozen=True, kw_only=True)
class PhotoEdits(Photos):
    makes: ClassVar[tuple[str, ...]] = ("edit_local",)
    variants: int = parameter(5, output=False)


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("graph") / "g"
    models: list[Annotator | str] = [Photos(), PhotoReferences(), PhotoStyles(), PhotoEdits()]
    complete(build(rated(photos, out.parent / "photos", 4), out, ["canny", "lsd", Halves(), *models]))
    return Graph.open(out)


@pytest.mark.parametrize("name", ["graph200k", "graph200k_released"])
def test_every_path_is_drawn(graph: Graph, name: str) -> None:
    """Guards against a kind that can be listed but not painted, and a style cell that shows another reference."""
    sampler = PathSampler(graph, name)
    assert len(sampler.paths) == {"graph200k": 134, "graph200k_released": 129}[name]
    for index, path in enumerate(sampler.paths):
        task = sampler.task(sampler.walk(index, path=path.name), 48)
        assert [len(row) for row in task.cells()] == [len(path.cells)] * len(task.walk.rows)
        assert all(cell.dtype == np.uint8 and cell.shape[2] == 3 for row in task.cells() for cell in row)
        for row, kinds in zip(task.rows, [task.walk.kinds] * len(task.rows), strict=True):
            nodes = dict(zip(kinds, row, strict=True))
            for style in {"style_content", "style_semantic"} & set(nodes):
                assert nodes[style].variant == nodes["style_reference"].variant
