"""`gc`: what nothing reaches goes, what is excluded is erased, the rest is as it was, whenever it is killed."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from graphbuild.annotators.canny import Canny
from graphbuild.cli import app
from graphbuild.engine.gc import Collection, gc
from graphbuild.engine.plan import make_plan
from graphbuild.errors import GraphError, MissingNode
from graphbuild.sources import resolve
from graphbuild.store import parts
from graphbuild.store.exclusions import chosen, exclude
from graphbuild.store.files import LocalFiles
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.pins import keep_snapshot
from graphbuild.store.verify import verify
from graphbuild.store.workspace import GC, Workspace
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Child, build, complete, leftovers, tree

PATHS = PathSet(name="one", paths=(TaskPath(name="line", cells=("foreground_mask", "canny", "image"), targets=(2,)),))
LIMIT = {"limit": 6, "shard_size": 3}
OLD = [Canny(low=50.0), Child()]
NEW = [Canny(), Child()]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; a version of canny, and of what is made from it, that others have replaced; item 1 is excluded."""
    out = tmp_path_factory.mktemp("gc") / "g"
    complete(build(photos, out, OLD, **LIMIT))
    complete(build(photos, out, NEW, **LIMIT))
    exclude(files_at(out), chosen(Graph.open(out).items(), [1]), "takedown")
    assert verify(out, "full").problems == []
    return out


@pytest.fixture
def graph(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "g"))


def nodes(out: Path, snapshot: str | None = None, version: str | None = None) -> dict[tuple[int, str], bytes]:
    """Everything that can be read, but for excluded items."""
    opened, found = Graph.open(out, snapshot=snapshot), {}
    for kind in opened.head:
        for item_ix in set(range(opened.num_items)) - opened.excluded_items.keys():
            found[item_ix, kind] = opened.read(item_ix, kind).bytes
    return found


def stored(out: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())


def walks(out: Path, snapshot: str | None = None) -> list[object]:
    return list(PathSampler(Graph.open(out, snapshot=snapshot), PATHS).walks(0, 200))


def versions(out: Path) -> set[str]:
    return {version for _, version in Graph.open(out).producers()}


def waste(found: Collection, what: str) -> list[str]:
    return sorted(line.kind for line in found.waste if line.what == what)


def test_listing_changes_nothing(graph: Path) -> None:
    before = tree(graph, ".")
    found = gc(graph)
    assert tree(graph, ".") == before and not found.deleted
    assert waste(found, "version") == ["canny", "foreground_mask"]
    assert waste(found, "excluded") == ["canny", "foreground_mask", "image"] and waste(found, "leftover") == []
    freed = sum(line.nbytes for line in found.waste if line.what == "version")
    old = versions(graph) - {live.version for live in Graph.open(graph).head.values()}
    parts = [path for version in old for path in graph.glob(f"nodes/*/version={version}/*.parquet")]
    assert freed == sum(path.stat().st_size for path in parts) > 0


def test_what_nothing_reaches_is_gone_and_the_rest_is_the_same(graph: Path, photos: Path) -> None:
    """Guards against bytes of a takedown that stay anywhere, tasks that change, and work that is done again."""
    opened = Graph.open(graph)
    before, drawn, snapshot = nodes(graph), walks(graph), opened.digest
    rows = [opened.rows(1, kind) for kind in opened.head]
    places = [r.place(r.find(1, r.table.column("kind")[0].as_py(), 0)) for r in rows]  # type: ignore[arg-type]
    secrets = [opened.fs.pread(place.part, place.offset, place.nbytes) for place in places]
    assert all(secret in stored(graph) for secret in secrets)

    assert gc(graph, delete=True).deleted
    assert verify(graph, "full").problems == [] and leftovers(graph) == []
    assert not any(secret in stored(graph) for secret in secrets)
    assert versions(graph) == {live.version for live in opened.head.values()}
    assert nodes(graph) == before and walks(graph) == drawn
    assert nodes(graph, snapshot) == before and walks(graph, snapshot) == drawn, "the snapshot of before"
    assert Graph.open(graph, snapshot=snapshot).digest == snapshot
    assert gc(graph).waste == [] and gc(graph, delete=True).waste == []

    plan = make_plan(files_at(graph), resolve("folder", path=str(photos)), NEW, limit=6)
    assert plan.units == ()
    complete(build(photos, graph, NEW, limit=6, retry=True))
    complete(build(photos, graph, ["source_caption", *NEW], limit=6))
    assert not any(secret in stored(graph) for secret in secrets) and verify(graph, "full").problems == []


def test_a_correction_does_not_bring_an_erased_photo_back(whole: Path, own_photos: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "g"))
    gc(out, delete=True)
    (own_photos / "p01.txt").write_text("A new caption.")
    plan = make_plan(files_at(out), resolve("folder", path=str(own_photos)), NEW, limit=6)
    assert plan.units == ()


def test_what_a_training_uses_stays(graph: Path, photos: Path) -> None:
    """Guards against a training that cannot be resumed."""
    old = Graph.open(graph)
    (first,) = {path.stem for path in (graph / "snapshots").glob("*.parquet")} - {old.digest}
    keep_snapshot(Graph.open(graph, snapshot=first), "training")
    before, drawn = nodes(graph, first), walks(graph, first)
    assert waste(gc(graph), "version") == []
    gc(graph, delete=True)
    assert nodes(graph, first) == before and walks(graph, first) == drawn
    assert waste(gc(graph, drop=[first]), "version") == ["canny", "foreground_mask"]
    found = gc(graph, delete=True, drop=[first])
    assert found.snapshots == {first: "training"} and verify(graph, "full").problems == []
    with pytest.raises(GraphError, match="gc has removed it"):
        Graph.open(graph, snapshot=first)
    complete(build(photos, graph, OLD, **LIMIT))  # what is gone is built again
    assert len(versions(graph)) == 5 and verify(graph, "full").problems == []


def test_what_is_being_built_stays_until_it_is_named(graph: Path, photos: Path) -> None:
    """Guards against weeks of a half-built version that are garbage."""
    part = Canny(low=70.0)
    complete(build(photos, graph, [part, Child()], limit=6))
    files = files_at(graph)
    files.remove(f"heads/{max(path.name for path in (graph / 'heads').iterdir())}")  # as if it were killed before
    (building,) = {v for a, v in Graph.open(graph).producers() if a == "canny"} - _once_live(graph, "canny")
    assert any("never live" in why for version, why in gc(graph).kept.items() if building in version)
    found = gc(graph, versions=[building, *_children(graph, building)])
    assert building in {line.version for line in found.waste}
    live = Graph.open(graph).head["canny"].version
    for name, message in [(live, "stays: live"), ("v0", "no version 'v0'")]:
        with pytest.raises(GraphError, match=message):
            gc(graph, versions=[name])


def _once_live(graph: Path, kind: str) -> set[str]:
    return {json.loads(path.read_text())[kind]["version"] for path in (graph / "heads").iterdir()}


def _children(graph: Path, version: str) -> list[str]:
    documents = {path.stem: json.loads(path.read_text()) for path in (graph / "lineage").iterdir()}
    return [child for child, document in documents.items() if version in document["parents"].values()]


def test_a_part_is_rewritten_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a shard of large pictures that is held in memory because one of its rows goes."""
    (folder := tmp_path / "photos").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (512, 680, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.bmp")
    complete(build(folder, out := tmp_path / "g", [], shard_size=24))
    exclude(files_at(out), chosen(Graph.open(out).items(), [5]), "takedown")
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 2 << 20)
    tracemalloc.start()
    gc(out, delete=True)
    assert tracemalloc.get_traced_memory()[1] < 12 << 20  # of 24 MB
    tracemalloc.stop()
    assert verify(out, "full").problems == [] and len(nodes(out)) == 23


class Killed(BaseException):
    """As SIGKILL: nothing is tidied after it but by the next process."""


def test_a_killed_call_is_finished_by_the_next(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every change of a file: the graph is sound, reads the same, and ends as the undisturbed one."""
    undisturbed = Path(shutil.copytree(whole, tmp_path / "undisturbed"))
    before = nodes(whole)
    gc(undisturbed, delete=True)
    steps = 0
    for number in _every(5):
        graph = Path(shutil.copytree(whole, tmp_path / f"g{number}"))
        with monkeypatch.context() as patched:
            left = _kill_at(patched, number)
            try:
                gc(graph, delete=True)
            except Killed:
                steps += 1
        shutil.rmtree(graph / "_tmp")
        assert verify(graph, "full").problems == [] and nodes(graph) == before, number
        if left[0] >= 0:
            break
        gc(graph, delete=True)
        assert verify(graph, "full").problems == [] and gc(graph).waste == []
        assert tree(graph, "items", "nodes", "edges") == tree(undisturbed, "items", "nodes", "edges"), number
        shutil.rmtree(graph)
    assert steps > 5


def _every(step: int) -> Iterator[int]:
    number = 1
    while True:
        yield number
        number += step


def _kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Raise at the n-th change of files; what is left of n is returned."""
    left = [number]
    for name in ("publish", "publish_file", "replace", "remove"):
        method = getattr(LocalFiles, name)

        def killing(self: LocalFiles, *args: object, _method: object = method) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return _method(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(LocalFiles, name, killing)
    return left


def test_never_beside_another(graph: Path) -> None:
    """Guards against files that go while a run plans with them."""
    files = files_at(graph)
    run = Workspace.create(files, "run")
    with pytest.raises(GraphError, match="run is at work on this graph"):
        gc(graph, delete=True)
    run.close()
    collecting = Workspace.create(files, GC)
    with pytest.raises(GraphError, match="gc is at work"):
        Workspace.create(files, "run")
    collecting.close()
    assert leftovers(graph) == []


def test_the_command(graph: Path) -> None:
    shutil.copy(
        part := next(graph.glob("nodes/kind=image/*/*.parquet")), part.with_name(part.name.replace("r000", "r009"))
    )
    told = CliRunner().invoke(app, ["gc", str(graph)])
    assert told.exit_code == 0 and "replaced version" in told.output and "left over parts" in told.output
    assert "--delete" in told.output and "would be deleted" in told.output
    done = CliRunner().invoke(app, ["gc", str(graph), "--delete", "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["deleted"]
    assert "nothing to delete" in CliRunner().invoke(app, ["gc", str(graph)]).output
    assert CliRunner().invoke(app, ["gc", str(graph), "--keep", "0" * 16]).exit_code == 2
    with pytest.raises(MissingNode, match="excluded"):
        Graph.open(graph).read(1, "image")
