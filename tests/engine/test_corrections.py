"""A corrected caption or table row reaches the graph: the item, what is made from it, and nothing else."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.annotators.base import Annotator, Derived, Request
from graphbuild.engine.plan import make_plan
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem, Unusable, location
from graphbuild.sources.captions import MAX_TEXT
from graphbuild.sources.folder import Folder
from graphbuild.store.conditions import matching
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.verify import verify
from tests.support.annotators import build, complete, leftovers, tree

KEYS = ["a.png", "b.png", "c.png", "d.png", "e.png"]


def _text(name: str) -> Kind:
    return Kind(name=name, family="text", codec="text", description="a test")


@dataclass(frozen=True, kw_only=True)
class OfCaption(Annotator):
    """Made from the caption node; sees nothing of the item itself."""

    needs: ClassVar[tuple[str, ...]] = ("caption",)
    makes: ClassVar[tuple[Kind, ...]] = (_text("of_caption"),)
    item_facts: ClassVar[tuple[str, ...]] = ("subject",)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        assert all(request.item.caption is None for request in batch)
        return [Derived({"of_caption": request.inputs["caption"].text.upper()}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class OfItem(Annotator):
    """Says nothing of which facts it reads, and has no node of the source as parent."""

    needs: ClassVar[tuple[str, ...]] = ("canny",)
    makes: ClassVar[tuple[Kind, ...]] = (_text("of_item"),)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"of_item": f"{request.item.caption}, {request.item.meta}"}) for request in batch]


@dataclass(frozen=True, kw_only=True)
class Constant(Annotator):
    """May read every fact, and makes the same of all."""

    makes: ClassVar[tuple[Kind, ...]] = (_text("constant"),)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        return [Derived({"constant": "one"}) for _ in batch]


EVERYTHING: list[Annotator | str] = ["canny", "source_caption", OfCaption(), OfItem()]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures; three with text files, two in a table."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, key in enumerate(KEYS):
        Image.new("RGB", (16, 16), (number * 40, 90, 200)).save(folder / key)
    for stem in "abc":
        (folder / f"{stem}.txt").write_text(f"the letter {stem}\n")
    write_table(folder, {"d.png": {"text": "dee", "quality": 1}, "e.png": {"text": "ee", "quality": 2, "group": "x"}})
    return folder


def write_table(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    columns = ["file_name", *dict.fromkeys(name for row in rows.values() for name in row)]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({"file_name": name, **row} for name, row in rows.items())


def run(pictures: Path | Source, out: Path, annotators: Sequence[Annotator | str] = EVERYTHING) -> dict[str, str]:
    """Build, with two items a shard; what is on disk then."""
    complete(build(pictures, out, annotators, shard_size=2))
    assert leftovers(out) == [] and verify(out, "full").problems == []
    return tree(out)


def reasons(pictures: Path | Source, out: Path, annotators: Sequence[Annotator | str] = EVERYTHING) -> dict[str, str]:
    """Annotator -> why a run would do something."""
    from graphbuild.annotators import resolve

    source = pictures if isinstance(pictures, Source) else Folder(path=pictures)
    chosen = [resolve(a) if isinstance(a, str) else a for a in annotators]
    return dict(make_plan(files_at(out), source, chosen).reasons().keys())


def new_places(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The folders with new files; no old file may be another one."""
    assert before.items() <= after.items()
    return {name.partition("/version=")[0].partition("/shard-")[0] for name in after.keys() - before.keys()}


def texts(out: Path, kind: str) -> list[str]:
    graph = Graph.open(out)
    return [graph.read(item_ix, kind).text for item_ix in range(graph.num_items)]


def test_a_corrected_caption_makes_its_own_nodes_anew(pictures: Path, tmp_path: Path) -> None:
    before = run(pictures, out := tmp_path / "g")
    (pictures / "c.txt").write_text("the letter sea")
    assert reasons(pictures, out) == {
        "source:folder": "facts changed (1 item)",
        "source_caption": "facts change",
        "of_caption": "parent changes",
        "of_item": "facts change",
    }
    after = run(pictures, out)
    assert texts(out, "caption") == ["the letter a", "the letter b", "the letter sea", "dee", "ee"]
    assert texts(out, "of_caption")[2] == "THE LETTER SEA" and texts(out, "of_item")[2] == "the letter sea, None"
    assert new_places(before, after) == {
        "items",
        "edges/annotator=source:folder",
        *(f"edges/annotator={name}" for name in ("source_caption", "of_caption", "of_item")),
        *(f"nodes/kind={kind}" for kind in ("caption", "of_caption", "of_item")),
    }
    assert {name.split("shard-")[1][:5] for name in after.keys() - before.keys()} == {"00001"}
    assert reasons(pictures, out) == {}
    assert run(pictures, out) == after


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_corrected_row_of_a_table_makes_the_items_anew_alone(pictures: Path, tmp_path: Path, form: str) -> None:
    annotators: list[Annotator | str] = ["canny", "source_caption", OfCaption(), Constant()]
    rows = {"d.png": {"text": "dee", "quality": 1}, "e.png": {"text": "ee", "quality": 2, "group": "x"}}
    right = {**rows, "d.png": {"text": "dee", "quality": 5, "licence": "CC0-1.0", "split": "validation", "group": "x"}}
    if form == "parquet":
        (pictures / "metadata.csv").unlink()

    def write(table: dict[str, dict[str, Any]]) -> None:
        if form == "csv":
            write_table(pictures, table)
            return
        columns = ("text", "quality", "licence", "split", "group")
        lines = [{"file_name": name, **dict.fromkeys(columns), **row} for name, row in table.items()]
        pq.write_table(pa.Table.from_pylist(lines), pictures / "metadata.parquet")

    write(rows)
    before = run(pictures, out := tmp_path / "g", annotators)
    digest = Graph.open(out).digest
    write(right)
    assert reasons(pictures, out, annotators)["source:folder"] == "facts changed (1 item)"
    assert "canny" not in reasons(pictures, out, annotators)
    assert new_places(before, run(pictures, out, annotators)) == {
        "items",
        "edges/annotator=source:folder",
        "edges/annotator=constant",
    }
    graph = Graph.open(out)
    items = graph.items()
    assert matching(items, {"quality": {">=": 2}}).tolist() == [False, False, False, True, True]
    assert items.select(["key", "licence", "split", "group"]).to_pylist()[3:] == [
        {"key": "d.png", "licence": "CC0-1.0", "split": "validation", "group": "x"},
        {"key": "e.png", "licence": None, "split": None, "group": "x"},
    ]
    assert reasons(pictures, out, annotators) == {}
    old = Graph.open(out, snapshot=digest)
    assert matching(old.items(), {"quality": {">=": 2}}).tolist() == [False, False, False, False, True]


def test_what_says_the_same_is_no_correction(pictures: Path, tmp_path: Path) -> None:
    """Files that were copied, saved again or put into the table."""
    run(pictures, out := tmp_path / "g")
    os.utime(pictures / "a.png", (1, 1))
    (pictures / "a.txt").write_text("  the letter a")
    (pictures / "b.txt").unlink()
    rows = {"b.png": {"text": "the letter b"}, "e.png": {"text": "ee", "quality": 2, "group": "x"}}
    write_table(pictures, {"d.png": {"text": "dee", "quality": 1}, **rows})
    assert reasons(pictures, out) == {}


def test_a_correction_reaches_annotators_that_run_later(pictures: Path, tmp_path: Path) -> None:
    """The run was killed after the source's unit, or did not name them."""
    run(pictures, out := tmp_path / "g")
    for text in ("one", "two"):
        (pictures / "a.txt").write_text(text)
        run(pictures, out, [])
    assert reasons(pictures, out) == {
        "source_caption": "facts changed (1 row)",
        "of_caption": "parent changes",
        "of_item": "facts changed (1 row)",
    }
    run(pictures, out)
    assert texts(out, "of_caption")[0] == "TWO" and texts(out, "of_item")[0] == "two, None"


def test_an_item_that_its_caption_refused_comes_back(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.txt").write_text("x" * (MAX_TEXT + 1))
    run(pictures, out := tmp_path / "g")
    assert Graph.open(out).kinds()["canny"] == 4 and reasons(pictures, out) == {}
    (pictures / "a.txt").write_text("short")
    run(pictures, out)
    graph = Graph.open(out)
    assert graph.kinds()["canny"] == 5 and texts(out, "caption")[0] == "short"
    assert graph.items().column("width").to_pylist() == [16] * 5


def test_a_correction_never_loses_a_stored_picture(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone by the time it is read again: the node stays, the caption waits."""
    run(pictures, out := tmp_path / "g")
    (pictures / "a.txt").write_text("one")
    with monkeypatch.context() as patched:
        read = Folder._read
        gone = Unusable("missing")
        patched.setattr(Folder, "_read", lambda *args, **how: gone if args[2].endswith(".png") else read(*args, **how))
        build(pictures, out, EVERYTHING, shard_size=2)
    assert Graph.open(out).kinds()["image"] == 5 and texts(out, "caption")[0] == "the letter a"
    run(pictures, out)
    assert texts(out, "caption")[0] == "one"


@dataclass(frozen=True, kw_only=True)
class Stamped(Source):
    """A source of one's own whose listing knows nothing of captions."""

    name: ClassVar[str] = "stamped"
    path: str = location("")
    stamp: str = location("1")
    caption: str = location("one")

    def entries(self) -> list[Entry]:
        return [Entry(key, self.stamp) for key in KEYS]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for key in keys:
            data = (Path(self.path) / key).read_bytes()
            yield SourceItem(key=key, uri=key, original=data, nodes={"image": data}, caption=self.caption)


def test_a_source_without_facts_is_looked_at_when_its_stamp_changes(pictures: Path, tmp_path: Path) -> None:
    first = Stamped(path=str(pictures))
    run(first, out := tmp_path / "g", ["source_caption"])
    assert reasons(Stamped(path=str(pictures), caption="two"), out, ["source_caption"]) == {}
    run(Stamped(path=str(pictures), caption="two", stamp="2"), out, ["source_caption"])
    assert texts(out, "caption") == ["two"] * 5
