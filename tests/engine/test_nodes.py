"""Which nodes of a cluster work, whose fault a failure is, what is waited for, and GPUs."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from graphbuild.annotators.base import Resources
from graphbuild.annotators.canny import Canny
from graphbuild.contracts import Shard
from graphbuild.engine.executors import actors, connection, probe
from graphbuild.engine.executors import ray as executor
from graphbuild.engine.executors.actors import Handle, Pulse
from graphbuild.engine.executors.connection import own_code, packed
from graphbuild.engine.executors.nodes import AGAIN_SECONDS, AT_ALL, IN_A_ROW, Node, Nodes, brief
from graphbuild.engine.executors.probe import findings, requirements
from graphbuild.engine.executors.ray import _Driver
from graphbuild.engine.micro_batches import Loaded, annotate, device_lost
from graphbuild.engine.plan import make_plan
from graphbuild.engine.preflight import refuse_client
from graphbuild.engine.records import Job
from graphbuild.engine.worker import Worker
from graphbuild.errors import GraphError
from graphbuild.sources.folder import Folder
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.workspace import Workspace
from tests.support.annotators import (
    OnDevice,
    OutOfMemoryError,
    Weighted,
    build,
    calls,
    complete,
    start,
    write_photos,
)  # fmt: skip
from tests.support.chaos import ended


class Hangs(Canny):
    """Never ends with the second image, and swallows what it can."""

    def annotate(self, batch: Any, model: Any) -> Any:
        with contextlib.suppress(Exception):
            time.sleep(10_000 if any(request.item.item_ix == 1 for request in batch) else 0)
        return super().annotate(batch, model)


def node_of(name: str, cpus: float = 4.0, gpus: int = 0) -> Node:
    total = {"CPU": cpus, "GPU": float(gpus), "memory": 8e9}
    return Node(name, name, total, gpus=[1.0] * gpus, probed=True, since=time.monotonic())


def nodes_of(*nodes: Node, device: str | None = None) -> tuple[Nodes, list[str]]:
    made, said = Nodes.__new__(Nodes), list[str]()
    made.all, made.device, made.tell = {node.id: node for node in nodes}, device, said.append
    return made, said


# ---- what a node lacks -------------------------------------------------------------------------------------------


def test_a_node_that_cannot_work_says_why(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a node without the mount, or with other packages, that loses units or commits other pixels."""
    complete(build(photos, tmp_path / "g", [], limit=2))
    files = files_at(tmp_path / "g")
    workspace = Workspace.create(files, "run")
    plan = make_plan(files, Folder(path=photos), [Canny()])
    needs = requirements(files.url, workspace.name, [], [unit.work for unit in plan.units])
    assert needs.listed is not None and "opencv-python-headless" in needs.versions
    assert findings(needs, 0) == probe.Findings()

    def lacks(**changed: Any) -> str:
        (line,) = findings(replace(needs, **changed), 0).node
        return line

    assert lacks(versions={"numpy": "1.0"}).endswith("the driver has 1.0")
    assert "not installed" in lacks(versions={"no-such-package": "1.0"})
    assert "the folder shared, and mounted" in lacks(url=str(tmp_path / "elsewhere"))
    assert "the folder shared, and mounted" in lacks(workspace="of another run")
    assert "is not a folder" in lacks(source=Folder(path=tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    assert "is it mounted" in lacks(source=Folder(path=tmp_path / "empty"))
    workspace.close()


def test_versions_of_libraries_whatever_they_are_imported_as(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a node with another OpenCV, and against a second of reading what every distribution installs."""
    assert "opencv-python-headless" in probe._versions({"cv2"})
    assert probe._versions({"no_such_package"}) == {}
    monkeypatch.setattr(probe, "packages_distributions", None)
    assert probe._versions({*probe._ALWAYS}).keys() == {*probe._ALWAYS}


def test_a_local_model_is_looked_for_on_the_node(tmp_path: Path) -> None:
    """Guards against a node that has another model, or none, under the same path."""
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    model = Weighted(model=str(weights))
    needs = probe.Requirements(url="", workspace="", folder="", path=(), versions={}, annotators=(model,), local={})
    local = {str(weights): next(iter(model.checkpoints().values())).identity()}
    assert list(probe._annotator_lacks(model, local)) == []
    (weights / "config.json").write_text('{"other": 1}')
    assert "is not the model that the driver has" in next(probe._annotator_lacks(model, local))
    (weights / "config.json").unlink()
    weights.rmdir()
    assert "copy the model to every node" in next(probe._annotator_lacks(model, local))
    assert needs.local == {}


def test_own_code_travels_with_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against `No module named ...` on machines that have no copy of the user's folder."""
    (tmp_path / "own_sketch.py").write_text("import own_helper\nclass Sketch: pass\n")
    (tmp_path / "own_helper").mkdir()
    (tmp_path / "own_helper/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    sketch = importlib.import_module("own_sketch").Sketch
    assert own_code([Canny, Folder, dict]) == []
    assert own_code([Canny, sketch]) == [str(tmp_path / "own_helper"), str(tmp_path / "own_sketch.py")]
    for name in ("own_sketch", "own_helper"):
        del sys.modules[name]


def test_data_beside_own_code_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against gigabytes of photographs that are sent to every node because they lie in a package's folder."""
    package, copies = tmp_path / "own", tmp_path / "copies"
    for name in ("__init__.py", "deep/er.py", "photos/1.jpg", "words/a.txt", "words/b.bin", "deep/size.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x" * 100)
    (tmp_path / "own_beside.py").write_text("")
    declared = '"own" = ["words/*.txt"]\n"own.deep" = ["*.json"]\n"other" = ["**/*"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.setuptools.package-data]\n{declared}")
    own = [str(package), str(tmp_path / "own_beside.py")]
    assert packed(own, copies) == [str(copies / "own"), str(copies / "own_beside.py")]
    found = sorted(path.relative_to(copies).as_posix() for path in copies.rglob("*") if path.is_file())
    assert found == ["own/__init__.py", "own/deep/er.py", "own/deep/size.json", "own/words/a.txt", "own_beside.py"]
    monkeypatch.setattr(connection, "MOST_CODE", 399)
    with pytest.raises(GraphError, match=rf"^{package}: its code .* install the package on every node"):
        packed(own, copies)


# ---- whose fault it is -------------------------------------------------------------------------------------------


def test_a_node_that_fails_while_others_succeed_is_left_out() -> None:
    """Guards against one bad node that loses unit after unit."""
    bad, good = node_of("bad"), node_of("good")
    nodes, said = nodes_of(bad, good)
    for _ in range(IN_A_ROW - 1):
        nodes.blame(bad, "cpu", "why")
    nodes.praise(bad, "cpu")
    for _ in range(IN_A_ROW):
        assert bad in nodes.able("cpu")
        nodes.blame(bad, "cpu", "CUDA error")
    assert nodes.able("cpu") == [good] and nodes.able("sam2@v1") == [bad, good]
    (line,) = said
    assert line.startswith("node bad is left out for work on one CPU: 3 failures in a row, the last: CUDA error (")
    assert nodes.place("cpu", Resources()) is good


def test_what_fails_everywhere_is_not_a_nodes_fault() -> None:
    """Guards against a broken annotator that empties the cluster, and workers that fail to start for ever."""
    nodes, _ = nodes_of(node_of("a"), node_of("b"))
    for _ in range(2 * AT_ALL):
        for node in nodes.all.values():
            nodes.blame(node, "cpu", "a row too many")
    assert len(nodes.able("cpu")) == 2
    for node in nodes.all.values():
        nodes.blame(node, "cpu", "its worker did not start", alone=True)
    assert nodes.able("cpu") == []


def test_a_gpu_that_never_worked_is_not_the_rows_fault() -> None:
    """Guards against rows given up as `killed_worker` because they ran on a broken GPU after a kill elsewhere."""
    good, bad = node_of("good"), node_of("bad")
    nodes, said = nodes_of(good, bad)
    died: list[bool] = []
    schedule = SimpleNamespace(died=lambda job, why, *, counts: died.append(counts))
    driver: Any = SimpleNamespace(nodes=nodes, schedule=schedule, _end=lambda handle: None)
    unit: Any = SimpleNamespace(part=None)
    job = Job("sam2", Shard(index=0, start=0, stop=4), (unit,), avoid=frozenset({"good"}))
    lost: Any = SimpleNamespace(status="failed", error="CUDA error", unseen=(), device_lost=True, broken=False)
    handle: Any = SimpleNamespace(node=bad)
    for _ in range(IN_A_ROW):
        assert _Driver._moved(driver, handle, job, unit, lost)
    assert died == [False] * IN_A_ROW and len(said) == 1 and nodes.able("sam2") == [good]
    nodes.praise(good, "sam2")
    assert _Driver._moved(driver, SimpleNamespace(node=good), job, unit, lost) and died[-1], "it worked there before"  # type: ignore[arg-type]


def test_actors_go_to_the_emptiest_node_and_leave_room() -> None:
    small, large = node_of("small", 2), node_of("large", 4)
    nodes, _ = nodes_of(small, large)
    asked = Resources(cpus=2)
    chosen = []
    while node := nodes.place("cpu", asked):
        node.take(nodes.asked(asked, node))
        chosen.append(node.name)
    assert chosen == ["small", "large", "large"]
    assert nodes.hold("cpu", Resources(cpus=3)) == [large] and nodes.hold("cpu", Resources(cpus=8)) == []
    large.give_back(nodes.asked(asked, large), [])
    assert nodes.place("cpu", asked, avoid={"large"}) is None and nodes.place("cpu", asked) is large


def test_gpus_that_come_later_are_used() -> None:
    """Guards against models that stay on the CPU for good because the GPU node came late."""
    nodes, _ = nodes_of(node_of("cpu"))
    wants = Resources(memory_gb=4)
    assert not nodes.on_gpu(wants) and nodes.asked(wants)["memory"] == 4e9
    nodes.all["gpu"] = node_of("gpu", gpus=1)
    assert nodes.on_gpu(wants) and [node.name for node in nodes.hold("sam2", wants)] == ["gpu"]
    nodes.device = "cpu"
    assert not nodes.on_gpu(wants)


@pytest.mark.ray
def test_four_actors_are_on_four_gpus(tmp_path: Path, photos: Path, control: Callable[..., str]) -> None:
    """Guards against actors that share the first GPU while the others idle. The GPUs are there for Ray alone."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "num_gpus": 4, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        done = start(photos, tmp_path / "g", [OnDevice(tag=control())], executor="ray", address=cluster.address,
                     limit=8, shard_size=1)  # fmt: skip
        done.join()
    finally:
        ended(cluster)
    assert {*calls(control())} == {"0", "1", "2", "3"} and Graph.open(tmp_path / "g").kinds()["hed"] == 8


@pytest.mark.ray
def test_a_cluster_that_another_run_uses_is_waited_for(
    photos: Path, tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a node that is left out as if no process could start there, which has no room for some minutes."""
    monkeypatch.setattr(actors, "START_SECONDS", 1.0)
    monkeypatch.setattr(executor, "CROWDED_SECONDS", 0.5)
    holder = ray.remote(num_cpus=2)(threading.Event).remote()
    ray.get(holder.is_set.remote())
    later = threading.Timer(6.0, ray.kill, [holder])
    later.start()
    said: dict[str, Any] = {"console": Console(file=io.StringIO(), width=200), "executor": "ray"}
    complete(build(photos, tmp_path / "g", ["canny"], address=ray_address, limit=4, **said))
    later.join()
    assert "waiting for 1 CPU that other runs on the cluster use" in said["console"].file.getvalue()


def test_work_without_a_model_takes_no_gpu() -> None:
    """Guards against sources that hold the GPUs of a node, whose models then wait for ever."""
    node = node_of("gpu", gpus=4)
    nodes, _ = nodes_of(node)
    asked = nodes.spread(nodes.asked(Resources(), node), node, 6)
    assert asked["GPU"] == 0 and node.take(asked) == [] and node.gpus == [1.0] * 4


def test_a_slow_start_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against workers of a busy machine that are killed as soon as they have started, for ever."""
    began = [False]
    monkeypatch.setattr(Handle, "started", lambda handle: began[0])
    job = SimpleNamespace(stall_s=6.0)
    handle = Handle(None, node_of("a"), "cpu", {}, math.inf, [], None, jobs={"running": job})  # type: ignore[dict-item]
    handle.since -= 100
    assert handle.stalled() is None
    began[0] = True
    assert handle.stalled() is None and handle.stalled() is None
    handle.since -= 100
    assert handle.stalled() == "no row was finished within 6 s"
    handle.pulse = Pulse(1, True, {})
    assert handle.stalled() is None, "a model that is being loaded"


def test_reasons_are_one_line() -> None:
    assert brief(ValueError("first\n\nsecond")) == "first"
    assert brief(ValueError('failed:\n  File "x.py", line 1\nKeyError: 3')) == "KeyError: 3"
    assert brief(ValueError()) == "ValueError" and AGAIN_SECONDS > 0


def test_the_address_of_a_dead_cluster_is_refused() -> None:
    """Guards against a run that asks for ever, as Ray does, where the head has gone or the port is wrong."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(GraphError, match=rf"--address {where}: no Ray cluster answers .*refused"):
            connection.refuse_dead(where)
        bound.listen()
        connection.refuse_dead(where)
    connection.refuse_dead("local")


def test_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraphError, match=r"ray job submit --address http://head:8265 .* -- graphbuild run"):
        refuse_client("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(GraphError, match="ray job submit"):
        refuse_client(None)
    refuse_client("10.0.0.1:6379")


# ---- what a worker reports ---------------------------------------------------------------------------------------


def test_a_lost_gpu_is_told_from_a_full_one() -> None:
    """Guards against rows that fail because the process has lost its GPU, and a full GPU that costs its actor."""
    assert device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not device_lost(OutOfMemoryError("CUDA out of memory. CUDA error"))
    assert not device_lost(RuntimeError("CUDA error: out of memory"))
    assert not device_lost(ValueError("CUDA error"))

    class Lost(Canny):
        def annotate(self, batch: Any, model: Any) -> Any:
            raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="launch failure"):
        annotate(Lost(), [object(), object()], Loaded(None, 2))  # type: ignore[list-item]


def test_a_row_that_hangs_in_this_process_costs_that_row(photos: Path, tmp_path: Path) -> None:
    """Guards against a run in one process that hangs for ever at one image."""
    hangs = Hangs(resources={"stall_s": 0.2, "batch_size": 2})  # type: ignore[arg-type]
    complete(build(photos, tmp_path / "g", [hangs], limit=4))
    rows = Graph.open(tmp_path / "g").edges("canny").to_pylist()
    assert [row["reason"] for row in rows] == [None, "timeout", None, None]
    assert rows[1]["detail"] == "no answer within 0.2 s"


@pytest.mark.parametrize("gone", [None, frozenset[str](), frozenset({"p01.png"})])
def test_a_file_that_another_process_listed_may_be_there(
    gone: frozenset[str] | None, tmp_path: Path, control: Callable[..., str]
) -> None:
    """Guards against `failed: missing` for every image of a node whose mount is away."""
    folder = write_photos(tmp_path / "photos", range(3))
    complete(build(folder, tmp_path / "g", [], limit=1, shard_size=3))
    files = files_at(tmp_path / "g")
    plan = make_plan(files, Folder(path=folder), [], new_items=True)
    (folder / "p01.png").unlink()
    (folder / "p02.jpg").unlink() if gone is not None else None
    workspace = Workspace.create(files, "run")
    worker = Worker(files.url, workspace.name, 60.0)
    works = [replace(unit.work, gone=gone) for unit in plan.units]  # type: ignore[call-arg]
    assert works
    (report,) = worker.run(Job("cpu", works[0].unit.shard, (works[0],)), lambda *rows: None)
    if gone is None:
        assert report.status == "committed" and report.reasons == {"failed:missing": 1}
    else:
        assert report.status == "failed" and set(report.unseen) == {"p01.png", "p02.jpg"} - gone
    workspace.close()
