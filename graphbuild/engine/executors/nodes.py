"""The nodes of a Ray cluster: what each has, whether it can work, and what is placed on it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from graphbuild.annotators.base import Resources
from graphbuild.engine.executors.probe import Findings, Requirements, findings, settle_in
from graphbuild.engine.schedule import SHARED

REFRESH_SECONDS = 2.0
PROBE_SECONDS = 180.0
"""A node that has not answered by then, such as one whose network folder hangs, is left out."""

PROBES = 3
"""So often a node is asked that Ray cannot reach, before it is left out."""

AGAIN_SECONDS = 300.0
"""A node that was left out is looked at again after this long."""

IN_A_ROW = 3
"""Fresh jobs that fail one after the other on a node while others succeed: then the node is at fault."""

AT_ALL = 6
"""The same, if none succeeds anywhere."""

Amounts = dict[str, float]
"""CPU, GPU and memory (bytes): what a node has, or what an actor asks for."""

_AMOUNTS = ("CPU", "GPU", "memory")
_STEP = 1e-4
"""Ray counts resources in ten-thousandths."""


def describe(amounts: Mapping[str, float], names: Collection[str] = _AMOUNTS) -> str:
    """`2 CPU, 0.25 GPU, 8 GB of memory`."""
    told = {"memory": lambda amount: f"{amount / 1e9:g} GB of memory"}
    return ", ".join(told.get(n, lambda a, n=n: f"{a:g} {n}")(amounts.get(n, 0.0)) for n in names) or "nothing"


@dataclass(eq=False)
class Node:
    """One node. `faults` are reasons why it is left out, by pool; "" is every pool.
    `served`: pools whose rows came out well here."""

    id: str
    name: str
    total: Amounts
    used: Amounts = field(default_factory=lambda: dict.fromkeys(_AMOUNTS, 0.0))
    gpus: list[float] = field(default_factory=list)
    gpu_gb: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    misses: Counter[str] = field(default_factory=Counter)
    served: set[str] = field(default_factory=set)
    probe: Any = None
    asked: int = 0
    since: float = 0.0
    probed: bool = False
    alive: bool = True

    def fault(self, pool: str) -> str | None:
        """Why it cannot work for a pool; None if it can."""
        return self.faults.get("") or self.faults.get(pool) or self.faults.get(pool.partition("@")[0])

    def has(self, asked: Amounts) -> bool:
        return all(amount <= self.total.get(name, 0.0) + _STEP / 2 for name, amount in asked.items())

    def has_free(self, asked: Amounts) -> bool:
        return self._gpus_for(asked) is not None and all(
            amount <= self.total.get(name, 0.0) - self.used[name] + _STEP / 2 for name, amount in asked.items()
        )

    def take(self, asked: Amounts) -> list[int]:
        """Book what an actor asks for; the numbers of its GPUs as Ray chooses them: the fullest that has room."""
        for name, amount in asked.items():
            self.used[name] += amount
        gpus = self._gpus_for(asked) or []
        for gpu in gpus:
            self.gpus[gpu] -= min(1.0, asked["GPU"])
        return gpus

    def give_back(self, asked: Amounts, gpus: Collection[int]) -> None:
        for name, amount in asked.items():
            self.used[name] -= amount
        for gpu in gpus:
            self.gpus[gpu] += min(1.0, asked["GPU"])

    def _gpus_for(self, asked: Amounts) -> list[int] | None:
        share = asked.get("GPU", 0.0)
        count, each = (1, share) if 0 < share < 1 else (int(share), 1.0)
        room = [gpu for gpu, free in enumerate(self.gpus) if free + _STEP / 2 >= each]
        return sorted(room, key=lambda gpu: self.gpus[gpu])[:count] if len(room) >= count else None


class Nodes:
    """Every node that this run has seen.

    Args:
        needs: what a node has to have.
        device: `cuda`, `cpu`, or None: GPUs where the cluster has some.
        tell: called with lines for the user.
    """

    def __init__(self, needs: Requirements, device: str | None, tell: Callable[[str], None]) -> None:
        self.device, self.tell = device, tell
        self.all: dict[str, Node] = {}
        remote: Any = ray.remote
        self._probe = remote(num_cpus=0, max_retries=0, max_calls=1)(_probe)
        self._place, self._required = (needs.folder, needs.path), needs
        self._needs = [ray.put(needs)]  # in a list: taken apart on the node, after its import path is set
        self._own = ray.get_runtime_context().get_node_id()
        self._refreshed = -math.inf

    # ---- which there are ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """See who joined and who is gone, and take the answers of probes.

        Raises:
            RayError: the cluster itself is gone.
        """
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_SECONDS:
            self.look()
        for node in self.alive():
            if node.probe is not None:
                self._answer(node, now)
            elif not node.probed and now - node.since >= REFRESH_SECONDS:
                self._ask(node)
            elif node.faults and now - node.since >= AGAIN_SECONDS:
                node.asked = 0
                self._ask(node)

    def look(self) -> None:
        """See who joined and who is gone."""
        self._refreshed = time.monotonic()
        entries: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._compare({entry["NodeID"]: entry for entry in entries if entry["Alive"]})

    def _compare(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        first = not self.all
        for node in self.alive():
            if node.id not in entries:
                node.alive = False
                self.tell(f"node {node.name} is gone; its units go to others")
        for id, entry in entries.items():
            resources: Mapping[str, float] = entry["Resources"]
            total = {name: float(resources.get(name, 0.0)) for name in _AMOUNTS}
            if id not in self.all:
                name = _name(entry)
                node = self.all[id] = Node(id, name, total, gpus=[1.0] * int(total["GPU"]))
                self._ask(node)
                if not first:
                    self.tell(f"node {name} joined, with {describe(total)}")

    def alive(self) -> list[Node]:
        return [node for node in self.all.values() if node.alive]

    def probing(self) -> list[Any]:
        """References that are ready once a node has answered."""
        return [node.probe for node in self.alive() if node.probe is not None]

    def _ask(self, node: Node) -> None:
        if node.id == self._own:  # this process is there already
            self._found(node, findings(self._required, node.total["GPU"]))
            return
        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        node.since, node.asked = time.monotonic(), node.asked + 1
        asked = self._probe.options(scheduling_strategy=where, name=f"graphbuild: look at {node.name}")
        node.probe = asked.remote(*self._place, self._needs, node.total["GPU"])

    def _answer(self, node: Node, now: float) -> None:
        found = Findings((f"it has not answered within {PROBE_SECONDS:g} s",))
        if ray.wait([node.probe], timeout=0)[0]:
            try:
                found = ray.get(node.probe)
            except RayTaskError as error:
                found = Findings((brief(error),))
            except RayError as error:  # it joins just now, or goes
                if node.asked < PROBES:
                    node.probe = None
                    return
                found = Findings((brief(error),))
        elif now - node.since < PROBE_SECONDS:
            return
        else:
            ray.cancel(node.probe, force=True)
        self._found(node, found)

    def _found(self, node: Node, found: Findings) -> None:
        again = dict(node.faults)
        node.probe, node.probed, node.since, node.gpu_gb = None, True, time.monotonic(), found.gpu_gb
        node.faults = {"": "; ".join(found.node)} if found.node else dict(found.annotators)
        node.misses.clear()
        for pool, reason in node.faults.items():
            if again.get(pool) != reason:
                self._tell_left_out(node, pool, reason)
        if again and not node.faults:
            self.tell(f"node {node.name} can work again")

    def _tell_left_out(self, node: Node, pool: str, reason: str) -> None:
        what = f" for {'work on one CPU' if pool == SHARED else pool.partition('@')[0]}" if pool else ""
        self.tell(f"node {node.name} is left out{what}: {reason} (it is looked at again every {AGAIN_SECONDS:g} s)")

    def doubt(self, node: Node) -> None:
        """A worker there is out of reach: nothing is placed on its node until that answers again."""
        if node.alive and node.probe is None:
            node.probed, node.asked = False, 0
            self._ask(node)

    # ---- whose fault it is -------------------------------------------------------------------------------------

    def blame(self, node: Node, pool: str, why: str, most: int = IN_A_ROW, *, alone: bool = False) -> None:
        """A fresh job of a pool failed here; after `most` in a row, while others succeed, the node is left out for that
        pool. `alone`: it is the node's fault even if no other succeeds."""
        node.misses[pool] += 1
        others = any(other is not node and not other.misses[pool] for other in self.able(pool))
        limit = most if others else AT_ALL if alone else math.inf
        if node.misses[pool] >= limit and not node.fault(pool):
            node.since = time.monotonic()
            node.faults[pool] = f"{node.misses[pool]} failures in a row, the last: {why}"
            self._tell_left_out(node, pool, node.faults[pool])

    def praise(self, node: Node, pool: str) -> None:
        """Rows of a pool came out well here."""
        node.misses[pool] = 0
        node.served.add(pool)

    # ---- what goes where ---------------------------------------------------------------------------------------

    def able(self, pool: str) -> list[Node]:
        """Nodes that can work for a pool."""
        return [node for node in self.alive() if node.probed and not node.fault(pool)]

    def hold(self, pool: str, resources: Resources) -> list[Node]:
        """Nodes that can work for a pool and are large enough for its actors."""
        return [node for node in self.able(pool) if node.has(self.asked(resources, node))]

    def place(self, pool: str, resources: Resources, avoid: Collection[str] = ()) -> Node | None:
        """The node with most room for one more actor of a pool; None if none has any."""
        nodes = [node for node in self.hold(pool, resources) if node.id not in avoid]
        free = [node for node in nodes if node.has_free(self.asked(resources, node))]
        return max(free, key=lambda node: (max(node.gpus, default=0.0), _idle(node)), default=None)

    def on_gpu(self, resources: Resources) -> bool:
        """Whether actors with these resources get a GPU: where one is wanted and the cluster has some."""
        wanted = bool(resources.gpus or resources.memory_gb) and self.device != "cpu"
        return wanted and (self.device == "cuda" or any(n.total["GPU"] for n in self.alive() if not n.faults.get("")))

    def asked(self, resources: Resources, node: Node | None = None) -> Amounts:
        """What one actor asks of Ray: memory is a share of a GPU, or main memory where there is no GPU."""
        if not self.on_gpu(resources):
            return {"CPU": resources.cpus, "GPU": 0.0, "memory": int(resources.memory_gb * 1e9)}
        known = node is not None and node.gpu_gb
        share = resources.gpus or (resources.memory_gb / node.gpu_gb if node is not None and known else 1.0)
        # A share above one has to be whole, and Ray counts in steps of a ten-thousandth.
        return {"CPU": resources.cpus, "GPU": math.ceil(share) if share > 1 else max(_STEP, _floor(share)), "memory": 0}

    def spread(self, asked: Amounts, node: Node, jobs: float) -> Amounts:
        """The same with a larger share of a GPU, so that Ray, which fills one GPU before it begins the next, takes the
        emptiest: just over half of what is free there, if the other actors that `jobs` may bring still fit."""
        share, free = asked.get("GPU", 0.0), max(node.gpus, default=0.0)
        half = round(_floor(free / 2) + _STEP, 4)
        if not 0 < share < half < free:
            return asked
        cpus = (node.total["CPU"] - node.used["CPU"]) / asked["CPU"] if asked["CPU"] else math.inf
        others = math.ceil(min(cpus, jobs) / len(node.gpus)) - 1
        return {**asked, "GPU": half} if free - half + _STEP / 2 >= share * others else asked


def _floor(share: float) -> float:
    return math.floor(share / _STEP + 1e-6) * _STEP


def _idle(node: Node) -> float:
    return (node.total["CPU"] - node.used["CPU"]) / (node.total["CPU"] or 1.0)


def _name(entry: Mapping[str, Any]) -> str:
    """Several nodes may share a machine: only their ids differ."""
    address, name = entry["NodeManagerAddress"], entry["NodeName"]
    host = name if name != address else entry["NodeManagerHostname"]
    return f"{host} ({address}, {entry['NodeID'][:6]})"


def brief(error: BaseException) -> str:
    """What an exception says, in one line: the last of a traceback, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if any(line.startswith(("Traceback", 'File "')) for line in lines) else lines[0]


def _probe(folder: str, path: tuple[str, ...], needs: list[Any], gpus: float) -> Findings:
    settle_in(folder, path)
    return findings(ray.get(needs[0]), gpus)
