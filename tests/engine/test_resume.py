"""Kill it at any moment, run two at once: what is committed stays, and nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from graphbuild.annotators.base import Annotator
from graphbuild.annotators.canny import Canny
from graphbuild.engine.executors.inline import remove_dead_runs
from graphbuild.errors import GraphError
from graphbuild.store.files import LocalFiles
from graphbuild.store.graph import Graph
from graphbuild.store.workspace import refuse_foreign
from tests.support.annotators import (
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
@pytest.mark.parametrize("where", ["folder", "store", pytest.param("cluster", marks=pytest.mark.ray)])
def test_three_runs_at_once(
    where: str, photos: Path, tmp_path: Path, s3: ObjectStore, request: pytest.FixtureRequest
) -> None:
    """Guards against runs of some annotators in common that lose one another's kinds, or fail one another's units."""
    out: Path | str = s3.new_url() if where == "store" else tmp_path / "g"
    every: list[list[Annotator | str]] = [["canny", "lsd"], ["lsd", Styles()], ["canny", Halves()]]
    options: dict[str, Any] = {"flush_s": 0.02, "shard_size": 6, "environment": s3.environment}
    if where == "cluster":
        options |= {"executor": "ray", "address": request.getfixturevalue("ray_address")}
    runs = [start(photos, out, annotators, **options) for annotators in every]
    for run in runs:
        run.join(240)
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
