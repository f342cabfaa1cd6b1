"""Worker processes of a Ray cluster, and one of them as the driver sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from graphbuild.engine.executors.nodes import Amounts, Node
from graphbuild.engine.executors.probe import settle_in
from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.worker import Worker
from graphbuild.images.memory import keep_freed_memory
from graphbuild.models.device import GpuUse, gpu_use

START_SECONDS = 300.0
"""For a process to start, where the driver has booked room for it."""

LOADING_SECONDS = 3600.0
"""For a model to be fetched and loaded; rows are waited for `stall_s` of their annotator."""

Counts = dict[str, tuple[int, ...]]
"""Annotator -> rows of it finished by one actor: all, computed, failed."""

NONE = (0, 0, 0)


def added(one: Sequence[int], other: Sequence[int], sign: int = 1) -> tuple[int, ...]:
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))


class Pulse(NamedTuple):
    """How far an actor is: `beats` grows with every step of its work."""

    beats: int
    loading: bool
    counts: Counts
    gpu: GpuUse | None = None


_NONE_YET = Pulse(0, False, {})


class _Actor:
    """A worker process: one thread runs jobs, one answers how far it is."""

    def __init__(self, graph: tuple[str, str, float], device: str, folder: str, path: Sequence[str]) -> None:
        settle_in(folder, path)
        keep_freed_memory()
        self._worker = Worker(*graph, device)
        self._counts: Counts = {}
        self._beats = 0

    def run(self, job: Job) -> list[UnitReport]:
        self._beats += 1
        return self._worker.run(job, self._count)

    def _count(self, name: str, *rows: int) -> None:
        self._counts[name] = added(self._counts.get(name, NONE), rows)
        self._beats += 1

    def pulse(self) -> Pulse:
        return Pulse(self._beats, self._worker.loading, dict(self._counts), gpu_use())

    def born(self) -> None:
        """Answered once the process is there."""


@dataclass(eq=False)
class Handle:
    """One actor as the driver sees it."""

    actor: Any
    node: Node
    pool: str
    asked: Amounts
    units_left: float
    gpus: Collection[int]
    born: Any
    since: float = field(default_factory=time.monotonic)
    jobs: dict[Any, Job] = field(default_factory=dict)
    pulse: Pulse = _NONE_YET
    asking: Any = None
    seen: bool = False

    def started(self) -> bool:
        """Whether its process is there; a process that failed to start is not."""
        try:
            ray.get(self.born, timeout=0)
        except (RayError, TimeoutError):
            return False
        return True

    def unborn(self) -> float:
        """Seconds that a job has waited for its process; 0 once that is there."""
        return time.monotonic() - self.since if self.jobs and not self.seen else 0.0

    @property
    def worn(self) -> bool:
        """Whether its `recycle` limit is reached, counting the units assigned to it: then a new process replaces it."""
        return self.units_left - sum(len(job.units) for job in self.jobs.values()) <= 0

    def end(self) -> None:
        ray.kill(self.actor)
        self.node.give_back(self.asked, self.gpus)

    def listen(self) -> Counts:
        """Rows finished since the last call, without waiting for an answer."""
        now = time.monotonic()
        if not self.jobs:
            self.since = now
        if self.asking is None:
            self.asking = self.actor.pulse.options(concurrency_group="watch").remote()
            return {}
        if not ray.wait([self.asking], timeout=0)[0]:
            return {}
        try:
            pulse: Pulse = ray.get(self.asking)
        except RayError:
            return {}  # its death arrives with its jobs
        if (pulse.beats, pulse.loading) != (self.pulse.beats, self.pulse.loading):
            self.since = now
        before, self.pulse, self.asking = self.pulse.counts, pulse, None
        return {name: added(rows, before.get(name, NONE), -1) for name, rows in pulse.counts.items()}

    def stalled(self) -> str | None:
        """Why it has to go, if it has shown no progress for too long."""
        if not self.jobs:
            return None
        waited = time.monotonic() - self.since
        if not self.seen and not self.started():
            return f"no process has started within {START_SECONDS:g} s" if waited > START_SECONDS else None
        if not self.seen:
            self.seen, self.since = True, time.monotonic()  # its rows are waited for from now on
            return None
        if self.pulse.loading:
            return f"no model was loaded within {LOADING_SECONDS:g} s" if waited > LOADING_SECONDS else None
        limit = next(iter(self.jobs.values())).stall_s
        return f"no row was finished within {limit:g} s" if waited > limit else None


def start(actor: Any, args: tuple[Any, ...], job: Job, node: Node, asked: Amounts) -> Handle:
    """A new actor of the job's pool on one node."""
    options = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "memory": asked["memory"]}
    where = NodeAffinitySchedulingStrategy(node.id, soft=False)
    made = actor.options(**options, scheduling_strategy=where, name=None).remote(*args)
    born = made.born.options(concurrency_group="watch").remote()
    return Handle(made, node, job.pool, asked, job.resources.recycle or math.inf, node.take(asked), born)


def remote_actor() -> Any:
    """The class of worker processes; none is restarted by Ray, since an answered call may have run twice."""
    remote: Any = ray.remote  # its stubs do not know concurrency groups
    return remote(concurrency_groups={"watch": 1}, max_restarts=0)(_Actor)
