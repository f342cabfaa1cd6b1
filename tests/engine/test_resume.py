"""Kill it, run two at once, add and change photos, retry: what is committed stays, and nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from graphbuild.annotators.base import Annotator
from graphbuild.annotators.canny import Canny
from graphbuild.annotators.lsd import Lsd
from graphbuild.engine.executors.inline import remove_dead_runs
from graphbuild.engine.new_items import ChangedItems
from graphbuild.engine.plan import make_plan
from graphbuild.errors import GraphError, MissingNode
from graphbuild.sources import resolve as source
from graphbuild.store.files import LocalFiles
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.workspace import refuse_foreign
from tests.support.annotators import (
    Child,
    Halves,
    Ordered,
    Slow,
    Styles,
    build,
    calls,
    complete,
    leftovers,
    published,
    start,
    tree,
    write_photos,
)
from tests.support.object_store import ObjectStore, local_content

ANNOTATORS: list[Annotator | str] = ["canny", "lsd", "grabcut", Styles(), Canny(of="style_content")]
KILLS, KILLS_ON_RAY = (16, 4) if os.environ.get("GRAPHBUILD_LONG") else (8, 2)


# ---- killed at any moment ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_inline(photos: Path, tmp_path: Path) -> None:
    """Guards against a moment at which a kill loses, doubles or changes something, or leaves rubbish for ever."""
    options = {"flush_s": 0.02, "shard_size": 6}
    assert _run(photos, tmp_path / "whole", options) == 0
    whole, rng, killed = tree(tmp_path / "whole"), random.Random(0), 0
    for number in range(KILLS):
        out, parts = tmp_path / f"g{number}", int((number + rng.random()) / KILLS * len(whole))
        wait = rng.random() * 0.03
        killed += _killed(start(photos, out, ANNOTATORS, **options), out, parts, wait)
        assert _run(photos, out, options) == 0
        assert tree(out) == whole, f"killed {wait:.3f} s after {parts} parts"
        assert leftovers(out) == [], f"killed {wait:.3f} s after {parts} parts"
    assert killed >= KILLS * 3 // 4, "the moments must lie inside the run"


def _killed(process: ForkServerProcess, out: Path, parts: int, wait: float) -> bool:
    """Kill a run that has published `parts` parts, however busy the machine is; False if it was faster."""
    while published(out) < parts and process.is_alive():
        time.sleep(0.001)
    time.sleep(wait)
    process.kill()
    process.join()
    return process.exitcode == -9


def _run(photos: Path, out: Path, options: Mapping[str, Any]) -> int | None:
    process = start(photos, out, ANNOTATORS, **options)
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.ray
def test_killed_with_ray(photos: Path, tmp_path: Path, ray_address: str) -> None:
    """Guards against workers that outlive their driver and write into the graph that the next run builds."""
    options: dict[str, Any] = {"flush_s": 0.02, "shard_size": 6, "executor": "ray", "address": ray_address}
    assert _run(photos, tmp_path / "whole", options) == 0
    whole, rng = tree(tmp_path / "whole"), random.Random(1)
    for number in range(KILLS_ON_RAY):
        out, parts = tmp_path / f"g{number}", int((number + rng.random()) / KILLS_ON_RAY * len(whole))
        wait = rng.random() * 0.1
        _killed(start(photos, out, ANNOTATORS, **options), out, parts, wait)
        assert _run(photos, out, options) == 0
        assert tree(out) == whole, f"killed {wait:.2f} s after {parts} parts"
        _wait_until_clean(photos, out)


def _wait_until_clean(photos: Path, out: Path) -> None:
    """Runs with nothing to do clean up once the killed run's workers have exited."""
    deadline = time.monotonic() + 60
    while leftovers(out) and time.monotonic() < deadline:
        time.sleep(0.5)
        complete(build(photos, out, ANNOTATORS))
    assert leftovers(out) == []


@pytest.mark.slow
def test_a_long_unit_goes_on_where_it_was(
    tmp_path: Path, control: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a spool that is not read back: the hours before a kill would be lost."""
    folder = write_photos(tmp_path / "photos", range(4))
    first = sorted(folder.iterdir())
    for number in range(4, 400):
        shutil.copy(first[number % 4], folder / f"q{number:03d}{first[number % 4].suffix}")
    slow = Slow(tag=control())
    options: dict[str, Any] = {"shard_size": 400, "flush_s": 1.0}
    process = start(folder, tmp_path / "g", [slow], **options)
    while len(calls(slow.tag)) < 200:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not list((tmp_path / "g").glob("edges/annotator=slow/*/*"))
    before = len(calls(slow.tag))
    again = start(folder, tmp_path / "g", [slow], **options)
    again.join()
    assert again.exitcode == 0 and len(calls(slow.tag)) - before <= 240
    assert leftovers(tmp_path / "g") == []
    monkeypatch.setattr("tests.support.annotators.time.sleep", lambda seconds: None)
    complete(build(folder, tmp_path / "whole", [slow], **options))
    assert tree(tmp_path / "g") == tree(tmp_path / "whole")


DAMAGED = {"alone.json": "[3, ", "deaths.json": '{"p05.png": 3}', "unit.json": ""}


def test_a_damaged_spool_is_computed_again(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against trusting what a kill or a full disk left half-written in `_staging`."""
    tag = control({"p09.png": "kill"})
    process = start(photos, tmp_path / "g", [Ordered(tag=tag)], shard_size=18, flush_s=0.0)
    process.join()
    assert process.exitcode == -9
    spool = sorted((tmp_path / "g/_staging").rglob("*.arrow"))
    assert len(spool) == 9
    spool[0].write_bytes(spool[0].read_bytes()[:-100])
    body = bytearray(spool[1].read_bytes())
    body[len(body) // 2] ^= 1
    spool[1].write_bytes(body)
    spool[2].unlink()
    for name, text in DAMAGED.items():
        (spool[0].parent / name).write_text(text)
    for number, commit in enumerate(("../../other", "graph.json", "edges/annotator=a/version=v/../../..")):
        folder = tmp_path / f"g/_staging/{number:016x}"
        folder.mkdir()
        (folder / "unit.json").write_text(json.dumps({"commit": commit}))
    control({})
    done = len(calls(tag))
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag)], shard_size=18))
    assert len(calls(tag)) - done == 9 + 3
    complete(build(photos, tmp_path / "whole", [Ordered(tag=tag)], shard_size=18))
    assert tree(tmp_path / "g") == tree(tmp_path / "whole") and leftovers(tmp_path / "g") == []


def test_half_removed_staging_goes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a kill while a finished unit's staging folder is being removed: the rest stayed for ever."""

    rmtree = shutil.rmtree

    def killed_halfway(path: str, ignore_errors: bool = False) -> None:
        if "/_staging/" not in path:
            return rmtree(path, ignore_errors)
        os.unlink(os.path.join(path, "unit.json"))  # whichever comes first is up to the file system
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("graphbuild.store.files.shutil.rmtree", killed_halfway)
        with pytest.raises(KeyboardInterrupt):
            build(photos, tmp_path / "g", ["canny"], shard_size=18, flush_s=0.0)
    complete(build(photos, tmp_path / "g", ["canny"], shard_size=18))
    assert leftovers(tmp_path / "g") == []


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_two_runs_at_once(executor: str, photos: Path, tmp_path: Path) -> None:
    """Guards against two runs that overwrite, delete or wait for each other, or share a Ray that one of them ends."""
    options: dict[str, Any] = {"flush_s": 0.02, "shard_size": 6, "executor": executor}
    runs = [start(photos, tmp_path / "g", ANNOTATORS, **options) for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    complete(build(photos, tmp_path / "single", ANNOTATORS, shard_size=6))
    assert tree(tmp_path / "g") == tree(tmp_path / "single")
    complete(build(photos, tmp_path / "g", ANNOTATORS))
    assert leftovers(tmp_path / "g") == []


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "store"])
def test_three_runs_at_once(where: str, photos: Path, tmp_path: Path, s3: ObjectStore) -> None:
    """Guards against runs of some annotators in common that lose one another's kinds, or fail one another's units."""
    out: Path | str = tmp_path / "g" if where == "folder" else s3.new_url()
    every: list[list[Annotator | str]] = [["canny", "lsd"], ["lsd", Styles()], ["canny", Halves()]]
    options: dict[str, Any] = {"flush_s": 0.02, "shard_size": 6, "environment": s3.environment}
    runs = [start(photos, out, annotators, **options) for annotators in every]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    annotators = ["canny", "lsd", Styles(), Halves()]
    complete(build(photos, single := tmp_path / "single", annotators, shard_size=6))
    assert complete(build(photos, out, annotators)).annotators == {}
    assert Graph.open(out).kinds() == Graph.open(single).kinds()
    folders = ("items/", "nodes/", "edges/", "lineage/", "_")
    local, found = local_content(single), s3.content(str(out)) if where == "store" else local_content(Path(out))
    assert {n: d for n, d in found.items() if n.startswith(folders)} == {
        n: d for n, d in local.items() if n.startswith(folders)
    }
    assert where == "store" or leftovers(Path(out)) == []


class Ending(LocalFiles):
    """A graph whose other run ends its units at the moment they are asked for."""

    def read(self, name: str, *options: Any) -> bytes:
        (self.root / name).unlink()
        return super().read(name, *options)


def test_a_run_that_ends_while_another_begins(tmp_path: Path) -> None:
    """Guards against a run that cannot begin since what another one was at is no longer there to be read."""
    (folder := tmp_path / "_tmp" / "20260101T000000-abcdef+machine+1").mkdir(parents=True)
    (folder / "units.txt").write_text("canny/0\n")
    assert remove_dead_runs(Ending(tmp_path)) == (0, frozenset())


def test_a_graph_that_another_run_has_just_begun(photos: Path, tmp_path: Path) -> None:
    """Guards against "is no graph and not empty (graph.json)" where two runs have seen that there is no graph."""
    complete(build(photos, tmp_path / "g", ["canny"], limit=2))
    refuse_foreign(LocalFiles(tmp_path / "g"))
    (tmp_path / "g" / "graph.json").unlink()
    with pytest.raises(GraphError, match=r"without its graph\.json"):
        refuse_foreign(LocalFiles(tmp_path / "g"))


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
