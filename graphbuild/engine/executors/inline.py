"""Runs jobs in this process, one after the other: small graphs, tests, debugging."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.schedule import Schedule
from graphbuild.engine.worker import Progress, Worker
from graphbuild.store.files import Files
from graphbuild.store.workspace import remove_dead_workspaces


def run_inline(
    schedule: Schedule,
    make_worker: Callable[[], Worker],
    progress: Progress,
    finished: Callable[[Job, list[UnitReport]], None],
) -> None:
    """Run jobs until none is left that can start.

    The workspace records which units are in progress, so that the next run knows which of them native code crashed in.
    """
    worker = make_worker()
    while job := schedule.next_job():
        worker.files.append(_marker(worker.workspace.name), [str(work.unit) for work in job.units])
        reports = worker.run(job, progress)
        worker.files.remove(_marker(worker.workspace.name))
        schedule.finish(job, reports)
        finished(job, reports)


def _marker(workspace: str) -> str:
    return f"_tmp/{workspace}/units.txt"


def remove_dead_runs(files: Files) -> tuple[int, frozenset[str]]:
    """Remove the workspaces that killed runs left.

    Returns:
        how many there were, and the units that those in one process died on.
    """
    marked = {}
    for name in files.names("_tmp"):
        with suppress(FileNotFoundError):  # it does nothing now, or has ended since it was listed
            marked[name] = files.read(_marker(name)).decode(errors="replace").splitlines()
    dead = remove_dead_workspaces(files)
    return len(dead), frozenset(unit for name in dead for unit in marked.get(name, ()))
