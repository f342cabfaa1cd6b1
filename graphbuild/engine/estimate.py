"""Estimated time and bytes of a plan, from earlier runs of the same graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from graphbuild.contracts import AnnotatorReport, RunReport
from graphbuild.engine.plan import Plan
from graphbuild.store.commits import read_commit
from graphbuild.store.files import Files
from graphbuild.store.heads import Newest, newest_commits

MOST_RUNS = 20
MOST_COMMITS = 8
"""At most this many recent runs, and commits per annotator, are read."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of work summed over workers, seconds of the run with as many workers as before, bytes of new node parts.
    Annotators that have never run on the graph are `unknown` and not included."""

    work_seconds: float
    seconds: float
    nbytes: int
    unknown: tuple[str, ...]


def estimate(plan: Plan, files: Files) -> Estimate | None:
    """Extrapolate from the newest reports and commits of the graph; None if no planned annotator is among them."""
    reports = list(_reports(files))
    seconds: dict[str, float] = defaultdict(float)
    computed: Counter[str] = Counter()
    for report in reports:
        for name, did in report.annotators.items():
            seconds[name] += did.seconds
            computed[name] += _computed(did)
    known = {name: rows for name, rows in plan.rows().items() if computed[name] > 0}
    if not known:
        return None
    work = sum(rows * seconds[name] / computed[name] for name, rows in known.items())
    newest = newest_commits(files)
    workers = sum(seconds.values()) / max(1e-9, sum(report.seconds for report in reports))
    return Estimate(
        work_seconds=work,
        seconds=work / max(1e-9, workers),
        nbytes=round(sum(rows * _bytes_a_row(files, newest, name) for name, rows in known.items())),
        unknown=tuple(name for name in plan.rows() if name not in known),
    )


def pace_of(files: Files) -> dict[str, float]:
    """Annotator -> seconds of its own work for each row, in the newest runs of the graph."""
    seconds: dict[str, float] = defaultdict(float)
    computed: Counter[str] = Counter()
    for report in _reports(files):
        for name, did in report.annotators.items():
            seconds[name] += did.annotate_seconds
            computed[name] += _computed(did)
    return {name: seconds[name] / rows for name, rows in computed.items() if rows > 0}


def _computed(did: AnnotatorReport) -> int:
    return did.ok + did.skipped + did.failed - did.reused


def _reports(files: Files) -> Iterator[RunReport]:
    for run in files.names("runs")[-MOST_RUNS:]:
        name = f"runs/{run}/report.json"
        if files.exists(name):
            try:
                yield RunReport.model_validate_json(files.read(name))
            except ValidationError:
                continue  # of another release; a report is no part of the format


def _bytes_a_row(files: Files, newest: Newest, annotator: str) -> float:
    names = [name for (made_by, _), parts in newest.items() if made_by == annotator for name in parts]
    documents = [read_commit(files, name).document for name in names[-MOST_COMMITS:]]
    rows = sum(sum(counts.values()) for document in documents for counts in document.counts.values())
    return sum(part.nbytes for document in documents for part in document.parts) / max(1, rows)
