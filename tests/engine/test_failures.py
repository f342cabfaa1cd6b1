"""Whatever one row does, it costs that row: exceptions, ends of the process, texts that cannot be stored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphbuild.contracts import Shard, Unit
from graphbuild.engine.spool import CONDEMN_AFTER, Spool
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.status import status_of
from graphbuild.store.workspace import Workspace
from tests.support.annotators import build, calls, complete, leftovers, start
from tests.support.sources import InMemory, Misbehaving

Control = Callable[..., str]


def rows_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return Graph.open(out).edges(kind).to_pylist()


# ---- exceptions --------------------------------------------------------------------------------------------------

ODD = {
    "system_exit": "SystemExit: 3",
    "memory": "MemoryError",
    "graph_error": "GraphError: not of the graph at all",
    "unsayable": "Unsayable, whose message raises RuntimeError",
    "surrogate": "RuntimeError: half a letter \\udc80, \\x1b[31mred",
}
WRONG = {
    "skip_number": "TypeError: Skip(reason=5): the reason is a word",
    "no_nodes": "TypeError: 'NoneType' object is not iterable",
    "odd_reason": "UnusableImage: 5",
    "surrogate_node": "UnicodeEncodeError: ",
}


@pytest.mark.parametrize("order", [*ODD, *WRONG])
def test_a_row_of_an_annotator_fails_alone(order: str, control: Control, tmp_path: Path) -> None:
    """Guards against one row that costs its unit: three tries, the same on every rerun, and the row is not named."""
    tag = control()
    control({"002": order}, "-annotator")
    annotators = [Misbehaving(tag=tag)]
    complete(build(InMemory(tag=tag), tmp_path / "g", annotators, shard_size=6))
    rows = rows_of(tmp_path / "g", "caption")
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert rows[2]["reason"] == ("out_of_memory" if order == "memory" else "error")
    assert rows[2]["detail"].startswith({**ODD, **WRONG}[order].strip()) and not rows[2]["detail"].endswith(":")
    assert complete(build(InMemory(tag=tag), tmp_path / "g", annotators)).annotators == {}


@pytest.mark.parametrize("order", ["system_exit", "unsayable"])
def test_a_model_that_cannot_be_loaded_costs_its_annotator(order: str, control: Control, tmp_path: Path) -> None:
    """Guards against a library whose SystemExit ends the whole run, with its own exit code."""
    tag = control()
    control({"model": order}, "-load")
    report = build(InMemory(tag=tag), tmp_path / "g", [Misbehaving(tag=tag), "canny"], shard_size=6)
    assert ODD[order] in report.errors[0] and report.units_left[0].startswith("misbehaving")
    assert Graph.open(tmp_path / "g").kinds()["canny"] == 6


def test_attributes_are_made_fit_to_store(control: Control, tmp_path: Path) -> None:
    tag = control()
    control({"002": "attrs"}, "-annotator")
    complete(build(InMemory(tag=tag), tmp_path / "g", [Misbehaving(tag=tag)], shard_size=6))
    assert Graph.open(tmp_path / "g").read(2, "caption").attrs == {"odd": "half ?"}


@pytest.mark.parametrize("order", [*ODD, "meta"])
def test_an_item_of_a_source_fails_alone(order: str, control: Control, tmp_path: Path) -> None:
    """Guards against one odd file that loses its whole shard for good."""
    tag = control({"002": order})
    complete(build(InMemory(tag=tag), tmp_path / "g", [Misbehaving(tag=tag)], shard_size=3))
    graph = Graph.open(tmp_path / "g")
    rows = graph.edges("image").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert order == "meta" or rows[2]["detail"].startswith(ODD[order].strip())
    assert graph.items().column("key").to_pylist() == [f"{number:03d}" for number in range(6)]
    assert graph.items().column("caption").to_pylist()[1:4:2] == ["picture 001", "picture 003"]
    assert calls(tag).count("000") == 1, "what was read is not read again"
    control({})
    complete(build(InMemory(tag=tag), tmp_path / "g", [Misbehaving(tag=tag)], retry=True))
    assert Graph.open(tmp_path / "g").kinds() == {"image": 6, "caption": 6}


def test_words_of_a_source_are_made_fit_to_store(control: Control, tmp_path: Path) -> None:
    tag = control({"002": "caption"})
    complete(build(InMemory(tag=tag), tmp_path / "g", [], shard_size=3))
    assert Graph.open(tmp_path / "g").items().column("caption")[2].as_py() == "half ?"


def test_a_source_that_is_gone_is_not_the_fault_of_its_items(control: Control, tmp_path: Path) -> None:
    """Guards against a graph whose items have no captions for ever, because a disk was away for a moment."""
    report = build(InMemory(tag=control({"000": "gone"})), tmp_path / "g", [], shard_size=3)
    assert "the place is gone" in report.errors[0] and len(report.units_left) == 2
    assert not list((tmp_path / "g").glob("items/*"))


# ---- ends of the process -----------------------------------------------------------------------------------------


def _until_done(source: InMemory, out: Path, tag: str) -> int:
    """How many processes died before one finished."""
    for deaths in range(7):
        process = start(source, out, [Misbehaving(tag=tag)], shard_size=3)
        process.join()
        if process.exitcode == 0:
            return deaths
    raise AssertionError("for ever")


def test_a_row_is_not_blamed_for_a_node(tmp_path: Path) -> None:
    """Guards against a sound row that is given up because it ran alone on nodes whose GPU is broken."""
    files = files_at(tmp_path)
    unit = Unit(annotator="canny", version="v" + 12 * "0", shard=Shard(index=0, start=0, stop=5))
    spool = Spool(files, Workspace.create(files, "run"), unit, 0, ["rows"])
    row = (3, "canny", 0)
    for _ in range(CONDEMN_AFTER):
        spool.alone(row)
        assert spool.condemned(None) == {}
    for _ in range(CONDEMN_AFTER - 1):
        spool.alone(row)
        assert spool.condemned("killed_worker") == {}
    spool.alone(row)
    assert spool.condemned("killed_worker")[row]["reason"] == "killed_worker"


@pytest.mark.parametrize(("to", "order"), [("", "exit"), ("-annotator", "kill")])
def test_a_row_that_ends_the_process_is_condemned(to: str, order: str, control: Control, tmp_path: Path) -> None:
    """Guards against a picture that ends every inline run at the same place, for ever."""
    tag = control()
    control({"001": order}, to)
    assert _until_done(InMemory(tag=tag), tmp_path / "g", tag) == 4
    rows = rows_of(tmp_path / "g", "caption" if to else "image")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[1]["reason"] == "killed_worker"
    assert leftovers(tmp_path / "g") == []


@pytest.mark.ray
def test_an_item_that_kills_its_worker_is_condemned(control: Control, tmp_path: Path, ray_address: str) -> None:
    """Guards against 21 deaths and a lost shard."""
    tag = control({"001": "kill"})
    complete(build(InMemory(tag=tag), tmp_path / "g", [], shard_size=3, executor="ray"))
    assert Counter(row["reason"] for row in rows_of(tmp_path / "g", "image")) == {None: 5, "killed_worker": 1}
    assert calls(tag).count("001") == 4


# ---- long units and large files ----------------------------------------------------------------------------------


def test_a_killed_source_unit_goes_on(control: Control, tmp_path: Path) -> None:
    """Guards against a shard of a slow source that starts over after every kill and never ends."""
    tag = control({"004": "kill"})
    process = start(InMemory(tag=tag), tmp_path / "g", [], shard_size=6, flush_s=0.0)
    process.join()
    assert process.exitcode != 0
    control({})
    complete(build(InMemory(tag=tag), tmp_path / "g", [], shard_size=6))
    assert Counter(calls(tag)) == {"000": 1, "001": 1, "002": 1, "003": 1, "004": 2, "005": 1}
    assert leftovers(tmp_path / "g") == []


def test_after_a_killed_run_rows_are_saved_at_once(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run on Ray that is killed every minute, and every time before it has saved a row."""
    seen: list[float] = []
    monkeypatch.setattr("graphbuild.engine.run.run_inline", lambda schedule, make, *rest: seen.append(make().flush_s))
    for name in ("run+otherhost+0", "of-users"):
        folder = tmp_path / "g/_tmp" / name
        folder.mkdir(parents=True)
        build(InMemory(tag=control()), tmp_path / "g", [], flush_s=60.0)
        os.utime(folder, (1, 1))
    build(InMemory(tag=control()), tmp_path / "g", [], flush_s=60.0)
    build(InMemory(tag=control()), tmp_path / "g", [], flush_s=60.0)
    assert seen == [60.0, 1.0, 60.0, 60.0]


MEMORY = """
import resource, sys
from tests.support.annotators import build, complete
from tests.support.sources import InMemory
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
complete(build(InMemory(tag="none", count=2), sys.argv[1] + "/small", [], shard_size=2))
before = peak()
complete(build(InMemory(tag="none", count=128, side=1180), sys.argv[1] + "/g", [], shard_size=128))
print(peak() - before)
"""


def test_a_shard_of_large_files_fits_into_memory(tmp_path: Path) -> None:
    """Guards against a unit that holds its shard: 128 files of 4 MB took as much and more."""
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600, "MB beyond a small build, for 535 MB of files"


# ---- what is missing ---------------------------------------------------------------------------------------------


def test_status_names_the_gaps(control: Control, tmp_path: Path) -> None:
    """Guards against a shard that is missing without a word."""
    tag = control()
    complete(build(InMemory(tag=tag, count=9), tmp_path / "g", [Misbehaving(tag=tag)], shard_size=3))
    (tmp_path / "g/edges/annotator=misbehaving/version=v0123456789ab").mkdir()  # as an error of the disk leaves it
    assert status_of(Graph.open(tmp_path / "g")).gaps == []
    for name in ("edges/annotator=misbehaving", "items", "edges/annotator=source:in_memory"):
        (lost,) = (tmp_path / "g" / name).rglob("shard-00001*")
        lost.unlink()
    gaps = status_of(Graph.open(tmp_path / "g")).gaps
    assert [gap.split()[0] + " " + gap.split()[-1] for gap in gaps] == [
        "misbehaving shard-00001",
        "source:in_memory shard-00001",
    ]
