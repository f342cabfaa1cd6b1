"""Runs jobs on Ray Core actors, locally or on a cluster. The only module that imports ray.

Pixels never enter the object store: an actor gets a job of a few kilobytes, reads and writes the graph itself, and
answers with reports. An actor has one job at a time: none waits behind a long one while another actor idles.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, TaskCancelledError

from graphbuild.annotators.base import Resources
from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.schedule import Schedule
from graphbuild.engine.worker import Progress, Worker
from graphbuild.errors import GraphError
from graphbuild.lookup import look_in
from graphbuild.models.device import device_memory

POLL_SECONDS = 0.5
MOST_UNBORN = 5
"""Consecutive workers that may die during start-up before the run is given up."""

_LOST = (RayActorError, OutOfMemoryError, TaskCancelledError, ObjectLostError)
"""What became of a worker, or of its answer with its node: neither the job's fault nor the end of the run."""


Counts = dict[str, tuple[int, ...]]
"""Annotator -> rows of it finished by one actor: all, computed, failed."""

NONE = (0, 0, 0)


def _added(one: Sequence[int], other: Sequence[int], sign: int = 1) -> tuple[int, ...]:
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))


class _Actor:
    """A worker process: one thread runs jobs, one answers how far it is."""

    def __init__(self, url: str, workspace: str, flush_s: float, device: str, path: Sequence[str]) -> None:
        look_in(*path)  # custom annotators are found where the driver finds them
        self._worker = Worker(url, workspace, flush_s, device)
        self._counts: Counts = {}

    def run(self, job: Job) -> list[UnitReport]:
        return self._worker.run(job, self._count)

    def _count(self, name: str, *rows: int) -> None:
        self._counts[name] = _added(self._counts.get(name, NONE), rows)

    def progress(self) -> Counts:
        return dict(self._counts)

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


@dataclass
class _Handle:
    """One actor as the driver sees it."""

    actor: Any
    node: Any
    units_left: float
    jobs: dict[Any, Job] = field(default_factory=dict)
    seen: Counts = field(default_factory=dict)
    asked: Any = None

    def started(self) -> bool:
        """Whether the cluster has found room for it."""
        return bool(ray.wait([self.node], timeout=0)[0])

    @property
    def worn(self) -> bool:
        """Whether its `recycle` limit is reached, counting the units assigned to it: then a new process replaces it."""
        return self.units_left - sum(len(job.units) for job in self.jobs.values()) <= 0


def run_ray(
    schedule: Schedule,
    worker_args: tuple[str, str, float],
    address: str | None,
    progress: Progress,
    finished: Callable[[Job, list[UnitReport]], None],
) -> None:
    """Run jobs until none is left that can start. Actors die with this process."""
    with _cluster(address):
        driver = _Driver(schedule, worker_args, progress, finished)
        try:
            while schedule.unfinished and driver.step():
                pass
        finally:
            driver.close()


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray announces at length that this default will change; it is set to what it will be.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address=where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except SystemExit:  # Ray's handler of SIGTERM, while it starts
            if callable(on_sigterm):
                on_sigterm(signal.SIGTERM, None)
            raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end this process with SIGABRT
        yield
    finally:
        ray.shutdown()


class _Driver:
    def __init__(
        self,
        schedule: Schedule,
        worker_args: tuple[str, str, float],
        progress: Progress,
        finished: Callable[[Job, list[UnitReport]], None],
    ) -> None:
        self.schedule, self.worker_args, self.progress, self.finished = schedule, worker_args, progress, finished
        self._pools: dict[str, list[_Handle]] = {}
        remote: Any = ray.remote  # its stubs do not know concurrency groups
        self._actor = remote(concurrency_groups={"watch": 1}, max_restarts=0)(_Actor)
        self._total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._gpu: float | None = None
        self._unborn = 0

    def step(self) -> bool:
        """Hand out jobs, wait a little, take results. False when nothing can go on."""
        self._release_idle()
        self._hand_out()
        running = [ref for handle in self._handles() for ref in handle.jobs]
        if not running:
            return False
        ready, _ = ray.wait(running, num_returns=1, timeout=POLL_SECONDS)
        for ref in ready:
            self._take(ref)
        self._watch()
        return True

    def close(self) -> None:
        for handle in self._handles():
            ray.kill(handle.actor)

    def _handles(self) -> list[_Handle]:
        return [handle for pool in self._pools.values() for handle in pool]

    def _release_idle(self) -> None:
        """Actors of a pool with nothing to do go when another pool wants their CPUs, GPUs and memory: it has jobs to
        give out, or an actor that cannot start."""
        waiting = self.schedule.waiting_pools()
        wanted = len(waiting) > 0 or any(handle.jobs and not handle.started() for handle in self._handles())
        for name, pool in self._pools.items():
            idle = [handle for handle in pool if not handle.jobs]
            for handle in [handle for handle in idle if handle.worn or (wanted and not waiting[name])]:
                ray.kill(handle.actor)
                pool.remove(handle)

    def _hand_out(self) -> None:
        for name in self.schedule.waiting_pools():
            pool = self._pools.setdefault(name, [])
            while job := self._job_for(name, pool):
                handle = min((handle for handle in pool if not handle.worn), key=lambda handle: len(handle.jobs))
                handle.jobs[handle.actor.run.remote(job)] = job

    def _job_for(self, name: str, pool: list[_Handle]) -> Job | None:
        """The next job of a pool if one of its actors, existing or new, has room for it."""
        job = self.schedule.next_job(name)
        if job is None or any(not handle.jobs and not handle.worn for handle in pool):
            return job
        if len(pool) < self._limit(job):
            pool.append(self._start(job))
            return job
        self.schedule.put_back(job)
        return None

    def _limit(self, job: Job) -> int:
        """How many actors of this pool the whole cluster holds."""
        asked = self._asked(job.resources)
        limits = [self._total.get(name, 0.0) / amount for name, amount in asked.items() if amount]
        return max(1, int(min(limits, default=10_000)))

    def _start(self, job: Job) -> _Handle:
        asked = self._asked(job.resources)
        if lacking := [name for name, amount in asked.items() if amount > self._total.get(name, 0.0)]:
            has = ", ".join(f"{self._total.get(name, 0.0):g} {name}" for name in lacking)
            raise GraphError(
                f"{job.units[0].producer.name} asks for {', '.join(f'{asked[name]:g} {name}' for name in lacking)}, "
                f"the cluster has {has}; say less in its resources: in the pipeline, or choose a smaller model"
            )
        options = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "memory": asked["memory"]}
        device = "cuda" if asked["GPU"] else "cpu"
        actor = self._actor.options(**options).remote(*self.worker_args, device, sys.path)
        node = actor.node.options(concurrency_group="watch").remote()
        return _Handle(actor, node, job.resources.recycle or math.inf)

    def _asked(self, resources: Resources) -> dict[str, float]:
        """What one actor asks of Ray: memory is a share of a GPU, or main memory where there is no GPU."""
        if not (resources.gpus or resources.memory_gb):
            return {"CPU": resources.cpus, "GPU": 0.0, "memory": 0}
        if not self._total.get("GPU"):
            return {"CPU": resources.cpus, "GPU": 0.0, "memory": int(resources.memory_gb * 1e9)}
        share = resources.gpus or resources.memory_gb / self._gpu_gb()
        # A share above one has to be whole, and Ray counts in steps of a ten-thousandth.
        return {"CPU": resources.cpus, "GPU": math.ceil(share) if share > 1 else round(share, 4), "memory": 0}

    def _gpu_gb(self) -> float:
        if self._gpu is None:
            remote: Any = ray.remote
            self._gpu = float(ray.get(remote(num_gpus=0.0001, num_cpus=0)(device_memory).remote())[1])
        return self._gpu

    def _take(self, ref: Any) -> None:
        handle = next(handle for handle in self._handles() if ref in handle.jobs)
        try:
            reports = ray.get(ref)
        except _LOST as error:
            ray.kill(handle.actor)  # it may still be there
            self._bury(handle, str(error).strip() or type(error).__name__)
            return
        except RayError as error:
            job = handle.jobs.pop(ref)
            self.schedule.abort(f"{job.units[0].unit}: {error}")
            return
        self._unborn = 0
        job = handle.jobs.pop(ref)
        handle.units_left -= len(job.units)
        self.schedule.finish(job, reports)
        self.finished(job, reports)

    def _bury(self, handle: _Handle, why: str) -> None:
        """The actor died with its jobs: only the first was running; a lost node is not counted against it."""
        node = self._node_of(handle)
        counts = node is not None and self._is_alive(node)
        self._unborn += node is None
        for job in handle.jobs.values():
            self.schedule.died(job, why.splitlines()[0], counts=counts)
            counts = False
        for pool in self._pools.values():
            if handle in pool:
                pool.remove(handle)
        if self._unborn >= MOST_UNBORN:
            self.schedule.abort(f"{self._unborn} workers in a row died before they had started; the last: {why}")

    def _node_of(self, handle: _Handle) -> str | None:
        """None if the actor died before it had started."""
        try:
            return str(ray.get(handle.node, timeout=0))
        except (RayError, TimeoutError):
            return None

    def _is_alive(self, node: str) -> bool:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return any(entry["NodeID"] == node and entry["Alive"] for entry in nodes)

    def _watch(self) -> None:
        """Ask every busy actor how far it is, without waiting for the answer."""
        for handle in self._handles():
            if handle.asked is None:
                handle.asked = handle.actor.progress.options(concurrency_group="watch").remote()
            elif ray.wait([handle.asked], timeout=0)[0]:
                self._progressed(handle)

    def _progressed(self, handle: _Handle) -> None:
        try:
            counts: Counts = ray.get(handle.asked)
        except RayError:
            return  # its death arrives with its jobs
        for name, rows in counts.items():
            self.progress(name, *_added(rows, handle.seen.get(name, NONE), -1))
        handle.seen, handle.asked = counts, None
