"""Progress of a run on the terminal, and its log in `runs/<run_id>/`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from graphbuild.contracts import AnnotatorReport
from graphbuild.engine.records import Job, UnitReport
from graphbuild.hashing import canonical_json
from graphbuild.models.device import GpuUse, gpu_use
from graphbuild.store.files import Files

LINE_SECONDS = 10.0


@dataclass
class _Rows:
    """Rows of one annotator, and when the first of them started."""

    total: int
    done: int = 0
    computed: int = 0
    failed: int = 0
    nbytes: int = 0
    since: float | None = None

    def left(self, now: float) -> float | None:
        """Seconds that its remaining rows take at the rate of those computed in this run; None before the first."""
        if self.done >= self.total:
            return 0.0
        if self.since is None or not self.computed:
            return None
        return (self.total - self.done) * (now - self.since) / self.computed


class Progress:
    """Rows done, failures, speed, bytes, and time left for each annotator: bars on a terminal, a plain line now and
    then elsewhere.

    Args:
        totals: annotator -> rows that the run plans for it.
        as_json: lines are JSON, also on a terminal.

    Attributes:
        gpus: of workers in other processes, by node and number, as they were when the worker was last asked.
    """

    def __init__(self, console: Console, totals: Mapping[str, int], *, as_json: bool = False) -> None:
        self.console, self._as_json = console, as_json
        self.rows = {name: _Rows(total) for name, total in totals.items()}
        self.gpus: dict[str, GpuUse] = {}
        self._started = self._shown = time.monotonic()
        self._bars: Bar | None = None
        if console.is_terminal and not as_json:
            self._bars = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._bars.start()
            self._tasks = {
                name: self._bars.add_task(name, total=rows.total, note="", visible=False)
                for name, rows in self.rows.items()
            }

    def __call__(self, name: str, done: int, computed: int, failed: int) -> None:
        """Add finished rows of an annotator: all, those computed in this run, failed ones. Zeros mark its start."""
        rows, now = self.rows[name], time.monotonic()
        rows.since = now if rows.since is None else rows.since
        rows.done = min(rows.total, rows.done + done)  # a unit that is tried again counts once
        rows.computed += computed
        rows.failed += failed
        if self._bars is not None:
            note, visible = f"{_clock(rows.left(now))} left, {rows.failed} failed", rows.done < rows.total
            note += f", {decimal(rows.nbytes)}" if rows.nbytes else ""
            self._bars.update(self._tasks[name], completed=rows.done, note=note, visible=visible)
        elif now - self._shown >= LINE_SECONDS:
            self._shown = now
            line = json.dumps(self.document(now)) if self._as_json else self.line(now)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stored(self, reports: Iterable[UnitReport]) -> None:
        """Add the bytes of finished units."""
        for report in reports:
            self.rows[report.unit.annotator].nbytes += report.nbytes

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()

    def document(self, now: float) -> dict[str, Any]:
        """The same numbers for a dashboard: one object per annotator, with `seconds_left` null before its first row."""
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(now - self._started, 1),
            "annotators": {
                name: {
                    "total": rows.total,
                    "done": rows.done,
                    "computed": rows.computed,
                    "failed": rows.failed,
                    "nbytes": rows.nbytes,
                    "per_second": round(rows.computed / max(1e-9, now - (rows.since or now)), 3),
                    "seconds_left": None if (left := rows.left(now)) is None else round(left, 1),
                }
                for name, rows in self.rows.items()
            },
            "gpus": {name: use._asdict() for name, use in self.gpu_use().items()},
        }

    def gpu_use(self) -> dict[str, GpuUse]:
        """`gpus`, or that of this process, if its work is done here."""
        own = None if self.gpus else gpu_use()
        return {"this machine": own} if own else self.gpus

    def line(self, now: float) -> str:
        """`1200/3600 nodes, 40.0/s, 0 failed, left: canny 0:00:10, sam2 0:12:00`."""
        done, total, computed, failed = (
            sum(getattr(rows, what) for rows in self.rows.values()) for what in ("done", "total", "computed", "failed")
        )
        left = (f"{name} {_clock(rows.left(now))}" for name, rows in self.rows.items() if rows.done < rows.total)
        rate = computed / max(1e-9, now - self._started)
        return f"{done}/{total} nodes, {rate:.1f}/s, {failed} failed, left: {', '.join(left) or 'the last commits'}"


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def write_event(files: Files, run_id: str, job: Job, reports: Sequence[UnitReport]) -> None:
    """One line per finished unit in `runs/<run_id>/events.jsonl`, and one per failed row with its traceback in
    `failures.jsonl`: times and tracebacks stay out of the parts."""
    files.append(f"runs/{run_id}/events.jsonl", [canonical_json(_event(report)) for report in reports])
    failures = [{"unit": str(report.unit), **row._asdict()} for report in reports for row in report.failures]
    if failures:
        lines = [json.dumps(row) for row in failures]  # ASCII: keys may be no UTF-8
        files.append(f"runs/{run_id}/failures.jsonl", lines)


def _event(report: UnitReport) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "unit": str(report.unit),
        "revision": report.revision,
        "status": report.status,
        "seconds": round(report.seconds, 3),
        "computed": report.computed,
        "error": report.error,
    }


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
            nbytes=old.nbytes + report.nbytes,
            seconds=old.seconds + report.seconds,
            annotate_seconds=old.annotate_seconds + report.annotate_seconds,
        )
    return totals
