"""Reports of the runs of a graph, and the versions of its kinds."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from pydantic import ValidationError

from graphbuild.contracts import RunReport
from graphbuild.errors import GraphError
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import lineages, read_lineage

MOST_RUNS = 30


def reports(files: Files, most: int = MOST_RUNS) -> list[RunReport]:
    """The newest reports, the newest first; those of another release are left out."""
    found = []
    for run in reversed(files.names("runs")[-most:]):
        if files.exists(name := f"runs/{run}/report.json"):
            try:
                found.append(RunReport.model_validate_json(files.read(name)))
            except ValidationError:
                continue  # a report is no part of the format
    return found


def pace(found: list[RunReport]) -> dict[str, float]:
    """Annotator -> seconds of its own work a node."""
    seconds: dict[str, float] = defaultdict(float)
    rows: Counter[str] = Counter()
    for report in found:
        for name, did in report.annotators.items():
            seconds[name] += did.annotate_seconds
            rows[name] += did.ok + did.skipped + did.failed - did.reused
    return {name: seconds[name] / count for name, count in rows.items() if count > 0 and seconds[name] > 0}


class Version(NamedTuple):
    """A version of a kind: what made it, with which parameters, and whether it serves the kind."""

    annotator: str
    version: str
    params: dict[str, Any]
    model: str | None
    live: bool


def versions(graph: Graph) -> dict[str, list[Version]]:
    """Kind -> its versions that have commits, the live one first."""
    known = set(lineages(graph.fs))
    found: dict[str, list[Version]] = defaultdict(list)
    for annotator, version in graph.producers():
        if version not in known:
            raise GraphError(f"{graph.url} has no lineage document of {annotator} {version}; see graphbuild verify")
        lineage = read_lineage(graph.fs, version)
        for kind in lineage.codec:
            live = graph.head.get(kind)
            is_live = live is not None and (live.annotator, live.version) == (annotator, version)
            found[kind].append(Version(annotator, version, lineage.params, lineage.model, is_live))
    return {
        kind: sorted(made, key=lambda each: (not each.live, each.annotator, each.version))
        for kind, made in sorted(found.items())
    }
