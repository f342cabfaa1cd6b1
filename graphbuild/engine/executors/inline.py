"""Runs jobs in this process, one after the other: small graphs, tests, debugging."""

from __future__ import annotations

from collections.abc import Callable

from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.schedule import Schedule
from graphbuild.engine.worker import Progress, Worker


def run_inline(
    schedule: Schedule,
    make_worker: Callable[[], Worker],
    progress: Progress,
    finished: Callable[[Job, list[UnitReport]], None],
) -> None:
    """Work until nothing is left that can be done."""
    worker = make_worker()
    while job := schedule.next_job():
        reports = worker.run(job, progress)
        schedule.finish(job, reports)
        finished(job, reports)
