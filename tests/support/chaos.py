"""Runs on a cluster of several nodes of this machine, whose workers, nodes and driver are killed at random."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import pyarrow.parquet as pq

from graphbuild.annotators.base import Annotator, Derived, Request, Resources
from graphbuild.engine.spool import CONDEMN_AFTER
from graphbuild.sources.base import SourceItem, Unusable
from graphbuild.sources.folder import Folder
from graphbuild.store.graph import Graph
from tests.support.annotators import Child, build, calls, complete, log, orders, tree, write_photos

NODE = "GRAPHBUILD_TEST_NODE"
"""Environment variable of a node's processes: what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Mounted(Folder):
    """A folder that is not mounted on some nodes, or empty there."""

    name: ClassVar[str] = "mounted"
    tag: str = field(default="", metadata={"output": False})

    def out_of_reach(self, key: str | None) -> str | None:
        if "unmounted" in os.environ.get(NODE, ""):
            return f"source 'mounted': {self.path} is not a folder; give the folder with the images"
        return super().out_of_reach(key)

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for item in super().read(keys):
            log(self.tag, item.key)
            lost = {kind: Unusable("missing") for kind in item.nodes}
            empty = "empty" in os.environ.get(NODE, "")
            yield SourceItem(key=item.key, uri=item.uri, original=None, nodes=lost) if empty else item


@dataclass(frozen=True, kw_only=True)
class Network(Annotator):
    """An annotator with actors of its own, that kills, hangs or loses its GPU as ordered."""

    makes: ClassVar[tuple[str, ...]] = ("canny",)
    tag: str
    seconds: float = 0.05
    resources: Resources = Resources(cpus=0.5, batch_size=2, stall_s=6.0)

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        if "cuda" in os.environ.get(NODE, ""):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for request in batch:
            time.sleep(self.seconds)
            log(self.tag, request.item.key)
            order = orders(self.tag).get(request.item.key)
            if order == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if order == "hang":
                time.sleep(10_000)
        return [Derived({"canny": cv2.Canny(r.inputs["image"].array(), 100, 200)}) for r in batch]


def photos_with_damage(folder: Path, count: int) -> Path:
    """`count` photographs, some of them cut or no pictures at all."""
    write_photos(folder, range(count))
    for number, path in enumerate(sorted(folder.iterdir())):
        if number % 7 == 3:
            path.write_bytes(path.read_bytes()[: 60 if number % 2 else 600])
    return folder


def _drive(source: Mounted, out: Path, annotators: Sequence[Annotator], log: Path, options: dict[str, Any]) -> None:
    from rich.console import Console

    from graphbuild.engine.executors import nodes

    nodes.AGAIN_SECONDS = 60.0
    with open(log, "a") as file:
        complete(build(source, out, annotators, executor="ray", console=Console(file=file, width=300), **options))


@contextmanager
def cluster_of(**wrong: str) -> Iterator[Any]:
    """A Ray cluster: a head, one node, and one more for each name, with what is wrong with it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for name in ("a", *wrong):
            add_node(cluster, name, wrong.get(name, ""))
        yield cluster
    finally:
        ended(cluster)


def ended(cluster: Any) -> None:
    """Stop a cluster. Ray then drops its client of the key-value store, which the instance of this process needs to ask
    an autoscaler."""
    import ray
    from ray.experimental.internal_kv import _initialize_internal_kv

    cluster.shutdown()
    if ray.is_initialized():
        _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


def add_node(cluster: Any, name: str, wrong: str = "", tries: int = 3) -> Any:
    """One more node; on a busy machine Ray may find that it starts too slowly."""
    try:
        node = cluster.add_node(num_cpus=1, node_name=name, env_vars={NODE: wrong}, wait=False)
    except Exception:
        if tries == 1:
            raise
        return add_node(cluster, name, wrong, tries - 1)
    node.wrong = wrong
    return node


@dataclass
class Chaos:
    """Kills workers, nodes and the driver of one run until it ends, or `deck` is empty: up to four, then rows have to
    be begun, so that a slow machine is not killed to a standstill.

    Args:
        deck: what is still to be killed: "worker", "node" or "driver".
    """

    cluster: Any
    source: Mounted
    out: Path
    annotators: Sequence[Annotator]
    log: Path
    rng: random.Random
    declared: set[int]
    deck: list[str]
    options: dict[str, Any]
    kills: Counter[str] = field(default_factory=Counter)
    driver: Any = None

    def run(self, pause: float) -> None:
        self.driver = self._start()
        while self.deck and self.driver.is_alive():
            self._wait_for_rows()
            for _ in range(self.rng.randint(1, 4)):
                time.sleep(self.rng.random() * pause)
                if self.deck and self.driver.is_alive() and not self._unlucky() and self._kill(self.deck[-1]):
                    self.kills[self.deck.pop()] += 1
        self.driver.join()
        assert self.driver.exitcode == 0, self.log.read_text()[-3000:]

    def again(self) -> None:
        """Failed rows once more, undisturbed."""
        self.options = {**self.options, "retry": True}
        self.driver = self._start()
        self.driver.join()
        assert self.driver.exitcode == 0, self.log.read_text()[-3000:]

    def _kill(self, what: str) -> bool:
        return {"worker": self._kill_worker, "node": self._kill_node, "driver": self._kill_driver}[what]()

    def _unlucky(self) -> bool:
        """Whether a harmless row runs alone that died as often as a row may: one more kill and it is given up."""
        for path in self.out.glob("_staging/*/alone*.json"):
            deaths = path.with_name(path.name.replace("alone", "deaths"))
            try:
                key, died = json.loads(path.read_text()), json.loads(deaths.read_text()) if deaths.exists() else []
            except (OSError, ValueError):
                continue
            if key[0] not in self.declared and [row for row, _ in died].count(key) >= CONDEMN_AFTER - 1:
                return True
        return False

    def _wait_for_rows(self) -> None:
        before, deadline = self._saved(), time.monotonic() + 20
        while self.driver.is_alive() and self._saved() == before and time.monotonic() < deadline:
            time.sleep(0.02)

    def _saved(self) -> int:
        """Rows that an annotator or source was asked for, in any process."""
        return len(calls(self.source.tag))

    def _start(self) -> Any:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.chaos", "graphbuild.engine.run"])
        args = (self.source, self.out, self.annotators, self.log, self.options)
        process = context.Process(target=_drive, args=args)
        process.start()
        return process

    def _kill_worker(self) -> bool:
        pids = [pid for pid in _descendants(os.getpid()) if _command(pid).startswith("ray::_Actor")]
        try:
            os.kill(self.rng.choice(pids), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return False
        return True

    def _kill_node(self) -> bool:
        node = self.rng.choice([node for node in self.cluster.worker_nodes if not node.wrong])
        self.cluster.remove_node(node, allow_graceful=False)
        add_node(self.cluster, f"a{self.kills['node'] + 1}")
        return True

    def _kill_driver(self) -> bool:
        self.driver.kill()
        self.driver.join()
        killed: bool = self.driver.exitcode == -signal.SIGKILL
        self.driver = self._start() if killed else self.driver
        return killed


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _descendants(root: int) -> list[int]:
    """Processes that this one started, directly or not: those of other clusters are left alone."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    fresh = {root}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found += fresh
    return found


def differences(out: Path, whole: Path, declared: set[str]) -> list[str]:
    """What differs between two graphs, besides the items in `declared`: bytes of shards without one of them, rows of
    the others."""
    graph, other = Graph.open(out), Graph.open(whole)
    keys = graph.items().column("key").to_pylist()
    items = {number for number, key in enumerate(keys) if key in declared}
    odd = {shard.index for shard in graph.shards if items & set(range(shard.start, shard.stop))}
    ours, theirs = tree(out), tree(whole)
    found = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if not any(f"shard-{index:05d}" in name for index in odd) and ours.get(name) != theirs.get(name)
    ]
    for kind in sorted(other.kinds()):
        rows, expected = (
            [row for row in each.edges(kind).to_pylist() if row["item_ix"] not in items] for each in (graph, other)
        )
        columns = ("item_ix", "variant", "status", "reason", "content_hash", "seed")
        if [[row[c] for c in columns] for row in rows] != [[row[c] for c in columns] for row in expected]:
            found.append(f"rows of {kind}")
        everyone = [(row["item_ix"], row["variant"]) for row in graph.edges(kind).to_pylist()]
        if len(everyone) != len(set(everyone)) or len(everyone) != len(other.edges(kind)):
            found.append(f"{kind}: rows lost, or twice")
    for path in out.rglob("nodes/**/*.parquet"):
        pq.read_metadata(path)
    return found


def annotators_of(tag: str, seconds: float) -> list[Annotator]:
    from graphbuild.annotators.lsd import Lsd

    return [Network(tag=tag, seconds=seconds), Child(tag=tag), Lsd()]
