"""A worker: runs the units of one shard together, so that each parent is decoded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from graphbuild.engine.ingest import Ingesting, ReplanNeeded, Unseen
from graphbuild.engine.micro_batches import Loaded, device_lost
from graphbuild.engine.preflight import fetch_missing
from graphbuild.engine.records import AnnotateUnit, AnyUnit, IngestUnit, Job, UnitReport
from graphbuild.engine.rows import told
from graphbuild.engine.unit import Annotating, AnnotatorBroken, Nodes
from graphbuild.errors import FULL, GraphError
from graphbuild.models.device import device_memory, use_threads
from graphbuild.store.locations import files_at
from graphbuild.store.workspace import Workspace

Progress = Callable[[str, int, int, int], None]
"""Called with (annotator, rows finished, of which computed now, of which failed); with zeros when it begins."""


class Worker:
    """Runs jobs in this process; models are loaded on first use and kept. Without a `device` they go where there is
    one for them: on the GPU, else the CPU."""

    def __init__(self, url: str, workspace: str, flush_s: float, device: str | None = None) -> None:
        import cv2

        # One thread for each CPU asked for: the pool is the parallelism, and results depend on thread counts.
        cv2.setNumThreads(1)
        self.files = files_at(url)
        self.workspace = Workspace(self.files, workspace)
        self.flush_s, self.device = flush_s, device
        self.loading = False
        self._loaded: dict[str, Loaded] = {}

    def run(self, job: Job, progress: Progress) -> list[UnitReport]:
        """One report per unit; a unit that fails does not stop the others."""
        running = [_Running(self, work, progress) for work in job.units]
        for run in running:
            run.open()
        items = next((run.making.items for run in running if run.making is not None), [])
        size = max((run.batch_size for run in running), default=1)
        for start in range(0, len(items), size):
            nodes: Nodes = {}
            for run in running:
                run.advance(items[start : start + size], nodes)
        for run in running:
            run.commit()
        return [run.report for run in running]

    def loaded(self, work: AnnotateUnit) -> Loaded:
        asked = work.annotator.resources
        if work.producer.version not in self._loaded:
            self.loading = True
            try:
                fetch_missing(work.annotator)
                device = self.device or (device_memory()[0] if asked.memory_gb or asked.gpus else "cpu")
                self._loaded[work.producer.version] = Loaded(work.annotator.load(device), max(1, asked.batch_size))
            finally:
                self.loading = False
        use_threads(asked.cpus)
        return self._loaded[work.producer.version]


class _Running:
    """One unit inside a job; its errors end in its report."""

    def __init__(self, worker: Worker, work: AnyUnit, progress: Progress) -> None:
        self.worker, self.work, self.progress = worker, work, progress
        self.report = UnitReport(unit=work.unit, revision=work.revision)
        self.making: Annotating | None = None

    @property
    def batch_size(self) -> int:
        return self.work.annotator.resources.batch_size if isinstance(self.work, AnnotateUnit) else 1

    def open(self) -> None:
        if isinstance(self.work, IngestUnit):
            self._ingest(self.work)
            return
        with self._timed(), _recorded(self.report):
            self.making = Annotating(self.work, self.worker.files, self.worker.workspace, self.worker.flush_s)
            self.report = self.making.report
            self._count(self.making.settled)

    def _ingest(self, work: IngestUnit) -> None:
        with self._timed(), _recorded(self.report):
            ingesting = Ingesting(work, self.worker.files, self.worker.workspace, self.worker.flush_s, self.report)
            self._count(ingesting.settled)
            ingesting.read(lambda computed, failed: self._count(computed, computed, failed))
            ingesting.commit()

    def advance(self, items: Sequence[Any], nodes: Nodes) -> None:
        making = self.making
        if making is None or self.report.error is not None:
            return
        before, failed = making.tally.done, making.tally.failed
        with self._timed(), _recorded(self.report):
            making.advance(items, nodes, lambda: self.worker.loaded(making.work))
        computed = making.tally.done - before
        self._count(computed, computed, making.tally.failed - failed)

    def commit(self) -> None:
        if self.making is not None and self.report.error is None:
            with self._timed(), _recorded(self.report):
                self.making.commit()

    def _count(self, done: int, computed: int = 0, failed: int = 0) -> None:
        self.progress(self.work.producer.name, done, computed, failed)

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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit of a library that loads its model, too
        report.status = "failed"
        report.error = f"{report.unit}: {told(error)}"
        report.broken = isinstance(error, AnnotatorBroken)
        report.device_lost = device_lost(error)
        report.unseen = error.keys if isinstance(error, Unseen) else ()
        report.final = isinstance(error, GraphError) or getattr(error, "errno", None) in FULL
