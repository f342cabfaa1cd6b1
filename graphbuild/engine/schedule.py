"""Which jobs may run now: a unit waits for its parents, a failed one is tried again, a broken annotator stops."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from graphbuild.annotators.base import Resources
from graphbuild.engine.ingest import IngestUnit
from graphbuild.engine.plan import Plan
from graphbuild.engine.records import AnnotateUnit, UnitReport
from graphbuild.engine.unit import BROKEN_ROWS
from graphbuild.engine.worker import Job

UNIT_TRIES = 3
MAX_DEATHS = 20

SHARED = "cpu"

UnitKey = tuple[str, str, int]

_ONE = Resources()


class Schedule:
    """The state of one run. Executors take jobs with `next_job` and give back `finish` or `died`."""

    def __init__(self, plan: Plan) -> None:
        self.reports: list[UnitReport] = []
        self.errors: list[str] = []
        self.replan = False
        self._waiting: deque[Job] = deque(make_jobs(plan))
        self._open: set[UnitKey] = {unit_key(task) for job in self._waiting for task in job.tasks}
        self._lost: set[UnitKey] = set()
        self._tries: Counter[UnitKey] = Counter()
        self._stopped: set[tuple[str, str]] = set()
        self._rows: Counter[tuple[tuple[str, str], bool]] = Counter()

    @property
    def unfinished(self) -> bool:
        return bool(self._open)

    @property
    def left(self) -> list[str]:
        """Units that this run gave up on or never got to."""
        return sorted(
            f"{annotator} {version} shard-{shard:05d}" for annotator, version, shard in self._lost | self._open
        )

    def next_job(self, pool: str | None = None) -> Job | None:
        """A job whose parents are committed, for one pool or any; None if nothing can start now."""
        for _ in range(len(self._waiting)):
            job = self._without_lost(self._waiting.popleft())
            if job is None:
                continue
            if (pool is None or job.pool == pool) and not any(self._blocked(task) for task in job.tasks):
                return job
            self._waiting.append(job)
        return None

    def put_back(self, job: Job) -> None:
        self._waiting.appendleft(job)

    def waiting_pools(self) -> Counter[str]:
        """Pool -> jobs that could start now."""
        return Counter(job.pool for job in self._waiting if not any(self._blocked(task) for task in job.tasks))

    def finish(self, job: Job, reports: Sequence[UnitReport]) -> None:
        by_unit = {str(report.unit): report for report in reports}
        for task in job.tasks:
            self._settle(job, task, by_unit[str(task.unit)])

    def died(self, job: Job, why: str, *, counts: bool = True) -> None:
        """The worker died: its units go back, one to a job; if it was not the node that died, rows run alone."""
        for task in job.tasks:
            again = replace(task, deaths=task.deaths + counts)
            if again.deaths > MAX_DEATHS:
                self._lose(task, f"{task.unit}: {again.deaths} workers died on it; the last: {why}")
            else:
                self._waiting.append(replace(job, tasks=(again,)))

    def abort(self, why: str) -> None:
        """Nothing more can be done in this run."""
        self.errors.append(why)
        self._lost |= self._open
        self._open.clear()
        self._waiting.clear()

    def _settle(self, job: Job, task: AnnotateUnit | IngestUnit, report: UnitReport) -> None:
        if report.status == "failed":
            self._retry_or_lose(job, task, report)
            return
        self.replan |= report.status == "replan"
        self.reports.append(report)
        self._open.discard(unit_key(task))
        self._count(task, report)

    def _retry_or_lose(self, job: Job, task: AnnotateUnit | IngestUnit, report: UnitReport) -> None:
        self._tries[unit_key(task)] += 1
        if report.broken:
            self._stop(task)
        if report.final or self._tries[unit_key(task)] >= UNIT_TRIES:
            self._lose(task, report.error or "")
        else:
            self._waiting.append(replace(job, tasks=(task,)))

    def _count(self, task: AnnotateUnit | IngestUnit, report: UnitReport) -> None:
        """Stop an annotator of which more than half of at least BROKEN_ROWS finished rows failed."""
        producer = (task.producer.name, task.producer.version)
        self._rows[producer, True] += report.computed_failed
        self._rows[producer, False] += report.computed
        rows, all_bad = self._rows[producer, False], self._rows[producer, True]
        if rows >= BROKEN_ROWS and all_bad * 2 > rows and producer not in self._stopped:
            self.errors.append(f"{producer[0]} stopped: {all_bad} of {rows} rows failed")
            self._stop(task)

    def _stop(self, task: AnnotateUnit | IngestUnit) -> None:
        self._stopped.add((task.producer.name, task.producer.version))

    def _lose(self, task: AnnotateUnit | IngestUnit, why: str) -> None:
        self._open.discard(unit_key(task))
        self._lost.add(unit_key(task))
        self.errors.append(why)

    def _without_lost(self, job: Job) -> Job | None:
        """The job less the units whose annotator stopped or whose parents will not come."""
        kept = []
        for task in job.tasks:
            stopped = (task.producer.name, task.producer.version) in self._stopped
            if stopped or any(key in self._lost for key in parent_keys(task)):
                self._open.discard(unit_key(task))
                self._lost.add(unit_key(task))
            else:
                kept.append(task)
        return replace(job, tasks=tuple(kept)) if kept else None

    def _blocked(self, task: AnnotateUnit | IngestUnit) -> bool:
        return any(key in self._open for key in parent_keys(task))


def make_jobs(plan: Plan) -> list[Job]:
    """Units of one shard that share a pool and a depth of derivation become one job; shard by shard."""
    depth: dict[tuple[str, str], int] = {}
    for producer in plan.producers:
        parents = (depth.get((live.annotator, live.version), 0) for live in producer.parents.values())
        depth[producer.name, producer.version] = max((d + 1 for d in parents), default=0)
    groups: dict[tuple[int, int, str], list[AnnotateUnit | IngestUnit]] = {}
    for unit in plan.units:
        task = unit.task
        key = (task.unit.shard.index, depth[task.producer.name, task.producer.version], _pool(task))
        groups.setdefault(key, []).append(task)
    return [_job(pool, tasks) for (_, _, pool), tasks in sorted(groups.items())]


def _job(pool: str, tasks: list[AnnotateUnit | IngestUnit]) -> Job:
    own = [task.annotator.resources for task in tasks if isinstance(task, AnnotateUnit)]
    return Job(pool=pool, shard=tasks[0].unit.shard, tasks=tuple(tasks), resources=own[0] if pool != SHARED else _ONE)


def _pool(task: AnnotateUnit | IngestUnit) -> str:
    """Annotators that ask for one CPU and nothing else share one pool; each other has workers of its own, which keep
    its model."""
    if isinstance(task, IngestUnit) or replace(task.annotator.resources, batch_size=1) == _ONE:
        return SHARED
    return f"{task.producer.name}@{task.producer.version}"


def unit_key(task: AnnotateUnit | IngestUnit) -> UnitKey:
    return (task.unit.annotator, task.unit.version, task.unit.shard.index)


def parent_keys(task: AnnotateUnit | IngestUnit) -> list[UnitKey]:
    return [(live.annotator, live.version, task.unit.shard.index) for live in task.producer.parents.values()]
