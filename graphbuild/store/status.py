"""How far a graph is, from commit footers alone, but for scores, which are a column of the edges."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from graphbuild.contracts import Status, StatusDocument
from graphbuild.store.conditions import SCORE
from graphbuild.store.edges import EdgeRows, Scores
from graphbuild.store.graph import Graph

BINS = 10
_UNIT = re.compile("edges/annotator=([^/]+)/version=([^/]+)/")
_ROWS = re.compile(r"-r(\d+)-[0-9a-f]{16}\.arrow$")
_FAILED = ("item_ix", "kind", "variant", "reason", "detail")


def status_of(graph: Graph) -> StatusDocument:
    """Counts per live kind, units done and wanted, reasons, and what is being built beside the live versions."""
    producers = sorted({(live.annotator, live.version) for live in graph.head.values()})
    commits = [commit for producer in producers for commit in graph.unit_commits(*producer)]
    wanted = _shards(graph)
    return StatusDocument(
        graph=graph.url,
        items=sum(shard.stop - shard.start for shard in graph.shards),
        excluded=len(graph.excluded_items),
        saved=_saved(graph),
        nbytes={kind: _nbytes(graph, kind) for kind in sorted(graph.head)},
        kinds={kind: _counts(graph, kind) for kind in sorted(graph.head)},
        units={"done": len(commits), "wanted": len(producers) * len(wanted)},
        reasons={kind: reasons for kind in sorted(graph.head) if (reasons := _reasons(graph, kind))},
        live=dict(sorted(graph.head.items())),
        not_live=sorted(f"{a} {v}" for a, v in graph.producers() if (a, v) not in producers),
        retriable=sum(commit.document.retriable_rows for commit in commits),
        snapshot=graph.digest,
        params={f"{a} {v}": graph.unit_commits(a, v)[0].document.lineage.params for a, v in graph.producers()},
        scores={kind: histogram(graph.scores(kind)) for kind in sorted(graph.head) if f".{SCORE}" in kind},
        gaps=[
            f"{annotator} {version} shard-{shard:05d}"
            for annotator, version in producers
            for shard in sorted(wanted - {c.ref.shard for c in graph.unit_commits(annotator, version)})
        ],
    )


def histogram(scores: Scores) -> list[int]:
    """How many of these are from 0 to 0.1, from 0.1 to 0.2, ..., from 0.9 to 1."""
    known = scores[~np.isnan(scores)]
    return np.histogram(known, BINS, (0.0, 1.0))[0].tolist()  # type: ignore[no-any-return]


def _saved(graph: Graph) -> dict[str, int]:
    """Rows that units under way have saved, by annotator and version; a row that was computed twice counts twice."""
    saved: Counter[str] = Counter()
    for folder in graph.fs.names("_staging"):
        try:
            unit = _UNIT.match(json.loads(graph.fs.read(f"_staging/{folder}/unit.json"))["commit"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            continue
        if unit is not None:
            rows = sum(int(m[1]) for name in graph.fs.names(f"_staging/{folder}") if (m := _ROWS.search(name)))
            saved[f"{unit[1]} {unit[2]}"] += rows
    return dict(sorted((+saved).items()))


def _shards(graph: Graph) -> set[int]:
    """Numbers of the shards that there are, and of those that are missing between them."""
    items = (name.removesuffix(".parquet").split("-")[1:2] for name in graph.fs.names("items"))
    found = {int(number) for numbers in items for number in numbers if number.isdecimal()} | {
        shard.index for shard in graph.shards
    }
    return set(range(max(found, default=-1) + 1))


def _counts(graph: Graph, kind: str) -> dict[Status, int]:
    counts: dict[Status, int] = {"ok": 0, "skipped": 0, "failed": 0}
    for commit in graph.commits(kind):
        for status, count in commit.document.counts[kind].items():
            counts[status] += count
    return counts


def _nbytes(graph: Graph, kind: str) -> int:
    return sum(p.nbytes for commit in graph.commits(kind) for p in commit.document.parts if p.kind == kind)


def _reasons(graph: Graph, kind: str) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for commit in graph.commits(kind):
        reasons.update(commit.document.reasons[kind])
    return dict(sorted(reasons.items()))


def failed_rows(graph: Graph, kind: str | None = None, reason: str | None = None) -> list[dict[str, Any]]:
    """The failed rows of live versions, of one kind or reason if given, with the keys of their items.

    Raises:
        GraphError: the graph has no such kind.
    """
    keys = dict(zip(*graph.items().select(["item_ix", "key"]).to_pydict().values(), strict=True))
    rows = []
    for name in [kind] if kind else sorted(graph.head):
        live = graph.live(name)
        for commit in graph.commits(name):
            if any(reason in (None, told.partition(":")[2]) for told in commit.document.reasons[name]):
                rows += [
                    {
                        "key": keys[row.item_ix],
                        **{column: getattr(row, column) for column in _FAILED},
                        "annotator": live.annotator,
                        "version": live.version,
                    }
                    for row in EdgeRows(graph.fs, commit).outcomes()
                    if row.kind == name and row.status == "failed" and reason in (None, row.reason)
                ]
    return rows
