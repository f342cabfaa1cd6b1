"""Runs from beginning to end: equal bytes on every executor, failures of every size, children, refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.annotators.base import Annotator, Derived, Request
from graphbuild.annotators.canny import Canny
from graphbuild.engine import schedule
from graphbuild.engine.executors import ray as ray_pool
from graphbuild.engine.executors.nodes import Nodes
from graphbuild.engine.plan import Plan, make_plan
from graphbuild.engine.records import Job
from graphbuild.errors import GraphError, MissingNode
from graphbuild.kinds.registry import Kind
from graphbuild.sources import resolve as source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from tests.support.annotators import (
    WRONG,
    BatchOrdered,
    Child,
    OfStyles,
    Ordered,
    Random,
    SomeFail,
    Styles,
    TwoKinds,
    Wrong,
    build,
    calls,
    complete,
    leftovers,
    tree,
    write_photos,
)
from tests.support.long import long_form
from tests.support.object_store import ObjectStore, local_content

EVERYTHING: list[Annotator | str] = ["canny", "lsd", "grabcut", "source_caption", Styles(), Canny(of="style_content")]


def _statuses(graph: Graph, kind: str) -> Counter[tuple[str, str | None]]:
    return Counter((row["status"], row["reason"]) for row in graph.edges(kind).to_pylist())


def _by_key(graph: Graph, kind: str) -> dict[str, dict[str, Any]]:
    keys = graph.items().column("key").to_pylist()
    return {keys[row["item_ix"]]: row for row in graph.edges(kind).to_pylist()}


# ---- the same graph however it is built --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inline(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of `EVERYTHING`, built in this process."""
    out = tmp_path_factory.mktemp("inline") / "g"
    complete(build(photos, out, EVERYTHING, limit=12))
    return out


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("order", "workers"),
    [
        ("forward", 2),
        ("backward", 1),
        pytest.param("forward", 1, marks=long_form),
        pytest.param("backward", 2, marks=long_form),
    ],
)
def test_ray_and_inline_give_the_same_bytes(  # noqa: PLR0917 - fixtures
    order: str,
    workers: int,
    photos: Path,
    inline: Path,
    tmp_path: Path,
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against state that leaks from one row to the next: OpenCV's generator, thread counts, unit order."""
    make_jobs: Callable[[Plan], list[Job]] = schedule.make_jobs
    started: list[Job] = []
    start, place = ray_pool._Driver._start, Nodes.place

    def counted(driver: Any, job: Job, *args: Any) -> Any:
        started.append(job)
        return start(driver, job, *args)

    monkeypatch.setattr(Nodes, "place", lambda *args: place(*args) if len(started) < workers else None)
    monkeypatch.setattr(ray_pool._Driver, "_start", counted)
    if order == "backward":
        monkeypatch.setattr(schedule, "make_jobs", lambda *plan: make_jobs(*plan)[::-1])
    complete(build(photos, tmp_path / "ray", EVERYTHING, executor="ray", limit=12))
    assert len(started) == workers
    assert tree(tmp_path / "ray") == tree(inline)
    assert leftovers(tmp_path / "ray") == leftovers(inline) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_without_a_shared_folder(photos: Path, tmp_path: Path, s3: ObjectStore, ray_address: str) -> None:
    """Guards against workers that need anything but a store: photographs and graph are in one, with the same bytes."""
    stored = source("folder", path=s3.upload(photos))
    url, out = s3.new_url(), tmp_path / "g"
    complete(build(stored, url, EVERYTHING, executor="ray", limit=12))
    complete(build(stored, out, EVERYTHING, limit=12))
    remote = {name: data for name, data in s3.content(url).items() if not name.startswith("runs/")}
    assert remote == local_content(out)


@pytest.mark.slow
@pytest.mark.data
def test_all_photos(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Guards against any real photograph that is lost, fails, or comes out in another size."""
    folder = data_folder("photos")
    complete(build(folder, tmp_path / "g", ["canny", "lsd", "grabcut"]))
    graph = Graph.open(tmp_path / "g")
    keys = sorted(path.name for path in folder.glob("*.jpg"))
    assert graph.items().column("key").to_pylist() == keys and graph.num_items == len(keys) == 53
    kinds = graph.kinds()
    assert (kinds["image"], kinds["canny"]) == (53, 53)
    assert _statuses(graph, "lines").total() == 53 and kinds["lines"] >= 50
    assert _statuses(graph, "foreground_mask").total() == 53 and kinds["foreground_mask"] >= 40
    assert len(graph.shards) >= 8
    for item_ix, key in enumerate(keys):
        image = graph.read(item_ix, "image")
        assert image.bytes == (folder / key).read_bytes()
        assert graph.read(item_ix, "canny").array().shape == image.array().shape
    report = build(folder, tmp_path / "g", ["canny", "lsd", "grabcut"])
    assert report.annotators == {} and report.units_done == report.units_wanted == 4 * len(graph.shards)


def test_nothing_left_to_do_opens_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a rerun that decodes pictures, starts workers, or publishes another head or snapshot."""
    complete(build(photos, tmp_path / "g", ["canny"]))
    before = tree(tmp_path / "g", "items", "nodes", "edges", "heads", "snapshots", "lineage", "runs")

    def refuse(*args: Any) -> None:
        raise AssertionError("worked although nothing was to do")

    monkeypatch.setattr("graphbuild.engine.run.run_inline", refuse)
    monkeypatch.setattr("graphbuild.sources.folder.Folder.read", refuse)
    complete(build(photos, tmp_path / "g", ["canny"]))
    assert tree(tmp_path / "g", "items", "nodes", "edges", "heads", "snapshots", "lineage", "runs") == before


def test_other_results_keep_the_first_commit(photos: Path, tmp_path: Path) -> None:
    """Guards against a random annotator being computed again, and against orphaned parts of it."""
    complete(build(photos, tmp_path / "g", [Random()], limit=4))
    before = tree(tmp_path / "g")
    complete(build(photos, tmp_path / "g", [Random()], limit=4))
    assert tree(tmp_path / "g") == before
    parts = {path.name for path in (tmp_path / "g/nodes/kind=canny").rglob("*.parquet")}
    assert parts == {Path(name).name for name in Graph.open(tmp_path / "g").files("canny")}


# ---- rows that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Ordered, BatchOrdered])
def test_a_failing_row_is_recorded_alone(
    cls: type[Ordered], photos: Path, tmp_path: Path, control: Callable[..., str]
) -> None:
    """Guards against a failure that takes its batch along, or is recorded with paths and times."""
    tag = control({"p03.png": "fail", "p04.jpg": "skip"})
    report = complete(build(photos, tmp_path / "g", [cls(tag=tag), Child()], shard_size=9))
    rows = _by_key(Graph.open(tmp_path / "g"), "canny")
    assert (rows["p03.png"]["status"], rows["p03.png"]["reason"]) == ("failed", "error")
    assert rows["p03.png"]["detail"] == "RuntimeError: cannot do p03.png, see <path> at <time>"
    assert (rows["p04.jpg"]["status"], rows["p04.jpg"]["reason"]) == ("skipped", "nothing_here")
    assert Counter(row["status"] for row in rows.values()) == {"ok": 16, "failed": 1, "skipped": 1}
    name = "ordered" if cls is Ordered else "batch_ordered"
    assert report.annotators[name].reasons == {"failed:error": 1, "skipped:nothing_here": 1}


@pytest.mark.parametrize("mode", WRONG)
def test_a_wrong_result_fails_its_row(mode: str, photos: Path, tmp_path: Path) -> None:
    """Guards against a broken annotator result that takes the whole unit down, or is stored."""
    report = complete(build(photos, tmp_path / "g", [Wrong(mode=mode)], limit=3, shard_size=3))
    assert (report.annotators["wrong"].ok, report.annotators["wrong"].failed) == (2, 1)
    row = Graph.open(tmp_path / "g").edges("canny").to_pylist()[0]
    assert (row["status"], row["reason"]) == ("failed", "error") and row["detail"]


def test_a_kind_that_was_not_made(photos: Path, tmp_path: Path) -> None:
    """Guards against a shortage being an error or a missing row; both kinds commit together."""
    complete(build(photos, tmp_path / "g", [TwoKinds()]))
    graph = Graph.open(tmp_path / "g")
    wide = [graph.read(i, "image").array().shape[1] > graph.read(i, "image").array().shape[0] for i in range(18)]
    assert _statuses(graph, "canny") == {("ok", None): 18}
    assert _statuses(graph, "foreground_mask") == {("skipped", "not_made"): sum(wide), ("ok", None): 18 - sum(wide)}
    assert {row["score"] for row in graph.edges("canny").to_pylist()} == {0.5}
    with pytest.raises(MissingNode, match="not_made"):
        graph.read(wide.index(True), "foreground_mask")


def test_children_of_failed_and_skipped_parents(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against a child row that is missing, failed, or annotated without its parent."""
    tag = control({"p03.png": "fail", "p04.jpg": "skip"})
    complete(build(photos, tmp_path / "g", [Child(tag=tag), Ordered(tag=tag)]))
    rows = _by_key(Graph.open(tmp_path / "g"), "foreground_mask")
    assert (rows["p03.png"]["status"], rows["p03.png"]["reason"]) == ("skipped", "parent_failed")
    assert (rows["p04.jpg"]["status"], rows["p04.jpg"]["reason"]) == ("skipped", "parent_skipped")
    assert sorted(calls(tag + "-child")) == sorted(set(rows) - {"p03.png", "p04.jpg"})
    parent = rows["p05.png"]["parents"][0]
    canny = _by_key(Graph.open(tmp_path / "g"), "canny")["p05.png"]
    assert (parent["kind"], parent["content_hash"]) == ("canny", canny["content_hash"])


# ---- variants ----------------------------------------------------------------------------------------------------


def test_each_variant_has_its_child(photos: Path, tmp_path: Path) -> None:
    """Guards against children of variant 0 only, or bound to another variant's parent."""
    complete(build(photos, tmp_path / "g", [OfStyles(), Canny(of="style_content"), Styles()], limit=5))
    graph = Graph.open(tmp_path / "g")
    for kind in ("style_content", "style_content.canny", "foreground_mask"):
        assert graph.kinds()[kind] == 15
    for row in graph.edges("foreground_mask").to_pylist():
        assert [parent["kind"] for parent in row["parents"]] == ["style_content", "style_content.canny"]
        assert {parent["variant"] for parent in row["parents"]} == {row["variant"]}
        edges = graph.read(row["item_ix"], "style_content.canny", row["variant"]).values()
        mask = graph.read(row["item_ix"], "foreground_mask", row["variant"]).values()
        assert ((edges == 0) == (mask > 0)).all()
    pictures = {graph.read(0, "style_content", variant).bytes for variant in range(3)}
    assert len(pictures) == 3
    with pytest.raises(MissingNode, match="variant 3; variants planned: 3"):
        graph.read(0, "style_content", 3)


def test_more_variants_make_a_revision(photos: Path, tmp_path: Path) -> None:
    """Guards against recomputing or losing the variants that are there, and against planned variants that shrink."""
    few, more = [Styles(variants=2), Canny(of="style_content")], [Styles(variants=4), Canny(of="style_content")]
    complete(build(photos, tmp_path / "g", few, limit=6))
    before, old = tree(tmp_path / "g", "nodes"), Graph.open(tmp_path / "g")
    report = complete(build(photos, tmp_path / "g", more, limit=6))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds() == {"image": 6, "style_content": 24, "style_content.canny": 24}
    assert old.kinds() == {"image": 6, "style_content": 12, "style_content.canny": 12}
    after = tree(tmp_path / "g", "nodes")
    assert before.items() <= after.items() and set(old.files("style_content")) < set(graph.files("style_content"))
    assert report.annotators["styles"].reused == 12
    assert graph.live("style_content") == old.live("style_content")
    complete(build(photos, tmp_path / "g", few, limit=6))
    assert Graph.open(tmp_path / "g").kinds() == graph.kinds() and tree(tmp_path / "g", "nodes") == after


# ---- annotators and workers that fail ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 tiny photographs."""
    folder = tmp_path_factory.mktemp("many")
    write_photos(folder, range(8))
    sources = sorted(folder.iterdir())
    for number in range(8, 120):
        (folder / f"q{number:03d}{sources[number % 8].suffix}").write_bytes(sources[number % 8].read_bytes())
    return folder


@pytest.mark.parametrize("shard_size", [120, 20])
def test_a_broken_annotator_stops(shard_size: int, many: Path, tmp_path: Path) -> None:
    """Guards against weeks of failing rows: it and its descendants stop, the others finish, nothing hides it."""
    report = build(many, tmp_path / "g", [SomeFail(percent=100), Child(), "lsd"], shard_size=shard_size)
    graph = Graph.open(tmp_path / "g")
    assert _statuses(graph, "lines").total() == 120
    assert any("some_fail" in error for error in report.errors)
    left = {unit.split()[0] for unit in report.units_left}
    assert "child" in left and "lsd" not in left
    finished = _statuses(graph, "canny").total() if graph.commits("canny") else 0
    assert finished < 120 and report.units_done == report.units_wanted - len(report.units_left)


def test_less_than_half_failing_goes_on(many: Path, tmp_path: Path) -> None:
    """Guards against an annotator stopped for old failures: only rows of this run count."""
    complete(build(many, tmp_path / "g", [SomeFail(percent=45)], shard_size=120))
    assert 40 <= _statuses(Graph.open(tmp_path / "g"), "canny")["failed", "error"] < 60
    complete(build(many, tmp_path / "g", [SomeFail(percent=45, variants=2)], shard_size=120))
    assert 90 <= _statuses(Graph.open(tmp_path / "g"), "canny")["failed", "error"] < 120


def test_undecodable_files_are_not_the_annotators_fault(tmp_path: Path, photos: Path) -> None:
    """Guards against a folder of junk stopping the run: every file is an item with a reason."""
    folder = write_photos(tmp_path / "photos", range(8))
    for number in range(110):
        (folder / f"junk{number:03d}.jpg").write_bytes(b"junk")
    report = complete(build(folder, tmp_path / "g", ["canny"]))
    assert report.annotators["source:folder"].reasons == {"failed:undecodable": 110}
    assert report.annotators["canny"].reasons == {"skipped:parent_failed": 110}


@pytest.mark.slow
@pytest.mark.ray
def test_a_row_that_kills_its_worker_is_condemned(
    photos: Path, tmp_path: Path, ray_address: str, control: Callable[..., str]
) -> None:
    """Guards against one picture that crashes native code blocking its whole shard for ever."""
    tag = control({"p03.png": "kill"})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag), Child()], executor="ray", limit=8, shard_size=4))
    rows = _by_key(Graph.open(tmp_path / "g"), "canny")
    assert (rows["p03.png"]["status"], rows["p03.png"]["reason"]) == ("failed", "killed_worker")
    assert Counter(row["status"] for row in rows.values()) == {"ok": 7, "failed": 1}
    assert 3 <= calls(tag).count("p03.png") <= 4
    assert leftovers(tmp_path / "g") == []
    control({})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag), Child()], executor="ray", limit=8, retry=True))
    assert Graph.open(tmp_path / "g").kinds() == {"image": 8, "canny": 8, "foreground_mask": 8}


# ---- refused before any work -------------------------------------------------------------------------------------


def _refused(photos: Path, out: Path, annotators: list[Any], **options: Any) -> str:
    with pytest.raises((GraphError, ValueError)) as caught:
        build(photos, out, annotators, **options)
    return str(caught.value)


def test_refused(photos: Path, tmp_path: Path) -> None:
    """Guards against a run that begins with wrong arguments: nothing may be written, the fix is named."""
    message = _refused(photos, tmp_path / "g", ["canny", TwoKinds()])
    assert all(word in message for word in ("canny", "two_kinds"))
    message = _refused(photos, tmp_path / "g", [Child()])
    assert "child needs canny" in message
    message = _refused(photos, tmp_path / "g", [OfStyles(), Styles()])
    assert "style_content.canny" in message
    assert not (tmp_path / "g").exists()


def test_refused_on_an_existing_graph(photos: Path, own_photos: Path, tmp_path: Path) -> None:
    """Guards against mixing shard sizes, sources or newer formats in one graph."""
    complete(build(photos, tmp_path / "g", ["canny"], shard_size=5))
    before = tree(tmp_path / "g", ".")
    assert "5" in _refused(photos, tmp_path / "g", ["canny"], shard_size=6)
    assert complete(build(photos, tmp_path / "g", ["canny"], shard_size=5)).annotators == {}
    with pytest.raises(GraphError, match="sample"):
        make_plan(files_at(tmp_path / "g"), source("sample"), [])
    assert complete(build(own_photos, tmp_path / "g", ["canny"], shard_size=5)).annotators == {}, "a moved folder"
    assert tree(tmp_path / "g", ".") == before
    text = (tmp_path / "g/graph.json").read_text()
    for change in ({"features": ["frames"]}, {"format": 2}, {"surprise": 1}):
        (tmp_path / "g/graph.json").write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(GraphError, match=r"graph\.json"):
            Graph.open(tmp_path / "g")
        _refused(photos, tmp_path / "g", ["canny"])


@pytest.mark.parametrize("name", ["../../escaped", "a/../../../escaped", "/escaped"])
def test_a_kind_is_a_word_and_not_a_path(name: str, photos: Path, tmp_path: Path) -> None:
    """Guards against path traversal through the name of a plug-in's kind."""

    class Escaping(Random):
        makes = (Kind(name=name, family="condition", codec="png1", description="nothing"),)  # type: ignore[assignment]

        def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
            return [Derived({name: np.zeros((4, 4), np.uint8)}) for _ in batch]

    with pytest.raises((GraphError, ValueError)):
        complete(build(photos, tmp_path / "a/b/g", [Escaping()], limit=2))
    assert [path for path in tmp_path.rglob("*") if "escaped" in str(path.relative_to(tmp_path))] == []
