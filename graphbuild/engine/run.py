"""One run from plan to report: the library's `run`."""

from __future__ import annotations

import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator
from graphbuild.contracts import Live, RunReport
from graphbuild.engine.estimate import pace_of
from graphbuild.engine.executors.inline import remove_dead_runs, run_inline
from graphbuild.engine.executors.probe import requirements
from graphbuild.engine.metrics import served
from graphbuild.engine.plan import Plan, make_plan
from graphbuild.engine.preflight import refuse_client
from graphbuild.engine.progress import Progress, by_annotator, write_event
from graphbuild.engine.records import Job, UnitReport
from graphbuild.engine.schedule import Schedule
from graphbuild.engine.spool import CAREFUL_FLUSH_SECONDS, remove_finished
from graphbuild.engine.worker import Worker
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json
from graphbuild.sources.base import Source
from graphbuild.store.card import write_card
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import Head, change_head, read_document
from graphbuild.store.locations import files_at
from graphbuild.store.status import status_of
from graphbuild.store.workspace import Workspace

Executor = Literal["ray", "inline"]
FLUSH_SECONDS = 60.0
HEARTBEAT_SECONDS = 60.0
REPLANS = 10


def run(
    source: Source | None,
    annotators: Sequence[Annotator | str],
    out: str | os.PathLike[str],
    *,
    executor: Executor = "ray",
    limit: int | None = None,
    shard_size: int | None = None,
    accept_changed: bool = False,
    retry: bool = False,
    new_items: bool = True,
    reuse: str | os.PathLike[str] | None = None,
    address: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    wait_s: float | None = None,
    flush_s: float = FLUSH_SECONDS,
    console: Console | None = None,
    json_lines: bool = False,
    metrics_port: int | None = None,
) -> RunReport:
    """Build or continue a graph: only what is missing or outdated is computed.

    Args:
        source: where items come from; None works on the items the graph already has.
        annotators: instances, or names such as "canny".
        out: the graph folder.
        executor: "ray" uses every CPU of this machine, or the cluster at `address`; "inline" this process alone.
        limit: take only the first items of the source.
        shard_size: items per shard of a new graph; by default 1,024, fewer for small sources.
        accept_changed: add files whose bytes changed as new items instead of refusing.
        retry: compute failed rows that may succeed now again.
        new_items: False adds no items to the graph, whatever the source has.
        reuse: another graph, whose nodes are copied where the same would be computed: by the same annotator and
            version, from parents with the same content, for the same item.
        device: where annotators that want a GPU run; None: on GPUs if there is one, else on the CPU. "cuda" waits for a
            node with a GPU, as `wait_s` says.
        wait_s: seconds to wait for a node that can work for an annotator; None: 600 for one that was there and is gone,
            0 for one that never was.
        flush_s: seconds after which a long unit saves its finished rows.
        console: where progress goes; standard error by default.
        json_lines: progress as a line of JSON every ten seconds, instead of bars or text.
        metrics_port: serve progress for Prometheus at this port of 127.0.0.1, while the run lasts.

    Returns:
        what was done; `units_left` is empty if every wanted unit is committed.

    Raises:
        GraphError, ValueError: wrong usage, found before any work.
    """
    refuse_client(address)
    files = files_at(out)
    chosen = [resolve(a) if isinstance(a, str) else a for a in annotators]
    options: dict[str, Any] = {"limit": limit, "shard_size": shard_size, "accept_changed": accept_changed}
    options["new_items"] = new_items
    options["reuse"] = None if reuse is None else Graph.open(reuse).url
    options["here"] = address is None and "RAY_ADDRESS" not in os.environ
    first = make_plan(files, source, chosen, retry=retry, **options)
    where = {"address": address, "device": device, "wait_s": wait_s}
    run = _Run(files, executor, where, flush_s, console or Console(stderr=True))
    if not first.units and not first.replaces() and not files.writable():
        return run.report(first, Graph.open(files.url), source)  # finished, on a disk that cannot be written
    run.json_lines = json_lines
    with served(metrics_port, lambda: run.progress), run.workspace_open():
        run.prepare(first)
        for note in first.notes:
            run.say(note)
        plan = first
        for _ in range(REPLANS):
            if not plan.units or not run.execute(plan).replan:
                break
            plan = make_plan(files, source, chosen, retry=retry, **options)
        return run.finish(first, source)


_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")


class _Run:
    def __init__(
        self, files: Files, executor: Executor, where: dict[str, Any], flush_s: float, console: Console
    ) -> None:
        self.files, self.executor, self.where, self.flush_s, self.console = files, executor, where, flush_s, console
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.started, self._clock = datetime.now(UTC), time.perf_counter()
        self.reports: list[UnitReport] = []
        self.errors: list[str] = []
        self.left: list[str] = []
        self.went_live: dict[str, Live] = {}
        self.progress: Progress | None = None
        self.json_lines = False

    @contextmanager
    def workspace_open(self) -> Iterator[None]:
        dead, self.killed = remove_dead_runs(self.files)
        if dead:  # what ended that run may end this one
            self.flush_s = min(self.flush_s, CAREFUL_FLUSH_SECONDS)
        self.workspace = Workspace.create(self.files, self.run_id)
        self._say_others()
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            self.workspace.close()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the next beat may come through: a run is dead after ten that do not
                self.workspace.beat()

    def prepare(self, plan: Plan) -> None:
        """Publish what must be there before the first unit: graph.json, lineage documents, first heads."""
        text = canonical_json(plan.document.model_dump(mode="json")) + "\n"
        try:
            self.files.publish("graph.json", text.encode(), self.workspace)
        except AlreadyPublished:
            if read_document(self.files) != plan.document:
                raise GraphError(
                    f"{self.files.url}: another run has just made this graph otherwise; run again"
                ) from None
        for producer in plan.producers:
            lineage = canonical_json(producer.lineage.model_dump(mode="json")) + "\n"
            self.files.publish(f"lineage/{producer.version}.json", lineage.encode(), self.workspace)
        change_head(self.files, self.workspace, lambda head: {**plan.makes(), **head})

    def execute(self, plan: Plan) -> Schedule:
        pace = None if self.executor == "inline" else pace_of(self.files)  # one process gains nothing from parts
        self.schedule = schedule = Schedule(plan, self.killed, pace)
        self._said = 0
        self.progress = progress = Progress(self.console, plan.rows(), as_json=self.json_lines)
        worker_args = (self.files.url, self.workspace.name, self.flush_s, self.where["device"])
        try:
            if self.executor == "inline":
                run_inline(schedule, lambda: Worker(*worker_args), progress, self._finished)
            else:
                from graphbuild.engine.executors.ray import Setup, run_ray

                units = [planned.work for planned in plan.units]
                needs = requirements(self.files.url, self.workspace.name, sys.path, units)
                setup = Setup(needs=needs, flush_s=self.flush_s, **self.where)
                run_ray(schedule, setup, progress, self._finished, self._tell)
        finally:
            progress.close()
            self._say_errors()
            self.reports += schedule.reports
            self.errors += schedule.errors
            self.left = schedule.left
        return schedule

    def _tell(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def _finished(self, job: Job, reports: list[UnitReport]) -> None:
        write_event(self.files, self.run_id, job, reports)
        if self.progress is not None:
            self.progress.stored(reports)
        self._say_errors()

    def _say_errors(self) -> None:
        """Print new errors at once, not at the end of a long run."""
        for error in self.schedule.errors[self._said :]:
            self.say(error)
            if self.files.exists(name := f"runs/{self.run_id}/failures.jsonl"):
                self.say(f"tracebacks: {self.files.path(name)}")
        self._said = len(self.schedule.errors)

    def finish(self, plan: Plan, source: Source | None) -> RunReport:
        """Promote what is complete, clean up, and leave snapshot, card and report."""
        remove_finished(self.files)
        if not self.left:
            self._promote(plan)
        graph = Graph.open(self.files.url)
        report = self.report(plan, graph, source)
        graph.publish_snapshot(self.workspace)
        write_card(graph, self.workspace)
        if self.reports or self.errors:
            text = report.model_dump_json(indent=2) + "\n"
            self.files.replace(f"runs/{self.run_id}/report.json", text.encode(), self.workspace)
        return report

    def _promote(self, plan: Plan) -> None:
        """Replaced kinds and their rebuilt descendants go live together, in one head. A `promote` during the run, which
        is the later request, wins; of two runs, the one that ends last."""
        makes, before = plan.makes(), Head()

        def promoted(head: Head) -> Head:
            nonlocal before
            before, self.went_live = head, {} if plan.overruled_by(head) else plan.replaces()
            return {**head, **self.went_live}

        after = change_head(self.files, self.workspace, promoted)
        for kind in (kind for kind in makes if before[kind] not in (makes[kind], plan.head.get(kind))):
            other = f"{kind}: {before[kind].annotator} {before[kind].version} went live during this run and"
            stays, version = ("stays", makes[kind]) if after[kind] == before[kind] else ("is replaced", before[kind])
            self.say(f"{other} {stays}; the other way: graphbuild promote {self.files.url} {version.version}")
        if self.went_live:
            self._say_others()

    def _say_others(self) -> None:
        """Name runs that are at work on the same graph: of versions of one kind, the last run's goes live."""
        others = [name.partition("+")[0] for name in self.files.names("_tmp") if name != self.workspace.name]
        if runs := [name for name in others if _RUN_ID.fullmatch(name)]:
            self.say(f"also at work on this graph: {', '.join(runs)}; of versions of a kind, the last run's goes live")

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def report(self, plan: Plan, graph: Graph, source: Source | None) -> RunReport:
        seconds = time.perf_counter() - self._clock
        work = sum(report.seconds for report in self.reports)
        items = sum(shard.stop - shard.start for shard in {report.unit.shard for report in self.reports})
        status = status_of(graph)
        return RunReport(
            run_id=self.run_id,
            graph=self.files.url,
            command=sys.argv,
            source_args=_location_of(source),
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            executor=self.executor,
            annotators=by_annotator(self.reports),
            units_wanted=plan.wanted,
            units_done=plan.wanted - len(self.left),
            units_left=self.left,
            items_per_second=round(items / seconds, 3),
            annotator_share=round(sum(r.annotate_seconds for r in self.reports) / work, 4) if work else 0.0,
            errors=self.errors,
            went_live=self.went_live,
            failed=sum(counts["failed"] for counts in status.kinds.values()),
            retriable=status.retriable,
            snapshot=graph.digest,
        )


def _location_of(source: Source | None) -> dict[str, Any]:
    if source is None:
        return {}
    found = {f.name: getattr(source, f.name) for f in fields(source) if not f.metadata.get("output", True)}
    # A relative path means nothing to a later `retry` elsewhere; an address is left as it is.
    return {k: os.path.abspath(v) if isinstance(v, str) and os.path.exists(v) else v for k, v in found.items()}
