"""Units scheduled a second, and memory: `python tests/bench/bench_schedule.py [--units 1000000]`.

A new graph on paper of 50 kinds, 14 made on CPUs and 35 by networks, three deep (`tests.support.scale.fifty`): the
real `Schedule` hands out jobs to 16 workers a pool and is told that they are committed, first come, first served. What
is counted: `Schedule(plan)` and the steps of a driver (`waiting_pools`, `next_job`, `finish`), in one process and in
CPU seconds, which neighbours do not change; not the
plan itself, and no worker.

The peer is the scan that this library had before: each step looks at all waiting jobs. It gets a smaller plan, the
same driver, and both are run on it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from graphbuild.engine.plan import Plan
from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.schedule import Schedule, make_jobs, parent_keys, unit_key
from tests.support.benchmarks import record
from tests.support.scale import fifty, plan_of

WORKERS = 16


class Scan:
    """A deque of waiting jobs, looked through from the start at each step."""

    def __init__(self, plan: Plan) -> None:
        self._waiting = deque(make_jobs(plan))
        self._open = {unit_key(work) for job in self._waiting for work in job.units}

    @property
    def unfinished(self) -> bool:
        return bool(self._open)

    def waiting_pools(self) -> Counter[str]:
        return Counter(job.pool for job in self._waiting if not self._blocked(job))

    def next_job(self, pool: str) -> Job | None:
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            if job.pool == pool and not self._blocked(job):
                return job
            self._waiting.append(job)
        return None

    def finish(self, job: Job, reports: Sequence[UnitReport]) -> None:
        self._open.difference_update(map(unit_key, job.units))

    def _blocked(self, job: Job) -> bool:
        return any(key in self._open for work in job.units for key in parent_keys(work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--scan-units", type=int, default=2_500, help="units of the plan that the scan is given too")
    parser.add_argument("--quick", action="store_true", help="the plan of the scan alone")
    args = parser.parse_args()
    print(f"{'schedule':10s} {'units':>9s} {'jobs':>9s} {'prepared s':>11s} {'run s':>8s} {'units/s':>9s} {'MB':>7s}")
    scan = measure(Scan, args.scan_units)
    same = statistics.median(measure(Schedule, args.scan_units) for _ in range(3))  # it takes a fiftieth of a second
    if not args.quick:
        measure(Schedule, args.units)
    work = f"{args.scan_units} units scheduled, peer scan"
    record(work, ours=same, peer=scan, unit="units/s", ratio=same / scan, limit=20)


def measure(cls: Any, units: int) -> float:
    plan = plan_of(fifty(), max(1, units // 50))
    gc.collect()
    before, started = resident(), time.process_time()
    schedule = cls(plan)
    prepared, memory = time.process_time() - started, resident() - before
    started = time.process_time()
    jobs = drive(schedule)
    took = time.process_time() - started
    rate = len(plan.units) / (prepared + took)
    print(
        f"{cls.__name__.lower():10s} {len(plan.units):9d} {jobs:9d} {prepared:11.2f} {took:8.2f} {rate:9.0f} "
        f"{memory:7.0f}"
    )
    return rate


def drive(schedule: Any) -> int:
    """The steps of an executor, with workers that take no time; returns how many jobs there were."""
    running: deque[Job] = deque()
    busy: Counter[str] = Counter()
    jobs = 0
    while schedule.unfinished:
        for pool in schedule.waiting_pools():
            while busy[pool] < WORKERS and (job := schedule.next_job(pool)) is not None:
                running.append(job)
                busy[pool] += 1
        job = running.popleft()
        busy[job.pool] -= 1
        jobs += 1
        schedule.finish(job, [UnitReport(unit=work.unit, revision=0) for work in job.units])
    return jobs


def resident() -> float:
    """Megabytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


if __name__ == "__main__":
    main()
