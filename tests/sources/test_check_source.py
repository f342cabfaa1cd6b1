"""What a source may give beside one picture, in a graph, and the check that its author runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from graphbuild.errors import GraphError
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Given, Source, SourceItem, columns_of, facts_digest, location
from graphbuild.sources.sample import Sample
from graphbuild.sources.testing import SourceCheckError, check_source
from graphbuild.store.graph import Graph
from tests.support.annotators import build, complete

GARMENT = Kind(name="garment", family="image", codec="source", description="a garment", phrases=("a garment",))
RAYS = Kind(name="rays", family="condition", codec="json", description="a camera")


def png(value: int, mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (24, 16), value if mode == "L" else (value, 40, 90)).save(sink, "PNG")
    return sink.getvalue()


@dataclass(frozen=True, kw_only=True)
class Wardrobe(Source):
    """Three people in garments: own kinds, variants, texts, structured values, labels, groups, splits, licences."""

    name: ClassVar[str] = "wardrobe"
    makes: ClassVar = ("image", GARMENT, RAYS, "caption", "mask", "canny", "edit_text")
    count: int = 3
    place: str = location("")

    def variants(self) -> dict[str, int]:
        return {"garment": 2}

    def entries(self) -> Sequence[Entry]:
        return [Entry(f"{n}", "1", facts_digest(columns_of(self.item(f"{n}")))) for n in range(self.count)]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        return map(self.item, keys)

    def item(self, key: str) -> SourceItem:
        number = int(key)
        labels = np.zeros((16, 24), np.uint8)
        labels[4:8, 4:8] = 1
        nodes = {
            "image": png(number),
            "garment": [png(100 + number)] if number == 1 else [png(100 + number), png(200 + number)],
            "rays": {"focal": 1.5 + number},
            "caption": f"person {key}",
            "mask": Given(labels, {"palette": [[0, 0, 0], [255, 0, 0]], "labels": ["", "shirt"]}),
            "canny": png(100, "L") if number == 2 else png(255, "L"),
        }
        if number == 0:
            nodes["edit_text"] = "make it red"
        return SourceItem(
            key=key, uri=key, original=png(number), nodes=nodes, group="a", split="train", licence="CC0-1.0"
        )


def test_a_source_gives_own_kinds_variants_texts_and_values(tmp_path: Path) -> None:
    complete(build(Wardrobe(), tmp_path / "g", ["lsd"]))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds() == {
        "image": 3, "garment": 5, "rays": 3, "caption": 3, "mask": 3, "canny": 2, "edit_text": 1, "lines": 0,
    }  # fmt: skip
    assert graph.read(2, "garment", 1).array()[0, 0].tolist() == [202, 40, 90]
    assert graph.read(1, "rays").values() == {"focal": 2.5} and graph.read(0, "caption").text == "person 0"
    mask = graph.read(0, "mask")
    assert mask.attrs["labels"] == ["", "shirt"] and mask.array()[5, 5].tolist() == [255, 0, 0]
    rows = {(r["item_ix"], r["kind"], r["variant"]): (r["status"], r["reason"]) for r in graph.edges().to_pylist()}
    assert rows[1, "garment", 1] == rows[1, "edit_text", 0] == ("skipped", "not_given")
    assert rows[2, "canny", 0] == ("failed", "bad_values")
    assert complete(build(Wardrobe(), tmp_path / "g", ["lsd"])).annotators == {}


def test_a_source_that_keeps_its_contract_passes() -> None:
    check_source(Wardrobe(count=2))
    check_source(Sample())  # not sorted by key, and says so


@dataclass(frozen=True, kw_only=True)
class Unsorted(Wardrobe):
    def entries(self) -> Sequence[Entry]:
        return super().entries()[::-1]


@dataclass(frozen=True, kw_only=True)
class Lazy(Wardrobe):
    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        return map(self.item, keys[:1])


@dataclass(frozen=True, kw_only=True)
class Surplus(Wardrobe):
    def item(self, key: str) -> SourceItem:
        item = super().item(key)
        return replace(item, nodes={**item.nodes, "garment": [png(1)] * 3, "shoe": png(1)})


@dataclass(frozen=True, kw_only=True)
class Fickle(Wardrobe):
    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for number, key in enumerate(keys):
            yield replace(self.item(key), caption=f"number {number} of this call")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Wardrobe(), "2: canny: bad_values: 1 grey values where 0 and 255 are promised"),
        (Unsorted(count=2), "its entries are not sorted by key"),
        (Lazy(count=2), "read() gave 1 items for 2 keys"),
        (Surplus(count=2), "garment: 3 variants, but variants() says 2"),
        (Surplus(count=2), "it gives ['shoe'], which is not among its kinds"),
        (Fickle(count=2), "read() gives other items from the middle than all at once"),
        (Fickle(count=2), "another digest of its facts"),
    ],
)
def test_every_broken_promise_is_named(source: Source, said: str) -> None:
    with pytest.raises(SourceCheckError) as broken:
        check_source(source)
    assert said in str(broken.value)


def test_a_kind_may_not_be_declared_otherwise_than_the_library_does(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(Wardrobe):
        makes: ClassVar[Any] = (Kind(name="image", family="image", codec="png", description="mine"),)

    with pytest.raises(GraphError, match="declares the kind 'image' otherwise"):
        build(Own(), tmp_path / "g", [])
