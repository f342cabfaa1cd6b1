"""What a run shows while it works, and what it leaves behind: progress and `runs/<run_id>/`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from graphbuild.contracts import AnnotatorReport
from graphbuild.engine.records import Job, UnitReport
from graphbuild.hashing import canonical_json
from graphbuild.store.files import Files

LINE_SECONDS = 10.0


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
    """One line per finished unit in `runs/<run_id>/events.jsonl`, and one per failed row with its traceback in
    `failures.jsonl`: times and tracebacks stay out of the parts."""
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
        for failure in report.failures:
            line = {"unit": str(report.unit), **failure._asdict()}
            files.append(f"runs/{run_id}/failures.jsonl", json.dumps(line))  # ASCII: keys may be no UTF-8


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
