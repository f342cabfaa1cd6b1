"""Somebody else's graph: nothing it says leads out of its folder, hangs, or fills the memory."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphbuild.annotators.canny import Canny
from graphbuild.engine.plan import make_plan
from graphbuild.errors import GraphError
from graphbuild.store.files import LocalFiles
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.verify import verify
from graphbuild.store.workspace import Workspace
from tests.support.annotators import build, complete, tree


def edges_part(graph: Path, annotator: str = "canny") -> Path:
    return min((graph / "edges" / f"annotator={annotator}").rglob("*.parquet"))


def rewrite(path: Path, rows: dict[str, Any] | None = None, footer: Callable[[Any], None] | None = None) -> None:
    """Replace values of the first stored row, or what the footer says."""
    table = pq.read_table(path, partitioning=None)
    document = json.loads(table.schema.metadata[b"graphbuild"])
    if footer is not None:
        footer(document)
    values = table.to_pylist()
    next(row for row in values if row["status"] == "ok").update(rows or {})
    made = pa.Table.from_pylist(values, schema=table.schema)
    pq.write_table(made.replace_schema_metadata({"graphbuild": json.dumps(document)}), path)


def read_all(graph: Path) -> None:
    """Every way to the nodes of a graph."""
    opened = Graph.open(graph)
    for kind in opened.head:
        opened.presence(kind)
        opened.offsets(kind)
        opened.edges(kind)
    opened.items()
    for item_ix in (0, 4):
        opened.read(item_ix, "canny").array()


@pytest.mark.parametrize(
    "rows",
    [
        {"part": "../secret.parquet"},
        {"part": "/etc/passwd"},
        {"part": "nodes/\0"},
        {"part": None},
        {"nbytes": 1 << 62},
        {"nbytes": None},
        {"nbytes": -1},
        {"offset": 1 << 62, "nbytes": 1 << 62},
        {"offset": -5},
        {"content_hash": "no hash"},
        {"content_hash": None},
        {"item_ix": 1 << 60},
        {"item_ix": None},
        {"variant": 2000},
        {"kind": "lines"},
        {"kind": None},
        {"attrs": "[" * 100_000},
    ],
    ids=lambda rows: str(rows)[:60],
)
def test_odd_edge_rows_are_refused_by_name(rows: dict[str, Any], graph: Path) -> None:
    """Guards against bytes read outside the graph, and against IndexError or MemoryError for what a row says."""
    path = edges_part(graph)
    rewrite(path, rows)
    with pytest.raises(GraphError, match=re.escape(path.name) + "|item 0"):
        read_all(graph)
    assert any(path.name in problem for problem in verify(graph, "full").problems)


def _renamed(place: str, name: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        unit, lineage = document["unit"], document["lineage"]
        if place in unit:
            unit[place] = name
        elif place == "kind":
            for named in (lineage["codec"], document["variants"], document["counts"], document["reasons"]):
                named[name] = named.pop("canny")
        elif place == "codec":
            lineage["codec"]["canny"] = name
        else:
            document["parts"][0]["name"] = name

    return change


@pytest.mark.parametrize("place", ["annotator", "version", "kind", "codec", "part"])
@pytest.mark.parametrize("name", ["k/../../../x", "..", "", "a\0b", "x" * 300, "nodes/kind=canny/../../graph.json"])
def test_names_in_footers_obey_the_grammar(place: str, name: str, graph: Path) -> None:
    """Guards against a kind or version named like a path that makes a cache or a run delete what is outside."""
    path = edges_part(graph)
    rewrite(path, footer=_renamed(place, name))
    with pytest.raises(GraphError, match=re.escape(path.name)):
        read_all(graph)


@pytest.mark.parametrize(
    "head",
    [
        {"k/../../../x": {"annotator": "canny", "version": "v000000000000"}},
        {"canny": {"annotator": "../..", "version": "v000000000000"}},
        {"canny": {"annotator": "canny", "version": "../../.."}},
        {"canny": None},
        [],
    ],
    ids=str,
)
def test_names_in_heads_obey_the_grammar(head: Any, graph: Path) -> None:
    """The same for heads."""
    newest = max((graph / "heads").iterdir())
    newest.write_text(json.dumps(head))
    with pytest.raises(GraphError, match=newest.name):
        Graph.open(graph)


def test_a_head_that_names_another_kind_is_refused(graph: Path) -> None:
    """Guards against KeyError for one flipped bit in the name of a kind."""
    newest = max((graph / "heads").iterdir())
    newest.write_text(newest.read_text().replace('"canny":{', '"canjy":{'))
    with pytest.raises(GraphError, match="does not make 'canjy'"):
        Graph.open(graph).kinds()


@pytest.mark.parametrize("name", ["graph.json", "heads/*", "lineage/*"])
def test_huge_documents_are_refused_unread(name: str, graph: Path) -> None:
    """Guards against a JSON file of gigabytes, or one nested a million deep, that ends the process."""
    for path in graph.glob(name):
        os.truncate(path, 1 << 40)
    with pytest.raises(GraphError, match="at most 16777216 are read"):
        make_plan(files_at(graph), None, [Canny(low=50.0)])
    for path in graph.glob(name):
        path.write_text('{"canny":' * 1_000_000)
    with pytest.raises(GraphError, match=name.partition("/")[0]):
        make_plan(files_at(graph), None, [Canny(low=50.0)])


# ---- links, pipes and folders that are not ours ------------------------------------------------------------------


def moved_out(graph: Path, name: str) -> None:
    """A file or folder of the graph replaced by a link to it outside."""
    outside = graph.parent / "outside"
    shutil.move(graph / name, outside)
    (graph / name).symlink_to(outside)


@pytest.mark.parametrize("level", ["part", "version", "kind", "nodes", "edges"])
def test_no_link_is_followed_out_of_the_graph(level: str, graph: Path) -> None:
    """Guards against files of the machine that are served as nodes, or copied into an export."""
    part = Path(Graph.open(graph).names_of("canny")[0])
    name = {"part": part, "version": part.parent, "kind": part.parent.parent}.get(level, Path(level))
    moved_out(graph, str(name))
    with pytest.raises(GraphError, match="is a link, or lies behind one"):
        read_all(graph)
    assert any("link" in problem for problem in verify(graph, "full").problems)


@pytest.mark.parametrize("name", ["_tmp", "_staging"])
def test_nothing_is_removed_through_a_link(name: str, graph: Path, sound: Path) -> None:
    """Guards against a `_tmp` that leads into somebody's home."""
    target = graph.parent / "home"
    (target / "0123456789abcdef").mkdir(parents=True)
    (target / "run+host+boot+1+2").mkdir()
    (target / "letter").write_text("dear")
    os.utime(target / "run+host+boot+1+2", (1, 1))
    shutil.rmtree(graph / name, ignore_errors=True)
    (graph / name).symlink_to(target)
    before = tree(target, ".")
    with pytest.raises(GraphError, match="is a link"):
        build(sound.parent / "photos", graph, [Canny(low=50.0)])
    assert tree(target, ".") == before and (target / "run+host+boot+1+2").is_dir()


def test_what_is_not_ours_survives_in_tmp(graph: Path, sound: Path) -> None:
    """Guards against work of the user's own that a run takes for what a killed run left."""
    for name in ("_tmp/thesis", "_tmp/a+b", "_staging/notes"):
        (graph / name).mkdir(parents=True)
        os.utime(graph / name, (1, 1))
    complete_with_foreign = build(sound.parent / "photos", graph, [Canny(low=50.0)])
    assert complete_with_foreign.units_left == []
    assert all((graph / name).is_dir() for name in ("_tmp/thesis", "_tmp/a+b", "_staging/notes"))


@pytest.mark.parametrize("name", ["README.md", "photo.png", "_tmp/mine", "runs"])
def test_a_folder_of_something_else_is_no_place_for_a_graph(name: str, photos: Path, tmp_path: Path) -> None:
    """Guards against a graph spread among a user's files, whose README it would replace."""
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(GraphError, match=f"no graph and not empty .{name}.; give another --out"):
        build(photos, out, ["canny"], limit=1)
    assert (out / name).read_text() == "mine" and len(list(out.rglob("*"))) <= 2


def test_a_killed_first_run_is_no_obstacle(photos: Path, tmp_path: Path) -> None:
    """The same must let a run continue that died before it wrote graph.json."""
    Workspace.create(files_at(tmp_path / "g"), "killed")
    (tmp_path / "g/.DS_Store").touch()
    complete(build(photos, tmp_path / "g", ["canny"], limit=1))


def test_pipes_do_not_hang(graph: Path) -> None:
    """Guards against a reader that waits for ever for a writer; a folder in a file's place is no better."""
    for path in [*graph.glob("nodes/*/*/*"), *graph.glob("heads/*"), *graph.glob("lineage/*"), *graph.glob("items/*")]:
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(GraphError, match="regular file"):
            LocalFiles(graph).read(str(path.relative_to(graph)))
        assert any(path.name in problem for problem in verify(graph, "full").problems)
        path.unlink()
        path.mkdir()
        assert any(path.name in problem for problem in verify(graph).problems)


# ---- a graph that grows ------------------------------------------------------------------------------------------


def test_opening_between_two_commits_is_one_state(sound: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a spine that was listed before the annotators: their newest shard would lie beyond the items."""
    late = sorted((graph / "edges").glob("annotator=*/*/shard-00001-*"))
    kept = {path: path.read_bytes() for path in late}
    source = [path for path in late if "source:" in str(path)]
    whole = Graph.open(graph)

    def lost(paths: list[Path]) -> None:
        for path in paths:
            path.unlink()

    names = LocalFiles.names
    for seen in range(1, 12):  # the second shard is committed, its items first, while the n-th folder is listed
        lost([path for path in kept if path.exists()])
        listed = []

        def slowly(files: LocalFiles, folder: str, listed: list[str] = listed, seen: int = seen) -> list[str]:
            listed.append(folder)
            if len(listed) == seen:
                for path in [*source, *set(kept) - set(source)]:
                    path.write_bytes(kept[path])
            return names(files, folder)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "names", slowly)
            opened = Graph.open(graph)
        assert opened.num_items in (4, 8)
        for kind in whole.head:
            assert len(opened.presence(kind)) == opened.num_items == opened.offsets(kind).num_items
    assert len(listed) < seen, "more folders are listed than the test knows of"


def test_commits_without_their_items_are_left_out(graph: Path) -> None:
    """Guards against IndexError where the commit of a shard's source was lost, or has not been copied yet."""
    for path in (graph / "edges").glob("annotator=source:*/*/shard-00001-*"):
        path.unlink()
    opened = Graph.open(graph)
    assert opened.num_items == 4 and opened.presence("canny").shape == (4, 1)
    assert len(opened.commits("canny")) == 1 and opened.edges("canny").num_rows == 4
