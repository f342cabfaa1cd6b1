"""Scheduling: a unit waits for its parents, a failed unit is retried, a broken annotator is stopped."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from graphbuild.annotators.base import Resources
from graphbuild.engine.plan import Plan
from graphbuild.engine.records import MOST_FAILURES, AnnotateUnit, AnyUnit, Failure, IngestUnit, Job, UnitReport
from graphbuild.engine.unit import BROKEN_ROWS

UNIT_TRIES = 3
MAX_DEATHS = 20

SHARED = "cpu"

UnitKey = tuple[str, str, int]
Version = tuple[str, str]

_ONE = Resources()


class Schedule:
    """The state of one run. Executors take jobs with `next_job` and give back `finish` or `died`.

    Args:
        killed: units that the process of an earlier run died on: their rows run alone.
    """

    def __init__(self, plan: Plan, killed: Collection[str] = ()) -> None:
        self.reports: list[UnitReport] = []
        self.errors: list[str] = []
        self.replan = False
        self._waiting: deque[Job] = deque(make_jobs(plan, killed))
        self._open: set[UnitKey] = {unit_key(work) for job in self._waiting for work in job.units}
        self._lost: set[UnitKey] = set()
        self._tries: Counter[UnitKey] = Counter()
        self._stopped: set[Version] = set()
        self._done: dict[Version, UnitReport] = {}

    @property
    def unfinished(self) -> bool:
        return bool(self._open)

    @property
    def left(self) -> list[str]:
        """Units that failed or were not reached in this run."""
        return sorted(
            f"{annotator} {version} shard-{shard:05d}" for annotator, version, shard in self._lost | self._open
        )

    def next_job(self, pool: str | None = None) -> Job | None:
        """A job whose parents are committed, for one pool or any; None if nothing can start now."""
        for _ in range(len(self._waiting)):
            job = self._without_lost(self._waiting.popleft())
            if job is None:
                continue
            if (pool is None or job.pool == pool) and not any(self._blocked(work) for work in job.units):
                return job
            self._waiting.append(job)
        return None

    def put_back(self, job: Job) -> None:
        self._waiting.appendleft(job)

    def waiting_pools(self) -> Counter[str]:
        """Pool -> jobs that could start now."""
        return Counter(job.pool for job in self._waiting if not any(self._blocked(work) for work in job.units))

    def finish(self, job: Job, reports: Sequence[UnitReport]) -> None:
        by_unit = {str(report.unit): report for report in reports}
        for work in job.units:
            self._settle(job, work, by_unit[str(work.unit)])

    def died(self, job: Job, why: str, *, counts: bool = True) -> None:
        """Reschedule the units of a dead worker, one to a job; if `counts`, their rows run one at a time."""
        for work in job.units:
            again = replace(work, deaths=work.deaths + counts)
            if again.deaths > MAX_DEATHS:
                self._lose(work, f"{work.unit}: {again.deaths} workers died on it; the last: {why}")
            else:
                self._waiting.append(replace(job, units=(again,)))

    def abort(self, why: str) -> None:
        """Give up on everything unfinished."""
        self.errors.append(why)
        self._lost |= self._open
        self._open.clear()
        self._waiting.clear()

    def _settle(self, job: Job, work: AnyUnit, report: UnitReport) -> None:
        if report.status == "failed":
            self._retry_or_lose(job, work, report)
            return
        self.replan |= report.status == "replan"
        self.reports.append(report)
        self._open.discard(unit_key(work))
        self._count(work, report)

    def _retry_or_lose(self, job: Job, work: AnyUnit, report: UnitReport) -> None:
        self._tries[unit_key(work)] += 1
        if report.broken:
            self._stop(work, report)
        if report.final or self._tries[unit_key(work)] >= UNIT_TRIES:
            self._lose(work, report.error or "")
        else:
            self._waiting.append(replace(job, units=(work,)))

    def _count(self, work: AnyUnit, report: UnitReport) -> None:
        """Stop an annotator once more than half of at least BROKEN_ROWS rows failed; report one that has finished and
        failed more rows than it made."""
        version = (work.producer.name, work.producer.version)
        total = self._done.setdefault(version, UnitReport(unit=report.unit, revision=0))
        total.computed += report.computed
        total.computed_failed += report.computed_failed
        total.counts["ok"] = total.counts.get("ok", 0) + report.counts.get("ok", 0)
        total.failures += report.failures[: MOST_FAILURES - len(total.failures)]
        bad, done = total.computed_failed, not any(key[:2] == version for key in self._open)
        if (total.computed >= BROKEN_ROWS and bad * 2 > total.computed) or (done and bad > total.counts["ok"]):
            self._stop(work, total)

    def _stop(self, work: AnyUnit, report: UnitReport) -> None:
        version = (work.producer.name, work.producer.version)
        if version not in self._stopped:
            self._stopped.add(version)
            failed = f"{report.computed_failed} of {report.computed} rows failed"
            self.errors.append(f"{version[0]}: {failed}{_for_instance(report.failures)}")

    def _lose(self, work: AnyUnit, why: str) -> None:
        self._open.discard(unit_key(work))
        self._lost.add(unit_key(work))
        self.errors.append(why)

    def _without_lost(self, job: Job) -> Job | None:
        """The job without the units whose annotator stopped or whose parents failed."""
        kept = []
        for work in job.units:
            stopped = (work.producer.name, work.producer.version) in self._stopped
            if stopped or any(key in self._lost for key in parent_keys(work)):
                self._open.discard(unit_key(work))
                self._lost.add(unit_key(work))
            else:
                kept.append(work)
        return replace(job, units=tuple(kept)) if kept else None

    def _blocked(self, work: AnyUnit) -> bool:
        return any(key in self._open for key in parent_keys(work))


def _for_instance(failures: Sequence[Failure]) -> str:
    """The commonest detail, and three keys that have it."""
    if not failures:
        return ""
    failures = [failure for failure in failures if failure.trace] or failures
    detail, times = Counter(failure.detail or failure.reason for failure in failures).most_common(1)[0]
    keys = list(dict.fromkeys(f.key for f in failures if (f.detail or f.reason) == detail))[:3]
    return f", most often ({times} of {len(failures)} seen) with {detail}: {', '.join(map(ascii, keys))}"


def make_jobs(plan: Plan, killed: Collection[str] = ()) -> list[Job]:
    """Units of one shard that share a pool and a depth of derivation become one job, shard by shard; those that an
    earlier run died on run by themselves."""
    depth: dict[tuple[str, str], int] = {}
    for producer in plan.producers:
        parents = (depth.get((live.annotator, live.version), 0) for live in producer.parents.values())
        least = 0 if producer.name.startswith("source:") else 1
        depth[producer.name, producer.version] = max((d + 1 for d in parents), default=least)
    groups: dict[tuple[int, int, str, str], list[AnyUnit]] = {}
    for unit in plan.units:
        work, alone = unit.work, str(unit.work.unit) if str(unit.work.unit) in killed else ""
        key = (work.unit.shard.index, depth[work.producer.name, work.producer.version], _pool(work), alone)
        groups.setdefault(key, []).append(replace(work, deaths=1) if alone else work)
    return [_job(pool, works) for (_, _, pool, _), works in sorted(groups.items())]


def _job(pool: str, works: list[AnyUnit]) -> Job:
    own = [work.annotator.resources for work in works if isinstance(work, AnnotateUnit)]
    return Job(pool=pool, shard=works[0].unit.shard, units=tuple(works), resources=own[0] if pool != SHARED else _ONE)


def _pool(work: AnyUnit) -> str:
    """Annotators that ask for one CPU and nothing else share one pool; each other has workers of its own, which keep
    its model."""
    if isinstance(work, IngestUnit) or replace(work.annotator.resources, batch_size=1) == _ONE:
        return SHARED
    return f"{work.producer.name}@{work.producer.version}"


def unit_key(work: AnyUnit) -> UnitKey:
    return (work.unit.annotator, work.unit.version, work.unit.shard.index)


def parent_keys(work: AnyUnit) -> list[UnitKey]:
    lives = [*work.producer.parents.values(), *(work.after if isinstance(work, AnnotateUnit) else ())]
    return [(live.annotator, live.version, work.unit.shard.index) for live in lives]
