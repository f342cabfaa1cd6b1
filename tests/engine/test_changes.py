"""What changes between two runs: photos added or changed, a retry, another version; old readers see the old."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from graphbuild.annotators.canny import Canny
from graphbuild.annotators.lsd import Lsd
from graphbuild.engine.new_items import ChangedItems
from graphbuild.engine.plan import make_plan
from graphbuild.errors import MissingNode
from graphbuild.sources import resolve as source
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from tests.support.annotators import Child, Ordered, build, calls, complete, tree, write_photos

# ---- a folder that changes ---------------------------------------------------------------------------------------


def _identity(out: Path) -> dict[str, tuple[int, int]]:
    files = [path for name in ("items", "nodes", "edges") for path in (out / name).rglob("*.parquet")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_added_photos(own_photos: Path, tmp_path: Path) -> None:
    """Guards against new files renumbering old items, or old units running again."""
    complete(build(own_photos, tmp_path / "g", ["canny", "lsd"]))
    old, before = Graph.open(tmp_path / "g"), _identity(tmp_path / "g")
    digest, items = old.digest, old.items().to_pylist()
    added = write_photos(tmp_path / "added", range(18, 48))
    for number, path in enumerate(sorted(added.iterdir())):
        shutil.move(path, own_photos / f"{'a' if number % 2 else 'z'}{path.name}")
    plan = make_plan(files_at(tmp_path / "g"), source("folder", path=str(own_photos)), [Canny()])
    assert {unit.work.unit.shard.start >= 18 for unit in plan.units} == {True}
    assert set(plan.reasons()) == {("source:folder", "new items"), ("canny", "missing")}
    complete(build(own_photos, tmp_path / "g", ["canny", "lsd"]))
    after = _identity(tmp_path / "g")
    assert {name: after[name] for name in before} == before
    graph = Graph.open(tmp_path / "g")
    assert graph.num_items == 48 and graph.items().to_pylist()[:18] == items
    assert graph.kinds()["image"] == graph.kinds()["canny"] == 48
    pinned = Graph.open(tmp_path / "g", snapshot=digest)
    assert pinned.num_items == 18 and pinned.kinds() == old.kinds() and pinned.digest == digest != graph.digest
    assert pinned.edges("canny").equals(old.edges("canny"))
    with pytest.raises(MissingNode):
        pinned.read(18, "image")


def test_a_changed_photo_is_refused_by_name(own_photos: Path, tmp_path: Path) -> None:
    """Guards against pixels that change under a graph, silently or by being taken for a new version."""
    complete(build(own_photos, tmp_path / "g", ["canny"]))
    before, whole = tree(tmp_path / "g"), tree(tmp_path / "g", ".")
    original = (own_photos / "p03.png").read_bytes()
    Image.new("RGB", (64, 48), "red").save(own_photos / "p03.png")
    with pytest.raises(ChangedItems, match=r"p03\.png"):
        build(own_photos, tmp_path / "g", ["canny"])
    assert tree(tmp_path / "g", ".") == whole
    complete(build(own_photos, tmp_path / "g", ["canny"], accept_changed=True))
    graph = Graph.open(tmp_path / "g")
    items = [row for row in graph.items().to_pylist() if row["key"] == "p03.png"]
    assert [row["item_ix"] for row in items] == [3, 18] and items[0]["item_id"] != items[1]["item_id"]
    assert graph.read(3, "image").bytes == original
    assert graph.read(18, "image").bytes == (own_photos / "p03.png").read_bytes()
    assert graph.read(18, "canny").array().shape == (48, 64, 3)
    assert before.items() <= tree(tmp_path / "g").items()
    assert complete(build(own_photos, tmp_path / "g", ["canny"])).annotators == {}


def test_touched_and_vanished_photos(own_photos: Path, tmp_path: Path) -> None:
    """Guards against a copied folder (new times, same bytes) being refused, and nodes lost with their file."""
    complete(build(own_photos, tmp_path / "g", ["canny"]))
    before = tree(tmp_path / "g")
    for path in own_photos.iterdir():
        os.utime(path, (1, 1))
    (own_photos / "p05.png").unlink()
    assert complete(build(own_photos, tmp_path / "g", ["canny"])).annotators == {}
    assert tree(tmp_path / "g") == before
    assert Graph.open(tmp_path / "g").read(5, "canny").array().any()
    plan = make_plan(files_at(tmp_path / "g"), source("folder", path=str(own_photos)), [Canny()])
    assert plan.vanished == 1


# ---- retry -------------------------------------------------------------------------------------------------------


def test_retry(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against a retry that recomputes good rows, disturbs readers, or leaves children stale."""
    tag = control({"p03.png": "fail", "p04.jpg": "skip"})
    annotators = [Ordered(tag=tag), Child(tag=tag)]
    complete(build(photos, tmp_path / "g", annotators, shard_size=9))
    old, before = Graph.open(tmp_path / "g"), _identity(tmp_path / "g")
    old_rows = old.edges("canny").to_pylist()
    control({})
    assert build(photos, tmp_path / "g", annotators).annotators == {}, "a plain run repeats no recorded failure"
    done = Counter(calls(tag)), Counter(calls(tag + "-child"))
    complete(build(photos, tmp_path / "g", annotators, retry=True))
    assert Counter(calls(tag)) - done[0] == {"p03.png": 1}
    assert Counter(calls(tag + "-child")) - done[1] == {"p03.png": 1}
    graph = Graph.open(tmp_path / "g")
    assert [commit.ref.revision for commit in graph.commits("canny")] == [1, 0]
    assert [commit.ref.revision for commit in graph.commits("foreground_mask")] == [1, 0]
    assert graph.read(3, "canny").array().any() and graph.read(3, "foreground_mask").array().any()
    assert graph.kinds() == {"image": 18, "canny": 17, "foreground_mask": 17}
    # A reader that opened the graph before still sees what it saw.
    after = _identity(tmp_path / "g")
    assert {name: after[name] for name in before} == before
    assert old.edges("canny").to_pylist() == old_rows and old.kinds()["canny"] == 16
    assert old.read(5, "canny").bytes == graph.read(5, "canny").bytes
    with pytest.raises(MissingNode, match="failed"):
        old.read(3, "canny")
    assert Graph.open(tmp_path / "g", snapshot=old.digest).edges("canny").to_pylist() == old_rows


def test_a_retry_that_changes_nothing_publishes_nothing(
    photos: Path, tmp_path: Path, control: Callable[..., str]
) -> None:
    """Guards against a revision per retry while the cause is still there."""
    tag = control({"p03.png": "fail"})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag), Child()]))
    before = tree(tmp_path / "g", "items", "nodes", "edges", "heads")
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag), Child()], retry=True))
    assert calls(tag).count("p03.png") == 2
    assert tree(tmp_path / "g", "items", "nodes", "edges", "heads") == before


def test_a_repaired_file_is_read_again(own_photos: Path, tmp_path: Path) -> None:
    """Guards against a file that could not be opened once staying lost after `retry`."""
    whole = own_photos / "p02.jpg"
    os.rename(whole, tmp_path / "aside.jpg")
    whole.symlink_to("nothing.jpg")
    complete(build(own_photos, tmp_path / "g", ["canny"]))
    assert Graph.open(tmp_path / "g").edges("image").to_pylist()[2]["reason"] == "missing"
    whole.unlink()
    os.rename(tmp_path / "aside.jpg", whole)
    complete(build(own_photos, tmp_path / "g", ["canny"], retry=True))
    graph = Graph.open(tmp_path / "g")
    assert graph.kinds() == {"image": 18, "canny": 18}
    assert graph.read(2, "image").bytes == whole.read_bytes()
    item = graph.items().slice(2, 1).to_pylist()[0]
    assert item["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest() and item["width"] and item["phash"]


# ---- another version ---------------------------------------------------------------------------------------------


def test_changed_thresholds(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a half-built version that serves, one that never does, and reruns of what did not change."""
    complete(build(photos, tmp_path / "g", ["canny", "lsd", Child()], shard_size=6))
    old, before = Graph.open(tmp_path / "g"), _identity(tmp_path / "g")
    changed = [Canny(low=50.0, high=120.0), Lsd()]
    plan = make_plan(files_at(tmp_path / "g"), source("folder", path=str(photos)), changed)
    why = dict(plan.reasons().keys())
    assert set(why) == {"canny", "child"} and set(plan.reasons().values()) == {3}
    assert why["canny"] == "annotator changed: high 200.0 -> 120.0, low 100.0 -> 50.0"
    assert why["child"].startswith("annotator changed: canny v")

    finished: list[int] = []

    def interrupted(*args: object) -> None:
        finished.append(1)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("graphbuild.engine.run.write_event", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(photos, tmp_path / "g", changed)
    half = Graph.open(tmp_path / "g")
    new = plan.makes()["canny"]
    assert half.live("canny") == old.live("canny") != new and half.kinds() == old.kinds()
    assert half.read(0, "canny").bytes == old.read(0, "canny").bytes
    assert half.read(0, "canny", version=new.version).bytes != old.read(0, "canny").bytes

    complete(build(photos, tmp_path / "g", changed))
    graph = Graph.open(tmp_path / "g")
    assert graph.live("canny") == new and graph.live("lines") == old.live("lines")
    assert graph.live("foreground_mask") == plan.makes()["foreground_mask"] != old.live("foreground_mask")
    assert graph.kinds() == old.kinds()
    for version in (old.live("canny").version, new.version):
        assert graph.read(7, "canny", version=version).version == version
        assert graph.edges("canny", version=version).num_rows == 18
    assert (graph.read(7, "canny").values() > 0).sum() > (old.read(7, "canny").values() > 0).sum()
    after = _identity(tmp_path / "g")
    assert {name: after[name] for name in before} == before
