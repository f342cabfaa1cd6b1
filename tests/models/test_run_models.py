"""Annotators with models under the framework: weights before work, pinned commits, memory, batches, fresh processes."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Derived, Request, Resources, config_of, params_of
from graphbuild.engine import micro_batches as batches
from graphbuild.engine import worker as job
from graphbuild.engine.executors.nodes import Node, Nodes
from graphbuild.engine.plan import make_plan
from graphbuild.engine.preflight import fetch_missing
from graphbuild.errors import MissingWeights
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.sources import resolve as resolve_source
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_lineage
from graphbuild.store.locations import files_at
from tests.support.annotators import (
    Answers,
    Hungry,
    OutOfMemoryError,
    Second,
    Third,
    Weighted,
    build,
    cached_checkpoint,
    calls,
    complete,
    start,
)

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def repository() -> Iterator[Path]:
    """`tests/thresholds` in the cache, at commit OLD."""
    folder = cached_checkpoint(OLD, 50)
    yield folder
    shutil.rmtree(folder)


# ---- micro-batches -----------------------------------------------------------------------------------------------


def test_a_full_device_halves_the_batch_for_good(tmp_path: Path, photos: Path, control: Callable[..., str]) -> None:
    """A batch that does not fit must not be tried again and again, and no row may be lost."""
    report = complete(build(photos, tmp_path / "g", [Hungry(tag=control(), fits=2)], shard_size=18))
    assert report.annotators["hungry"].ok == 18 and report.failed == 0
    sizes = [int(size) for size in calls(control())]
    assert sizes[:4] == [8, 4, 2, 2] and all(size <= 2 for size in sizes[2:])
    assert sum(size for size in sizes if size <= 2) == 18


def test_a_request_that_fits_nowhere_is_recorded(tmp_path: Path, photos: Path, control: Callable[..., str]) -> None:
    report = build(photos, tmp_path / "g", [Hungry(tag=control(), fits=0)], limit=2)
    assert report.annotators["hungry"].reasons == {"failed:out_of_memory": 2} and report.retriable == 2


def test_one_failed_answer_does_not_repeat_the_others(
    tmp_path: Path, photos: Path, control: Callable[..., str]
) -> None:
    """Requests to a paid server: an exception in its place is that row's alone."""
    report = complete(build(photos, tmp_path / "g", [Answers(tag=control())], limit=6, shard_size=6))
    assert report.annotators["answers"].reasons == {"failed:error": 2} and report.annotators["answers"].ok == 4
    assert calls(control()) == ["6"]


# ---- weights -----------------------------------------------------------------------------------------------------


def test_missing_weights_come_in_one_message_before_work(tmp_path: Path, photos: Path) -> None:
    """A run must not find out after days, one model at a time."""
    pinned = f"nobody/depth@{OLD}"
    wanted = [Weighted(), resolve("depth_anything", {"model": pinned}), resolve("hed", {"model": "nobody/hed"})]
    with pytest.raises(MissingWeights) as caught:
        build(photos, tmp_path / "g", wanted)
    message = str(caught.value)
    assert "weighted: tests/thresholds (0.1 GB, cc-by-nc-4.0): graphbuild models fetch tests/thresholds" in message
    assert f"graphbuild models fetch {pinned}" in message and "graphbuild models fetch nobody/hed" in message
    assert not (tmp_path / "g").exists()


def test_a_branch_that_moves_recomputes_nothing(tmp_path: Path, photos: Path, repository: Path) -> None:
    """`main` of a model moves under everybody; a graph keeps the commit that it was made with."""
    out = tmp_path / "g"
    complete(build(photos, out, [Weighted()], limit=2))
    version = Graph.open(out).head["canny"].version
    assert read_lineage(files_at(out), version).model == f"tests/thresholds@{OLD}"
    cached_checkpoint(NEW, 200)
    more = complete(build(photos, out, [Weighted()], limit=4))
    graph = Graph.open(out)
    assert more.annotators["weighted"].ok == 2 and graph.head["canny"].version == version
    assert graph.read(3, "canny").bytes == _with(tmp_path, photos, OLD).read(3, "canny").bytes
    asked = complete(build(photos, out, [Weighted(model=f"tests/thresholds@{NEW}")], limit=4))
    assert asked.annotators["weighted"].ok == 4 and Graph.open(out).head["canny"].version != version


def _with(tmp_path: Path, photos: Path, commit: str) -> Graph:
    out = tmp_path / commit
    complete(build(photos, out, [Weighted(model=f"tests/thresholds@{commit}")], limit=4))
    return Graph.open(out)


def test_a_finished_graph_plans_without_its_weights(tmp_path: Path, photos: Path, repository: Path) -> None:
    """Adding edges on a laptop must not ask for the weights that a cluster used."""
    out = tmp_path / "g"
    complete(build(photos, out, [Weighted()], limit=2))
    shutil.move(repository, tmp_path / "elsewhere")
    source = resolve_source("folder", path=str(photos))
    assert make_plan(files_at(out), source, [Weighted()], limit=2).units == ()
    with pytest.raises(MissingWeights, match=f"models fetch tests/thresholds@{OLD}"):
        make_plan(files_at(out), source, [Weighted()], limit=3)
    shutil.move(tmp_path / "elsewhere", repository)


def test_an_incomplete_download_is_missing(repository: Path) -> None:
    (repository / "snapshots" / OLD / "model.safetensors").unlink()
    line = Checkpoint("tests/thresholds").missing()
    assert line is not None and "*.safetensors" in line
    index = repository / "snapshots" / OLD / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    (index.parent / "model-1.safetensors").write_bytes(b"")
    line = Checkpoint("tests/thresholds").missing()
    assert line is not None and "model-2.safetensors is not here" in line


def test_a_local_folder_is_known_by_its_contents(tmp_path: Path) -> None:
    """Moved weights are the same weights; changed ones are not."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.md").write_text(name)
    one, two = (Checkpoint(str(tmp_path / name)) for name in ("one", "two"))
    assert one.identity() == two.identity() and one.identity().startswith("files:")
    before = two.identity()
    (tmp_path / "two" / "model.safetensors").write_bytes(b"other weights")
    assert two.identity() != before
    with pytest.raises(MissingWeights, match="no file matches"):
        Checkpoint(str(tmp_path / "one"), files=("*.pth",)).folder()


def test_what_is_not_for_commerce_is_named(tmp_path: Path, photos: Path, repository: Path) -> None:
    plan = make_plan(files_at(tmp_path / "g"), resolve_source("folder", path=str(photos)), [Weighted()])
    assert plan.notes == ("weighted: tests/thresholds is not for commercial use (cc-by-nc-4.0)",)


def test_too_little_memory_is_refused_before_work(tmp_path: Path, photos: Path, repository: Path) -> None:
    with pytest.raises(MissingWeights, match=r"weighted: asks for 1e[+]06 GB of"):
        build(photos, tmp_path / "g", [Weighted(resources=Resources(memory_gb=1e6))])


def test_a_machine_without_the_weights_fetches_them(
    tmp_path: Path, photos: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster the driver has them and another node has not: its worker gets them, pinned."""
    asked = []

    def fetch(checkpoint: Checkpoint) -> Path:
        asked.append(checkpoint.model)
        return cached_checkpoint(OLD, 50)

    def work(task: Any) -> None:
        shutil.rmtree(repository / "snapshots")
        fetch_missing(task)

    monkeypatch.setattr(Checkpoint, "fetch", fetch)
    monkeypatch.setattr(job, "fetch_missing", work)
    report = complete(build(photos, tmp_path / "g", [Weighted()], limit=2, shard_size=2))
    assert report.annotators["weighted"].ok == 2 and asked == [f"tests/thresholds@{OLD}"]


# ---- resources ---------------------------------------------------------------------------------------------------


def test_a_pipeline_says_resources_one_by_one(tmp_path: Path) -> None:
    hungry = resolve("tests.support.annotators:Hungry", {"tag": "t", "resources": {"gpus": 0.5}})
    assert hungry.resources == Resources(gpus=0.5, batch_size=8)
    assert config_of(hungry) == {"tag": "t", "fits": 2, "resources": {"gpus": 0.5}}
    assert params_of(hungry) == {"tag": "t", "fits": 2}
    assert resolve("tests.support.annotators:Hungry", config_of(hungry)) == hungry, "as `retry` finds it again"
    with pytest.raises(ValueError, match="unknown key 'gpu'; allowed: cpus, gpus"):
        resolve("canny", {"resources": {"gpu": 1}})


@pytest.mark.ray
def test_an_actor_is_replaced_after_its_units(
    tmp_path: Path, photos: Path, repository: Path, ray_address: str, control: Callable[..., str]
) -> None:
    """Libraries leak; a fresh process after so many units bounds it. On a cluster without GPUs models run on CPUs."""
    recycled = Weighted(tag=control(), resources=Resources(memory_gb=0.1, recycle=2))
    report = complete(build(photos, tmp_path / "g", [recycled], shard_size=3, executor="ray", address=ray_address))
    loads = calls(control())
    assert report.annotators["weighted"].ok == 18
    assert len(loads) == len(set(loads)) >= 3 and all(load.endswith(" cpu") for load in loads)


@pytest.mark.ray
def test_pools_take_turns_on_few_cpus(
    tmp_path: Path, photos: Path, repository: Path, ray_address: str, control: Callable[..., str]
) -> None:
    """Three models and two CPUs: the last one's actor starts only when an idle one goes. It once waited for ever."""
    own = Resources(memory_gb=0.1)
    models = [Hungry(tag=control(), resources=own), Second(resources=own), Third(resources=own)]
    options = {"executor": "ray", "address": ray_address, "shard_size": 3}
    process = start(photos, tmp_path / "g", models, limit=6, **options)
    process.join(400)  # a busy machine needs a minute; hanging is what this guards against
    assert process.exitcode == 0


@pytest.mark.ray
def test_what_no_node_has_is_refused(tmp_path: Path, photos: Path, ray_address: str, repository: Path) -> None:
    """An actor that can never start would be waited for in silence."""
    with pytest.raises(ValueError, match="weighted asks for 64 CPU, the cluster has 2 CPU"):
        build(photos, tmp_path / "g", [Weighted(resources=Resources(cpus=64))], executor="ray", address=ray_address)


@pytest.mark.ray
def test_what_filled_the_gpu_is_free_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an actor that keeps a full GPU reserved because its own traceback holds the tensors."""
    held: list[weakref.ref[Any]] = []
    dead: list[bool] = []

    class Filling(Hungry):
        def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
            tensors = np.zeros(1000)
            held.append(weakref.ref(tensors))
            if len(batch) > self.fits:
                raise OutOfMemoryError("CUDA out of memory")
            return [Derived({}) for _ in batch]

    monkeypatch.setattr(batches, "_release", lambda: dead.append(held[-1]() is None))
    requests: list[Any] = [object()] * 8
    assert len(batches.annotate(Filling(tag="x"), requests, batches.Loaded(None, 8))) == 8
    assert dead == [True, True]


def _nodes(*nodes: Node, device: str | None = None) -> Nodes:
    made = Nodes.__new__(Nodes)
    made.all, made.device = {node.id: node for node in nodes}, device
    return made


def _node(name: str, cpus: float, gpus: int, gpu_gb: float = 0.0) -> Node:
    total = {"CPU": cpus, "GPU": float(gpus), "memory": 64e9}
    return Node(name, name, total, gpus=[1.0] * gpus, gpu_gb=gpu_gb, probed=True)


def test_models_share_a_gpu_by_their_memory() -> None:
    """Two models of 20 and 30 GB fit on one GPU of 80; one of 100 GB asks for two whole ones."""
    node = _node("a", 16.0, 2, 80.0)
    nodes = _nodes(node)
    asked = [nodes.asked(Resources(memory_gb=memory), node) for memory in (0, 20, 30, 100)]
    assert [each["GPU"] for each in asked] == [0, 0.25, 0.375, 2]
    assert nodes.asked(Resources(memory_gb=20, gpus=0.5), node)["GPU"] == 0.5
    node.total["GPU"] = 0.0
    assert nodes.asked(Resources(memory_gb=20), node) == {"CPU": 1.0, "GPU": 0.0, "memory": 20_000_000_000}
    assert _nodes(node, device="cuda").hold("sam2", Resources(memory_gb=20)) == []


@pytest.mark.parametrize(
    ("cpus", "share", "jobs", "on_each"),
    [
        (4, 1 / 6, 99, [1, 1, 1, 1]),
        (6, 1 / 6, 99, [1, 1, 2, 2]),
        (64, 1 / 6, 6, [1, 1, 2, 2]),
        (10, 1 / 6, 99, [2, 2, 3, 3]),
        (64, 1 / 6, 99, [6, 6, 6, 6]),
        (64, 0.5, 99, [2, 2, 2, 2]),
        (64, 0.4, 5, [1, 1, 1, 2]),
        (64, 1, 99, [1, 1, 1, 1]),
        (64, 2, 99, [1, 1, 1, 1]),
    ],
)
def test_actors_spread_over_gpus_before_they_share_one(cpus: int, share: float, jobs: int, on_each: list[int]) -> None:
    """Guards against six actors of a sixth that all sit on the first of four GPUs."""
    node = _node("a", cpus, 4)
    nodes, resources, sat = _nodes(node), Resources(gpus=share), Counter(dict.fromkeys(range(4), 0))
    for left in range(jobs, 0, -1):
        if nodes.place("sam2", resources) is None:
            break
        sat.update(node.take(nodes.spread(nodes.asked(resources, node), node, left)))
    assert sorted(sat.values()) == on_each
    assert min(node.gpus) > -1e-9
