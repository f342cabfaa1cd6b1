"""Scheduling: a unit waits for its parents, a long unit is divided, a failed unit is retried, a broken annotator is
stopped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

from graphbuild.annotators.base import Resources
from graphbuild.contracts import Unit
from graphbuild.engine.plan import Plan
from graphbuild.engine.records import MOST_FAILURES, AnnotateUnit, AnyUnit, Death, Failure, IngestUnit, Job, UnitReport
from graphbuild.engine.unit import BROKEN_ROWS

UNIT_TRIES = 3
MAX_DEATHS = 20
PART_SECONDS = 600.0
"""A unit of which an annotator is expected to take longer is divided into parts of about this length."""
FIRST_ROWS = 64
"""Rows in a part while nothing is known of an annotator with a network."""

SHARED = "cpu"

UnitKey = tuple[str, str, int]
Version = tuple[str, str]

_ONE = Resources()


@dataclass(slots=True)
class _Parts:
    """The parts of a unit that are not made yet, and the totals of those that are."""

    left: set[range]
    made: UnitReport


@dataclass(slots=True)
class _Blocked:
    """A job, its place in the order of the run, and how many parents of its units are open."""

    rank: int
    job: Job
    parents: int


class Schedule:
    """The state of one run. Executors take jobs with `next_job` and give back `finish` or `died`.

    A unit that ends, committed or lost, releases the jobs that wait for it: the cost of a step grows with the
    children of its units, not with the jobs that wait.

    Args:
        killed: units that the process of an earlier run died on: their rows run alone.
        pace: annotator -> seconds for each row in earlier runs; this run's own are known better, once there are some.
            None: units are not divided.
    """

    def __init__(self, plan: Plan, killed: Collection[str] = (), pace: Mapping[str, float] | None = None) -> None:
        self.reports: list[UnitReport] = []
        self.errors: list[str] = []
        self.replan = False
        self._ready: dict[str, list[tuple[int, Job]]] = {}
        self._children: dict[UnitKey, list[_Blocked]] = {}
        self._open: set[UnitKey] = set()
        self._open_of: Counter[Version] = Counter()
        self._lost: set[UnitKey] = set()
        self._tries: Counter[tuple[UnitKey, range | None]] = Counter()
        self._stopped: set[Version] = set()
        self._done: dict[Version, UnitReport] = {}
        self._pace = pace
        self._parts: dict[UnitKey, _Parts] = {}
        jobs = make_jobs(plan, killed)
        self._before, self._after = count(-1, -1), count(len(jobs))
        for job in jobs:
            self._open.update(map(unit_key, job.units))
            self._open_of.update(map(version_of, job.units))
        for rank, job in enumerate(jobs):
            self._add(rank, job)

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
        """The first job whose parents are committed, for one pool or any; None if nothing can start now. Of a unit that
        would take long it is the first part, and its other parts come next."""
        name = min(self._ready, key=lambda name: self._ready[name][0][0], default="") if pool is None else pool
        if name not in self._ready:
            return None
        _, job = heappop(self._ready[name])
        if not self._ready[name]:
            del self._ready[name]
        return self._divided(job)

    def put_back(self, job: Job) -> None:
        """Take a job back that found no worker: it stays the first of its pool."""
        self._start(next(self._before), job)

    def waiting_pools(self) -> Counter[str]:
        """Pool -> jobs that could start now."""
        return Counter({name: len(jobs) for name, jobs in self._ready.items()})

    def finish(self, job: Job, reports: Sequence[UnitReport]) -> None:
        by_unit = {key_of(report.unit): report for report in reports}
        for work in job.units:
            self._settle(job, work, by_unit[unit_key(work)])

    def died(self, job: Job, why: str, *, counts: bool = True, reason: Death = "killed_worker") -> None:
        """Reschedule the units of a dead worker, one to a job; if `counts`, their rows run one at a time, and one that
        is given up has this `reason`."""
        for work in job.units:
            again = replace(work, deaths=work.deaths + counts, died_of=reason if counts else None)
            if again.deaths > MAX_DEATHS:
                self._fail(work, f"{work.unit}: {again.deaths} workers died on it; the last: {why}")
            else:
                self._again(job, again)

    def give_up(self, pool: str, why: str) -> None:
        """Give up on what one pool would do, and on what is made from it."""
        self.errors += [] if why in self.errors else [why]
        for _, job in self._ready.pop(pool, []):
            for work in job.units:
                self._lose(work)

    def abort(self, why: str) -> None:
        """Give up on everything unfinished."""
        self.errors.append(why)
        self._lost |= self._open
        self._open.clear()
        self._ready.clear()
        self._children.clear()

    # ---- what may start ----------------------------------------------------------------------------------------

    def _add(self, rank: int, job: Job) -> None:
        parents = {key for work in job.units for key in parent_keys(work) if key in self._open}
        blocked = _Blocked(rank, job, len(parents))
        for key in parents:
            self._children.setdefault(key, []).append(blocked)
        if not parents:
            self._start(rank, job)

    def _start(self, rank: int, job: Job) -> None:
        """Queue what is left of a job without the units whose annotator stopped or whose parents are lost."""
        lost = [work for work in job.units if self._is_lost(work)]
        if lost:
            job = replace(job, units=tuple(work for work in job.units if work not in lost))
        if job.units:
            heappush(self._ready.setdefault(job.pool, []), (rank, job))
        for work in lost:
            self._lose(work)

    def _is_lost(self, work: AnyUnit) -> bool:
        lost = any(key in self._lost for key in (unit_key(work), *parent_keys(work)))
        return lost or version_of(work) in self._stopped

    def _restart(self) -> None:
        """Queue again what is ready, after something was lost that it may belong to."""
        ready, self._ready = self._ready, {}
        for jobs in ready.values():
            for rank, job in jobs:
                self._start(rank, job)

    def _again(self, job: Job, work: AnyUnit) -> None:
        """One unit of a job by itself, after everything that waits."""
        self._start(next(self._after), replace(job, units=(work,)))

    def _lose(self, work: AnyUnit) -> None:
        self._lost.add(unit_key(work))
        self._close(work)

    def _close(self, work: AnyUnit) -> None:
        """A unit has ended, committed or lost: release its children."""
        if unit_key(work) not in self._open:
            return
        self._open.discard(unit_key(work))
        self._open_of[version_of(work)] -= 1
        for blocked in self._children.pop(unit_key(work), ()):
            blocked.parents -= 1
            if not blocked.parents:
                self._start(blocked.rank, blocked.job)

    # ---- long units --------------------------------------------------------------------------------------------

    def _divided(self, job: Job) -> Job:
        """The job, or its first piece if some of its units are long; the other pieces go before all that waits."""
        parts = {unit_key(work): self._parts_of(work) for work in job.units}
        if not any(parts.values()):
            return job
        whole = tuple(work for work in job.units if not parts[unit_key(work)])
        pieces = [replace(job, units=whole)] if whole else []
        for work in job.units:
            if isinstance(work, AnnotateUnit) and (ranges := parts[unit_key(work)]):
                pieces += [replace(job, units=(replace(work, part=part),)) for part in ranges]
                self._parts[unit_key(work)] = _Parts(set(ranges), UnitReport(unit=work.unit, revision=work.revision))
        for piece in reversed(pieces[1:]):
            self._start(next(self._before), piece)
        return pieces[0]

    def _parts_of(self, work: AnyUnit) -> Sequence[range]:
        """Ranges of `item_ix`, each a number of whole micro-batches; none for a unit that is short, or a part already.
        A unit that a worker died on stays whole: it knows which row was alone."""
        if isinstance(work, IngestUnit) or work.part is not None or work.gathers or work.deaths:
            return ()
        rows, batch, shard = self._rows_of_part(work), work.annotator.resources.batch_size, work.unit.shard
        items = rows / sum(work.producer.variants.values())
        total = shard.stop - shard.start
        if total <= items:
            return ()
        size = math.ceil(total / math.ceil(total / max(1, items)) / batch) * batch
        return [range(at, min(at + size, shard.stop)) for at in range(shard.start, shard.stop, size)]

    def _rows_of_part(self, work: AnnotateUnit) -> float:
        done = self._done.get(version_of(work))
        if self._pace is None:
            return math.inf
        pace = done.annotate_seconds / done.computed if done and done.computed else self._pace.get(work.producer.name)
        if pace is None:
            asked = work.annotator.resources
            return FIRST_ROWS if asked.memory_gb or asked.gpus else math.inf
        return PART_SECONDS / max(pace, 1e-9)

    # ---- what became of it -------------------------------------------------------------------------------------

    def _settle(self, job: Job, work: AnyUnit, report: UnitReport) -> None:
        if unit_key(work) not in self._open:
            return  # a part of a unit that is lost
        if report.status == "failed":
            self._retry_or_fail(job, work, report)
            return
        if report.status == "saved":
            self._saved(job, work, report)
            return
        self.replan |= report.status == "replan"
        self._close(work)
        self._count(work, report)
        parts = self._parts.pop(unit_key(work), None)
        self.reports.append(report if parts is None else _sum(report, parts.made))

    def _saved(self, job: Job, work: AnyUnit, report: UnitReport) -> None:
        """A part is made: after the last one, the unit gathers them."""
        assert isinstance(work, AnnotateUnit) and work.part is not None
        parts = self._parts[unit_key(work)]
        parts.left.discard(work.part)
        parts.made = _sum(parts.made, report)
        self._count(work, report)
        if not parts.left:
            whole = replace(work, part=None, gathers=True, deaths=0)
            self._start(next(self._before), replace(job, units=(whole,)))

    def _retry_or_fail(self, job: Job, work: AnyUnit, report: UnitReport) -> None:
        attempt = (unit_key(work), work.part if isinstance(work, AnnotateUnit) else None)
        self._tries[attempt] += 1
        if report.broken:
            self._stop(work, report)
        if report.final or self._tries[attempt] >= UNIT_TRIES:
            self._fail(work, report.error or "")
        else:
            self._again(job, work)

    def _count(self, work: AnyUnit, report: UnitReport) -> None:
        """Stop an annotator once more than half of at least BROKEN_ROWS rows failed; report one that has finished and
        failed more rows than it made."""
        version = version_of(work)
        total = self._done.setdefault(version, UnitReport(unit=report.unit, revision=0))
        total.computed += report.computed
        total.computed_failed += report.computed_failed
        total.annotate_seconds += report.annotate_seconds
        total.counts["ok"] = total.counts.get("ok", 0) + report.counts.get("ok", 0)
        total.failures += report.failures[: MOST_FAILURES - len(total.failures)]
        bad, done = total.computed_failed, not self._open_of[version]
        if (total.computed >= BROKEN_ROWS and bad * 2 > total.computed) or (done and bad > total.counts["ok"]):
            self._stop(work, total)

    def _stop(self, work: AnyUnit, report: UnitReport) -> None:
        version = version_of(work)
        if version not in self._stopped:
            self._stopped.add(version)
            failed = f"{report.computed_failed} of {report.computed} rows failed"
            self.errors.append(f"{version[0]}: {failed}{_for_instance(report.failures)}")
            self._restart()

    def _fail(self, work: AnyUnit, why: str) -> None:
        self.errors.append(why)
        self._lose(work)
        if self._parts.pop(unit_key(work), None) is not None:
            self._restart()


def _sum(report: UnitReport, part: UnitReport) -> UnitReport:
    """The report of a unit with the work that a part of it did."""
    names = ("computed", "computed_failed", "seconds", "annotate_seconds")
    return replace(report, **{name: getattr(report, name) + getattr(part, name) for name in names})


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
    pools: dict[Version, str] = {}
    for unit in plan.units:
        work, alone = unit.work, str(unit.work.unit) if killed and str(unit.work.unit) in killed else ""
        version = version_of(work)
        pool = pools[version] if version in pools else pools.setdefault(version, _pool(work))
        key = (work.unit.shard.index, depth[version], pool, alone)
        groups.setdefault(key, []).append(replace(work, deaths=1, died_of="killed_worker") if alone else work)
    return [_job(pool, works) for (_, _, pool, _), works in sorted(groups.items())]


def _job(pool: str, works: list[AnyUnit]) -> Job:
    own = [work.annotator.resources for work in works if isinstance(work, AnnotateUnit)]
    return Job(pool=pool, shard=works[0].unit.shard, units=tuple(works), resources=own[0] if pool != SHARED else _ONE)


def _pool(work: AnyUnit) -> str:
    """Annotators that ask for one CPU and nothing else share one pool; each other has workers of its own, which keep
    its model."""
    if isinstance(work, IngestUnit) or replace(work.annotator.resources, batch_size=1, stall_s=_ONE.stall_s) == _ONE:
        return SHARED
    return f"{work.producer.name}@{work.producer.version}"


def version_of(work: AnyUnit) -> Version:
    return (work.producer.name, work.producer.version)


def unit_key(work: AnyUnit) -> UnitKey:
    return key_of(work.unit)


def key_of(unit: Unit) -> UnitKey:
    return (unit.annotator, unit.version, unit.shard.index)


def parent_keys(work: AnyUnit) -> list[UnitKey]:
    lives = [*work.producer.parents.values(), *(work.after if isinstance(work, AnnotateUnit) else ())]
    return [(live.annotator, live.version, work.unit.shard.index) for live in lives]
