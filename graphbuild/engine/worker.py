"""What one worker does at a time: the units of one shard side by side, sharing one decode of their parents."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graphbuild.annotators.base import Resources
from graphbuild.contracts import Shard
from graphbuild.engine.ingest import IngestUnit, ReplanNeeded, run_source_unit
from graphbuild.engine.micro_batches import Loaded
from graphbuild.engine.preflight import fetch_missing
from graphbuild.engine.records import AnnotateUnit, UnitReport
from graphbuild.engine.unit import AnnotatorBroken, Nodes, Work
from graphbuild.errors import GraphError
from graphbuild.models.device import device_memory, use_threads
from graphbuild.store.files import Files, Workspace

Progress = Callable[[int, int], None]
"""Called with (rows finished, of which failed)."""

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """Units of one shard for one worker; `pool` says whose worker may take it, `resources` what that one needs."""

    pool: str
    shard: Shard
    tasks: tuple[AnnotateUnit | IngestUnit, ...]
    resources: Resources = Resources()


class Worker:
    """Runs jobs in this process; models are loaded on first use and kept. Without a `device` they go where there is
    one for them: on the GPU, else the CPU."""

    def __init__(self, url: str, workspace: str, flush_s: float, device: str | None = None) -> None:
        import cv2

        # One thread for each CPU asked for: the pool is the parallelism, and results depend on thread counts.
        cv2.setNumThreads(1)
        self.files = Files(url)
        self.workspace = Workspace(self.files, workspace)
        self.flush_s, self.device = flush_s, device
        self._loaded: dict[str, Loaded] = {}

    def run(self, job: Job, progress: Progress) -> list[UnitReport]:
        """One report per unit; what goes wrong in one unit does not stop the others."""
        running = [_Running(self, task, progress) for task in job.tasks]
        for run in running:
            run.open()
        items = next((run.work.items for run in running if run.work is not None), [])
        size = max((run.batch_size for run in running), default=1)
        for start in range(0, len(items), size):
            nodes: Nodes = {}
            for run in running:
                run.advance(items[start : start + size], nodes)
        for run in running:
            run.commit()
        return [run.report for run in running]

    def loaded(self, task: AnnotateUnit) -> Loaded:
        asked = task.annotator.resources
        if task.producer.version not in self._loaded:
            fetch_missing(task.annotator)
            device = self.device or (device_memory()[0] if asked.memory_gb or asked.gpus else "cpu")
            self._loaded[task.producer.version] = Loaded(task.annotator.load(device), max(1, asked.batch_size))
        use_threads(asked.cpus)
        return self._loaded[task.producer.version]


class _Running:
    """One unit inside a job; its errors end in its report."""

    def __init__(self, worker: Worker, task: AnnotateUnit | IngestUnit, progress: Progress) -> None:
        self.worker, self.task, self.progress = worker, task, progress
        self.report = UnitReport(unit=task.unit, revision=task.revision)
        self.work: Work | None = None

    @property
    def batch_size(self) -> int:
        return self.task.annotator.resources.batch_size if isinstance(self.task, AnnotateUnit) else 1

    def open(self) -> None:
        with self._timed(), _recorded(self.report):
            if isinstance(self.task, IngestUnit):
                self.report = run_source_unit(self.task, self.worker.files, self.worker.workspace, self.progress)
            else:
                self.work = Work(self.task, self.worker.files, self.worker.workspace, self.worker.flush_s)
                self.report = self.work.report

    def advance(self, items: Sequence[Any], nodes: Nodes) -> None:
        if self.work is None or self.report.error is not None:
            return
        before, failed = self.work.tally.done, self.work.tally.failed
        with self._timed(), _recorded(self.report):
            self.work.advance(items, nodes, lambda: self.worker.loaded(self.work.task))  # type: ignore[union-attr]
        self.progress(self.work.tally.done - before, self.work.tally.failed - failed)

    def commit(self) -> None:
        if self.work is not None and self.report.error is None:
            with self._timed(), _recorded(self.report):
                self.work.commit()
            # Rows that were settled by their parents, kept or resumed took no time, but belong to the whole.
            self.progress(len(self.work.items) * sum(self.task.producer.variants.values()) - self.work.tally.done, 0)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.report.seconds += time.perf_counter() - started


@contextmanager
def _recorded(report: UnitReport) -> Iterator[None]:
    try:
        yield
    except ReplanNeeded:
        report.status = "replan"
    except Exception as error:
        report.status = "failed"
        report.error = f"{report.unit}: {type(error).__name__}: {error}"
        report.broken = isinstance(error, AnnotatorBroken)
        report.final = isinstance(error, GraphError) or getattr(error, "errno", None) in FULL
