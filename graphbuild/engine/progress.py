"""What a run shows while it works, and what it leaves behind: progress, a table, `runs/<run_id>/`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from graphbuild.contracts import AnnotatorReport, RunReport, Status, StatusDocument
from graphbuild.engine.plan import Plan
from graphbuild.engine.records import UnitReport
from graphbuild.engine.worker import Job
from graphbuild.hashing import canonical_json
from graphbuild.store.files import Files

LINE_SECONDS = 10.0
OUTCOMES: tuple[Status, ...] = ("ok", "skipped", "failed")


class Progress:
    """Rows done, failures, speed and time left: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.done = self.failed = 0
        self._started = self._shown = time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("nodes", total=total, note="")

    def __call__(self, done: int, failed: int) -> None:
        self.done += done
        self.failed += failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.console.print(f"{self.done}/{self.total} nodes, {self._note()}, {self._left()} left", highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _rate(self) -> float:
        return self.done / max(1e-9, time.monotonic() - self._started)

    def _note(self) -> str:
        return f"{self._rate():.1f}/s, {self.failed} failed"

    def _left(self) -> str:
        seconds = int((self.total - self.done) / self._rate()) if self.done else 0
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def write_event(files: Files, run_id: str, job: Job, reports: Sequence[UnitReport]) -> None:
    """One line per finished unit in `runs/<run_id>/events.jsonl`: times and errors stay out of the parts."""
    for report in reports:
        event = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "unit": str(report.unit),
            "revision": report.revision,
            "status": report.status,
            "seconds": round(report.seconds, 3),
            "computed": report.computed,
            "error": report.error,
        }
        files.append(f"runs/{run_id}/events.jsonl", canonical_json(event))


def by_annotator(reports: Sequence[UnitReport]) -> dict[str, AnnotatorReport]:
    """Totals per annotator, in the order they first finished."""
    totals: dict[str, AnnotatorReport] = {}
    for report in reports:
        old = totals.get(report.unit.annotator, AnnotatorReport())
        reasons = dict(old.reasons)
        for reason, count in report.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        totals[report.unit.annotator] = AnnotatorReport(
            units=old.units + 1,
            ok=old.ok + report.counts.get("ok", 0),
            skipped=old.skipped + report.counts.get("skipped", 0),
            failed=old.failed + report.counts.get("failed", 0),
            reused=old.reused + report.reused,
            reasons=reasons,
            seconds=old.seconds + report.seconds,
            annotate_seconds=old.annotate_seconds + report.annotate_seconds,
        )
    return totals


def report_table(report: RunReport) -> Table:
    """The run as a table for people."""
    table = Table(title=f"{report.graph}: {report.units_done} of {report.units_wanted} units committed")
    for column in ("annotator", "units", "ok", "skipped", "failed", "nodes/s per worker", "reasons"):
        table.add_column(column, justify="left" if column in ("annotator", "reasons") else "right")
    for name, a in report.annotators.items():
        speed = (a.ok + a.skipped + a.failed - a.reused) / a.seconds if a.seconds else 0.0
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(a.reasons.items()))
        table.add_row(name, *(str(n) for n in (a.units, a.ok, a.skipped, a.failed)), f"{speed:.1f}", reasons)
    return table


def plan_table(plan: Plan, where: Path) -> Table:
    """What a run would compute, and why."""
    table = Table(title=f"{where}: {len(plan.units)} of {plan.wanted} units to compute, {plan.num_items} items")
    for column in ("annotator", "units", "why"):
        table.add_column(column, justify="right" if column == "units" else "left")
    for (name, why), units in plan.reasons().items():
        table.add_row(name, str(units), why)
    return table


def status_table(status: StatusDocument) -> Table:
    """Nodes by kind and outcome."""
    done, wanted = status.units["done"], status.units["wanted"]
    table = Table(title=f"{status.graph}: {status.items} items, {done} of {wanted} units")
    for column in ("kind", "ok", "skipped", "failed", "annotator", "reasons"):
        table.add_column(column, justify="right" if column in ("ok", "skipped", "failed") else "left")
    for kind, counts in status.kinds.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in status.reasons.get(kind, {}).items())
        numbers = (str(counts[outcome]) for outcome in OUTCOMES)
        table.add_row(kind, *numbers, f"{status.live[kind].annotator} {status.live[kind].version}", reasons)
    return table
