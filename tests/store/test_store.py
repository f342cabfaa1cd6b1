"""Publishing, parts, heads and snapshots."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphbuild.contracts import EDGES, Live, Outcome, Parent, Shard, Unit
from graphbuild.errors import GraphError, MissingNode
from graphbuild.hashing import checksum
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import Head, change_head, read_head
from graphbuild.store.locations import files_at, local_path
from graphbuild.store.parts import Place, edge_table, outcomes, value_offsets, write_nodes
from graphbuild.store.workspace import Workspace, remove_dead_workspaces
from tests.support.annotators import build, complete

UNIT = Unit(annotator="canny", version="v000000000000", shard=Shard(index=0, start=0, stop=1000))
QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return files_at(tmp_path / "g")


@pytest.fixture
def workspace(files: Files) -> Workspace:
    return Workspace.create(files, "run")


@pytest.fixture(scope="module")
def graph_folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished graph, read only."""
    out = tmp_path_factory.mktemp("store") / "g"
    complete(build(photos, out, ["canny", "source_caption"], shard_size=6))
    return out


# ---- publishing --------------------------------------------------------------------------------------------------


def test_publish_never_overwrites(files: Files, workspace: Workspace) -> None:
    """Guards against a late worker replacing what readers already use."""
    assert files.publish("a/b", b"first", workspace) is True
    assert files.publish("a/b", b"first", workspace) is False
    with pytest.raises(AlreadyPublished, match="a/b"):
        files.publish("a/b", b"second", workspace)
    assert files.read("a/b") == b"first"
    assert files.names(f"_tmp/{workspace.name}") == ["lock"]


def test_publish_without_hard_links(files: Files, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against overwriting on file systems without links."""

    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    assert files.publish("a", b"first", workspace) is True
    assert files.publish("a", b"first", workspace) is False
    with pytest.raises(AlreadyPublished):
        files.publish("a", b"second", workspace)
    assert files.read("a") == b"first" and files.names(f"_tmp/{workspace.name}") == ["lock"]


def test_an_error_is_no_absence(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a disk that does not answer being taken for a graph that is not there yet."""

    def no_answer(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    assert not files.exists("graph.json") and not files.exists("graph.json/x")
    monkeypatch.setattr(os, "stat", no_answer)
    with pytest.raises(OSError, match="Input/output"):
        files.exists("graph.json")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a/../../../etc/passwd"])
def test_no_name_leads_out(name: str, files: Files, workspace: Workspace) -> None:
    """Guards against reading or writing outside the graph through a crafted name."""
    attempts: list[Callable[[], Any]] = [
        lambda: files.read(name),
        lambda: files.pread(name, 0, 1),
        lambda: files.publish(name, b"", workspace),
        lambda: files.remove(name),
        lambda: files.exists(name),
    ]
    for attempt in attempts:
        with pytest.raises(GraphError, match="leads out"):
            attempt()


def test_crafted_arguments_stay_inside(graph_folder: Path) -> None:
    """Guards against path traversal through a version, a snapshot or a kind a caller passes on from a user."""
    graph = Graph.open(graph_folder)
    for call in (
        lambda: Graph.open(graph_folder, snapshot="../../../etc/passwd"),
        lambda: graph.read(0, "canny", version="../../graph"),
        lambda: graph.read(0, "../canny"),
        lambda: graph.files("../../etc"),
        lambda: Graph.open(graph_folder.parent),
    ):
        with pytest.raises(GraphError):
            call()


@pytest.mark.parametrize("url", ["hf://datasets/a/b", "https://host/x", Path("hdfs://host/x")])
def test_a_url_is_refused_and_makes_no_folder(url: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a local folder `s3:/` in which days of work end, also after `Path` has shortened the URL."""
    monkeypatch.chdir(tmp_path)
    for call in (files_at, local_path, Graph.open, lambda out: build(tmp_path, out, ["canny"])):
        with pytest.raises(GraphError, match=r"^\w+:/.*:// is not supported; give a path"):
            call(url)
    with pytest.raises(GraphError, match=r"^s3://b/x: must be a folder on this machine"):
        local_path("s3://b/x")
    assert list(tmp_path.iterdir()) == []
    assert files_at(Path("s3://bucket/x/")).url == "s3://bucket/x"


def test_file_urls_are_paths(graph_folder: Path, tmp_path: Path) -> None:
    """Guards against a `file://` URL read as a relative path, and against its `%20` kept."""
    assert Graph.open(f"file://{graph_folder}").num_items == 18
    assert local_path(Path("file:///a%20b/c")) == local_path("file:///a b/c") == Path("/a b/c")
    assert local_path("a:b/c") == Path("a:b/c") and local_path(tmp_path) == tmp_path


def test_dead_workspaces_go_and_live_ones_stay(files: Files) -> None:
    """Guards against removing the files of a run that is still working, here, on another host or by older code."""
    alive, promoting = Workspace.create(files, "alive"), Workspace.create(files, "promote")
    child = multiprocessing.get_context("forkserver").Process(target=Workspace.create, args=(files, "dead"))
    child.start()
    child.join()
    machine = alive.name.split("+")[1]
    elsewhere, silent, older = "x+otherhost+0", "y+otherhost+0", "w+host+boot+7+1234"
    half_made, of_users = f"z+{machine}+0", "mine"
    for name in (elsewhere, silent, older, half_made, of_users):
        os.makedirs(files.path(f"_tmp/{name}"))
    for name in (silent, of_users):
        os.utime(files.path(f"_tmp/{name}"), (1, 1))
    assert len(files.names("_tmp")) == 8
    remove_dead_workspaces(files)
    assert files.names("_tmp") == sorted([alive.name, promoting.name, elsewhere, older, of_users])
    promoting.close()
    assert promoting.name not in files.names("_tmp")


def test_a_run_in_another_container_is_alive(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against telling the living by a process table and a host name, which containers have of their own."""
    with monkeypatch.context() as container:
        container.setattr("os.getpid", lambda: 999_999_999)
        container.setattr("socket.gethostname", lambda: "0f3b5c")
        alive = Workspace.create(files, "alive")
    os.utime(files.path(f"_tmp/{alive.name}"), (1, 1))
    remove_dead_workspaces(files)
    assert files.names("_tmp") == [alive.name]


def test_a_workspace_that_is_taken_for_dead_while_it_is_made(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a run whose folder goes between making and locking it."""
    lock, races = files.lock, [lambda: remove_dead_workspaces(files)]

    def late(name: str) -> object:
        if races:
            races.pop()()
        return lock(name)

    monkeypatch.setattr(files, "lock", late)
    late_but_there = Workspace.create(files, "late")
    assert files.names("_tmp") == [late_but_there.name] and races == []


# ---- heads and snapshots -----------------------------------------------------------------------------------------


def _with(live: Live, head: Head) -> Head:
    return {**head, f"{live.annotator}_{live.version}": live}


def _add_kinds(root: str, who: int) -> None:
    files = files_at(root)
    workspace = Workspace.create(files, f"run{who}")
    for number in range(10):
        live = Live(annotator=f"a{who}", version=f"v{number}")
        change_head(files, workspace, partial(_with, live))
    workspace.close()


def test_heads_race(files: Files) -> None:
    """Guards against a promotion lost because another run promoted at the same moment."""
    context = multiprocessing.get_context("forkserver")
    racers = [context.Process(target=_add_kinds, args=(files.url, who)) for who in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    number, head = read_head(files)
    assert set(head) == {f"a{who}_v{n}" for who in range(3) for n in range(10)} and number == 30
    assert files.names("heads") == [f"{n:08d}.json" for n in range(1, 31)]


def test_snapshot_digest_is_the_content(graph_folder: Path) -> None:
    """Guards against a digest that differs between two openings, or a pinned one that resolves to another state."""
    graph = Graph.open(graph_folder)
    assert Graph.open(graph_folder).digest == graph.digest
    assert Graph.open(graph_folder, snapshot=graph.digest).digest == graph.digest
    with pytest.raises(GraphError, match=graph.digest):
        Graph.open(graph_folder, snapshot="0" * 16)


def test_reading_says_what_is_missing(graph_folder: Path) -> None:
    """Guards against an IndexError, or another item's node, for a place that holds nothing."""
    graph = Graph.open(graph_folder)
    for item_ix in (-1, 18, 10**9):
        with pytest.raises(MissingNode, match="items 0 to 17"):
            graph.read(item_ix, "image")
    for variant in (-1, 1):
        with pytest.raises(MissingNode, match="variant"):
            graph.read(0, "image", variant)
    with pytest.raises(MissingNode, match="skipped"):
        graph.read(0, "caption")
    with pytest.raises(GraphError, match="canny"):
        graph.read(0, "cannny")
    edge = graph.read(4, "canny").edge
    assert (edge["item_ix"], edge["kind"], edge["status"]) == (4, "canny", "ok")
    assert set(edge) == set(EDGES.names)


def test_presence(graph_folder: Path) -> None:
    """Guards against a presence index that disagrees with the edges, from its cache or without."""
    for _ in range(2):
        graph = Graph.open(graph_folder)
        assert graph.presence("canny").tolist() == [[True]] * 18
        assert graph.presence("caption").tolist() == [[False]] * 18


# ---- parts -------------------------------------------------------------------------------------------------------


@QUICK
@given(values=st.lists(st.binary(max_size=400) | st.integers(1000, 200_000).map(bytes), min_size=1, max_size=300))
def test_every_value_is_at_its_offset(values: list[bytes], tmp_path: Path) -> None:
    """Guards against offsets that are off after a page, row group or empty value."""
    _write_and_read(values, "png", tmp_path)


@QUICK
@given(values=st.lists(st.text(max_size=60), min_size=1, max_size=300))
def test_every_text_is_at_its_offset(values: list[str], tmp_path: Path) -> None:
    """Guards against the same in the payload column, which is another leaf with another depth."""
    _write_and_read([value.encode() for value in values], "text", tmp_path)


def _write_and_read(values: list[bytes], form: str, tmp_path: Path) -> None:
    files = files_at(tmp_path / f"g{len(list(tmp_path.iterdir()))}")
    workspace = Workspace.create(files, "run")
    rows = [
        Outcome(ix, f"id{ix}", "canny", 0, "ok", format=form, content_hash=checksum(value), data=value)
        for ix, value in enumerate(values)
    ]
    (part,), places = write_nodes(files, workspace, UNIT, 0, "canny", rows)
    assert [files.pread(*_where(places[ix, 0])) for ix in range(len(values))] == values
    table = pq.read_table(files.path(part.name), partitioning=None)
    column = table.column("payload") if form == "text" else table.column("image").combine_chunks().field("bytes")
    stored = column.to_pylist()
    assert [value.encode() if isinstance(value, str) else value for value in stored] == values
    assert table.column("item_ix").to_pylist() == list(range(len(values))) and part.rows == len(values)
    assert part.checksum == files.checksum(part.name)


def _where(place: Place) -> tuple[str, int, int]:
    return place.part, place.offset, place.nbytes


def test_large_units_are_split(files: Files, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows lost or offsets wrong where one part ends and the next begins."""
    monkeypatch.setattr("graphbuild.store.parts.PART_BYTES", 300_000)
    monkeypatch.setattr("graphbuild.store.parts.ROW_GROUP_BYTES", 100_000)
    values = [np.random.default_rng(ix).bytes(1000 * (ix % 7) + ix) for ix in range(400)]
    rows = [
        Outcome(ix, "id", "canny", 0, "ok", format="png", content_hash=checksum(value), data=value)
        for ix, value in enumerate(values)
    ]
    parts, places = write_nodes(files, workspace, UNIT, 0, "canny", rows)
    assert len(parts) > 3 and sum(part.rows for part in parts) == 400
    assert [files.pread(*_where(places[ix, 0])) for ix in range(400)] == values
    for part in parts:
        metadata = pq.read_metadata(files.path(part.name))
        assert all(metadata.row_group(group).num_rows <= 128 for group in range(metadata.num_row_groups))


def test_offsets_of_null_free_file_written_elsewhere(tmp_path: Path, graph_folder: Path) -> None:
    """Guards against offsets that only hold in memory: every stored image is found in the published file itself."""
    graph = Graph.open(graph_folder)
    for path in graph.files("image"):
        data = Path(path).read_bytes()
        stored = pq.read_table(path, partitioning=None).column("image").to_pylist()
        assert [data[at : at + size] for at, size in value_offsets(path, "image.bytes")] == [s["bytes"] for s in stored]


_TEXT = st.none() | st.text(max_size=20)
_INT32 = st.none() | st.integers(-(2**31), 2**31 - 1)
_PARENTS = st.lists(
    st.builds(Parent, st.integers(0, 2**62), st.text(), st.integers(0, 2**31 - 1), st.text(), _TEXT), max_size=3
).map(tuple)
_OUTCOMES = st.builds(
    Outcome,
    item_ix=st.integers(0, 2**62),
    item_id=st.just(""),
    kind=st.sampled_from(["canny", "lines"]),
    variant=st.integers(0, 2**31 - 1),
    status=st.sampled_from(["ok", "skipped", "failed"]),
    reason=_TEXT,
    detail=_TEXT,
    parents=_PARENTS,
    format=_TEXT,
    width=_INT32,
    height=_INT32,
    content_hash=_TEXT,
    score=st.none() | st.floats(allow_nan=False),
    seed=st.none() | st.integers(0, 2**63 - 1),
    attrs=_TEXT,
)


@QUICK
@given(st.lists(_OUTCOMES, max_size=20))
def test_edge_rows_come_back(rows: list[Outcome]) -> None:
    """Guards against a field that an edges part drops, rounds or mixes up."""
    table = edge_table(rows, {row.key: Place("part", 5, 7) for row in rows if row.status == "ok"})
    assert table.schema.equals(EDGES) and outcomes(table) == rows
    parts = table.column("part").to_pylist()
    assert [part is not None for part in parts] == [
        (row.key in {r.key for r in rows if r.status == "ok"}) for row in rows
    ]
