"""Runs jobs on Ray Core actors, locally or on a cluster.

Pixels never enter the object store: an actor gets a job of a few kilobytes, reads and writes the graph itself, and
answers with reports. An actor has one job at a time: none waits behind a long one while another actor idles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from graphbuild.engine.executors.actors import Handle, remote_actor, start
from graphbuild.engine.executors.connection import MOST_BUNDLES, Wish, connected
from graphbuild.engine.executors.nodes import AT_ALL, REFRESH_SECONDS, Amounts, Node, Nodes, brief, describe
from graphbuild.engine.executors.probe import Requirements
from graphbuild.engine.ingest import missing_here
from graphbuild.engine.progress import Progress
from graphbuild.engine.records import AnyUnit, Death, IngestUnit, Job, UnitReport
from graphbuild.engine.schedule import Schedule
from graphbuild.errors import GraphError
from graphbuild.store.parallel import AHEAD, Mapper, in_order

POLL_SECONDS = 0.5
OTHER_NODES = 2
"""On so many further nodes a unit is tried before a failure counts against it."""

WAIT_SECONDS = 600.0
"""For a node like one that is gone."""

CROWDED_SECONDS = 5.0
"""An actor without a process after so long may wait for what other actors hold, of this run or of another."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how a run works.

    Attributes:
        needs: what each node has to have.
        flush_s: seconds after which a long unit saves its finished rows.
        address: of a Ray cluster; None: the environment's, else this machine.
        device: `cuda` or `cpu` for annotators that want a GPU; None: GPUs where there are some.
        wait_s: how long to wait for a node that can work for an annotator. None: not for one that never was there, and
            WAIT_SECONDS for one that was.
    """

    needs: Requirements
    flush_s: float
    address: str | None = None
    device: str | None = None
    wait_s: float | None = None


Finished = Callable[[Job, list[UnitReport]], None]
"""Called with each job that ended, and its reports."""


def run_ray(
    schedule: Schedule, setup: Setup, progress: Progress, finished: Finished, tell: Callable[[str], None]
) -> None:
    """Run jobs until none is left that can start. Actors die with this process.

    Args:
        tell: called with lines for the user: nodes that join, go, or are left out, and why.
    """
    with connected(setup.address, setup.needs.classes):
        driver = _Driver(schedule, setup, progress, finished, tell)
        try:
            while schedule.unfinished and driver.step():
                pass
        finally:
            driver.close()


@contextmanager
def processes_on_ray(address: str | None) -> Iterator[Mapper]:
    """A `map` over the processors of a cluster, or of this machine; functions are importable there, results small."""
    with connected(address, ()):
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        result: Callable[[Any], Any] = ray.get

        def mapped(function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
            return in_order(values, ray.remote(function).remote, result, cpus * AHEAD)

        yield mapped


class _Driver:
    def __init__(
        self, schedule: Schedule, setup: Setup, progress: Progress, finished: Finished, tell: Callable[[str], None]
    ) -> None:
        self.schedule, self.setup, self.progress, self.finished, self.tell = schedule, setup, progress, finished, tell
        needs = setup.needs
        self.nodes = Nodes(needs, setup.device, tell)
        self._args, self._place = (needs.url, needs.workspace, setup.flush_s), (needs.folder, needs.path)
        self._actor = remote_actor()
        self._pools: dict[str, list[Handle]] = {}
        self._served: set[str] = set()
        self._waits: dict[str, float] = {}
        self._checked = 0.0
        self._wish = Wish()

    def step(self) -> bool:
        """Hand out jobs, wait a little, take results. False when nothing can go on."""
        try:
            self.nodes.refresh()
        except RayError as error:
            self.schedule.abort(f"the Ray cluster is gone: {brief(error)}")
            return False
        self._release_idle()
        self._hand_out()
        self._give_up_hope()
        running = [ref for handle in self._handles() for ref in handle.jobs]
        if not running and not self.schedule.waiting_pools():
            return False
        if refs := [*running, *self.nodes.probing()]:
            ready, _ = ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
            for ref in set(ready) & set(running):
                self._take(ref)
        else:
            time.sleep(POLL_SECONDS)
        self._watch()
        return True

    def close(self) -> None:
        self._wish.withdraw()
        for handle in self._handles():
            handle.end()

    def _handles(self) -> list[Handle]:
        return [handle for pool in self._pools.values() for handle in pool]

    # ---- giving out --------------------------------------------------------------------------------------------

    def _release_idle(self) -> None:
        """Idle actors go when they are worn, or when their CPUs, GPUs and memory are wanted: by another pool, or by
        another run, since which an actor of this one gets no process."""
        waiting = self.schedule.waiting_pools()
        wanted = bool(waiting) or bool(_lacking(self._handles()))
        for name, pool in self._pools.items():
            for handle in [handle for handle in pool if not handle.jobs]:
                if handle.worn or handle.node.fault(name) or (wanted and not waiting[name]):
                    handle.end()
                    pool.remove(handle)

    def _hand_out(self) -> None:
        for name, count in self.schedule.waiting_pools().items():
            aside: list[Job] = []
            while job := self.schedule.next_job(name):
                handle = self._handle_for(job, count - len(aside))
                if handle is not None:
                    job = replace(job, units=tuple(map(_sent, job.units)))
                    handle.jobs[handle.actor.run.remote(job)] = job
                    continue
                aside.append(job)
                if not job.avoid:
                    break
            for job in reversed(aside):
                self.schedule.put_back(job)

    def _handle_for(self, job: Job, jobs: int) -> Handle | None:
        """The actor that gets a job, an idle one or a new one; None if no node has room."""
        pool, avoid = self._pools.get(job.pool, []), self._avoided(job)
        on_gpu = self.nodes.on_gpu(job.resources)
        good = [
            handle
            for handle in pool
            if not handle.worn
            and not handle.node.fault(job.pool)
            and handle.node.id not in avoid
            and (handle.asked["GPU"] > 0) == on_gpu
        ]
        if idle := next((handle for handle in good if not handle.jobs), None):
            return idle
        node = self.nodes.place(job.pool, job.resources, avoid)
        return self._start(job, node, jobs) if node is not None else None

    def _avoided(self, job: Job) -> frozenset[str]:
        """The nodes that a job failed on, if there are others for it."""
        able = {node.id for node in self.nodes.hold(job.pool, job.resources)} if job.avoid else set()
        return job.avoid if able - job.avoid else frozenset()

    def _start(self, job: Job, node: Node, jobs: int) -> Handle:
        asked = self.nodes.spread(self.nodes.asked(job.resources, node), node, jobs)
        if job.pool not in self._pools and not asked["GPU"] and (job.resources.gpus or job.resources.memory_gb):
            self._say_cpu(job.pool.partition("@")[0])
        self._waits.pop(job.pool, None)
        device = "cuda" if asked["GPU"] else "cpu"
        handle = start(self._actor, (self._args, device, *self._place), job, node, asked)
        self._pools.setdefault(job.pool, []).append(handle)
        return handle

    def _say_cpu(self, name: str) -> None:
        if self.setup.device != "cpu":
            self.tell(f"{name} runs on the CPU, slowly: no node that can work has a GPU (--device cuda waits for one)")

    # ---- waiting -----------------------------------------------------------------------------------------------

    def _give_up_hope(self) -> None:
        """Pools that no node can work for wait for one, and say so; not for ever."""
        now = time.monotonic()
        if now - self._checked < REFRESH_SECONDS or self.nodes.probing():
            return
        self._checked = now
        wanted = [handle.asked for handle in self._handles()]
        for name, jobs in self.schedule.waiting_pools().items():
            job = self.schedule.next_job(name)
            if job is None:
                continue
            self.schedule.put_back(job)
            wanted += [self.nodes.asked(job.resources)] * min(jobs, MOST_BUNDLES)
            if self.nodes.hold(name, job.resources):
                self._waits.pop(name, None)
            else:
                self._wait_for_node(job, now)
        self._wish.ask(wanted)

    def _wait_for_node(self, job: Job, now: float) -> None:
        default = WAIT_SECONDS if job.pool in self._served else 0.0
        limit = default if self.setup.wait_s is None else self.setup.wait_s
        what, why = self._wanted(job), self._why_none(job)
        if job.pool not in self._waits and limit:
            self.tell(f"waiting up to {limit:g} s for a node with {what}: {why}")
        if now - self._waits.setdefault(job.pool, now) >= limit:
            if job.pool not in self._served and self.nodes.able(job.pool):
                raise GraphError(f"{why}; say less in its resources: in the pipeline, or choose a smaller model")
            self.schedule.give_up(job.pool, f"no node can work for {_annotator(job)}: {why}")

    def _wanted(self, job: Job) -> str:
        asked = self.nodes.asked(job.resources)
        return f"{describe(asked, [name for name, amount in asked.items() if amount])} for {_annotator(job)}"

    def _why_none(self, job: Job) -> str:
        """Why no node can work for a pool: what each lacks."""
        if not (able := self.nodes.able(job.pool)):
            faults = [f"{node.name}: {fault}" for node in self.nodes.alive() if (fault := node.fault(job.pool))]
            return "; ".join(faults) or "the cluster has no node"
        largest = {name: max(node.total[name] for node in able) for name in able[0].total}
        asked = self.nodes.asked(job.resources)
        lacking = [name for name, amount in asked.items() if amount > largest[name]] or list(asked)
        whole = "the cluster" if len(able) == 1 else "the largest node of the cluster"
        return f"{_annotator(job)} asks for {describe(asked, lacking)}, {whole} has {describe(largest, lacking)}"

    # ---- taking back -------------------------------------------------------------------------------------------

    def _take(self, ref: Any) -> None:
        handle = next((handle for handle in self._handles() if ref in handle.jobs), None)
        if handle is None:
            return  # its actor went with another of its jobs
        job = handle.jobs[ref]
        try:
            reports: list[UnitReport] = ray.get(ref)
        except RayTaskError as error:  # the job could not be read there, or not answered
            reports = [
                UnitReport(unit=w.unit, revision=w.revision, status="failed", error=f"{w.unit}: {brief(error)}")
                for w in job.units
            ]
        except ActorUnavailableError as error:  # Ray takes a quarter of a minute to say that a node is dead
            self.nodes.doubt(handle.node)
            self._bury(handle, brief(error), None)
            return
        except RayError as error:
            self._bury(handle, brief(error))
            return
        del handle.jobs[ref]
        handle.units_left -= len(job.units)
        pairs = list(zip(job.units, reports, strict=True))
        stay = [(work, report) for work, report in pairs if not self._moved(handle, job, work, report)]
        if stay:
            job, reports = replace(job, units=tuple(work for work, _ in stay)), [report for _, report in stay]
            self.schedule.finish(job, reports)
            self.finished(job, reports)

    def _moved(self, handle: Handle, job: Job, work: AnyUnit, report: UnitReport) -> bool:
        """Whether a unit goes to another worker, because its failure may be this one's fault."""
        node = handle.node
        if report.status != "failed":
            self.nodes.praise(node, job.pool)
            self._served.add(job.pool)
            return False
        why = report.error or ""
        if report.unseen and isinstance(work, IngestUnit):
            gone = missing_here(work.source, report.unseen)
            if gone == set(report.unseen):
                work = replace(work, gone=(work.gone or frozenset()) | gone)
                self.schedule.died(replace(job, units=(work,)), why, counts=False)
                return True
        if report.device_lost or not job.avoid:
            self.nodes.blame(node, job.pool, why, alone=report.device_lost)
        for other in job.avoid - {node.id}:
            self.nodes.all[other].misses[job.pool] = 0  # it fails elsewhere too
        again = replace(job, units=(work,), avoid=job.avoid | {node.id})
        others = [n for n in self.nodes.hold(job.pool, job.resources) if n.id not in again.avoid]
        if report.device_lost or report.broken:
            self._end(handle)
        if report.device_lost or (report.broken and not job.avoid) or (others and len(job.avoid) < OTHER_NODES):
            proved = job.pool in node.served  # a GPU that never worked says nothing about a row
            self.schedule.died(again, why, counts=report.device_lost and not others and proved)
            return True
        return False

    def _end(self, handle: Handle) -> None:
        """Kill an actor whose process is of no use any more; jobs that waited in it go elsewhere."""
        if handle not in self._pools[handle.pool]:
            return
        self._pools[handle.pool].remove(handle)
        handle.end()
        for job in handle.jobs.values():
            self.schedule.died(job, "", counts=False)
        handle.jobs.clear()

    def _bury(self, handle: Handle, why: str, reason: Death | None = "killed_worker") -> None:
        """The actor died with its jobs: only the first was running; a lost node is not counted against it, nor a death
        without a reason."""
        self.nodes.look()
        running, started = next(iter(handle.jobs)), handle.started()
        job = handle.jobs.pop(running)
        if not started and handle.node.alive:
            self.nodes.blame(handle.node, handle.pool, f"its worker did not start: {why}", alone=True)
        elif handle.node.alive and reason and not job.avoid:
            self.nodes.blame(handle.node, handle.pool, why, AT_ALL)  # a row, or whoever killed it, is likelier
        avoid = job.avoid | {handle.node.id}
        if started and handle.node.alive and reason:
            self.schedule.died(replace(job, avoid=avoid), why, reason=reason)
        else:
            self.schedule.died(replace(job, avoid=avoid), why, counts=False)
        self._end(handle)

    def _watch(self) -> None:
        """Ask every actor how far it is, without waiting for the answer; end those that make no progress."""
        for handle in self._handles():
            for name, rows in handle.listen().items():
                self.progress(name, *rows)
                if rows[1] > rows[2]:
                    self.nodes.praise(handle.node, handle.pool)
            if handle.jobs and (why := handle.stalled()) and not self._crowded_out(handle):
                self._bury(handle, why, "timeout")
        uses = ((handle, handle.pulse.gpu) for handle in self._handles())
        self.progress.gpus = {f"{h.node.name} GPU {gpu}": use for h, use in uses if use is not None for gpu in h.gpus}

    def _crowded_out(self, handle: Handle) -> bool:
        """Whether an actor has no process since other runs use the whole cluster: then it goes on waiting."""
        if lacking := _lacking([handle]):
            handle.since = time.monotonic()
            self.tell(f"waiting for {describe(handle.asked, lacking)} that other runs on the cluster use")
        return bool(lacking)


def _lacking(handles: Iterable[Handle]) -> list[str]:
    """What the cluster has too little left of for actors that have waited for their process for long."""
    late = [handle for handle in handles if handle.unborn() >= CROWDED_SECONDS]
    free: Amounts = ray.available_resources() if late else {}  # type: ignore[no-untyped-call]
    return sorted({name for handle in late for name, amount in handle.asked.items() if amount > free.get(name, 0.0)})


def _sent(work: AnyUnit) -> AnyUnit:
    """A unit for another process: that a file is missing there does not mean that it is gone."""
    return replace(work, gone=frozenset()) if isinstance(work, IngestUnit) and work.gone is None else work


def _annotator(job: Job) -> str:
    return job.units[0].producer.name
