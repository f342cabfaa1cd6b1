"""How many nodes of each unit came out how: counts by kind, status and reason, from the footers of live commits.

One footer is read for each unit and kept in a few numbers, so that counts, and which units hold the failures of one
reason, cost the same for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.contracts import FINAL_REASONS, CommitDocument, Live, Status
from graphbuild.store.cache import Arrays, Form, cached
from graphbuild.store.commits import read_commits
from graphbuild.store.graph import Graph

STATUSES: tuple[Status, ...] = ("ok", "skipped", "failed")
_SCHEMA = pa.schema(
    [("unit", pa.string()), ("kind", pa.string()), ("status", pa.string()), ("reason", pa.string()),
     ("count", pa.int64()), ("nbytes", pa.int64())]
)  # fmt: skip
_FORMS: dict[str, Form] = {"outcomes": (np.uint8, (None,))}
_AT_ONCE = 256


@dataclass(frozen=True)
class Reason:
    """Rows of one kind that have one outcome other than ok."""

    kind: str
    status: str
    reason: str
    count: int

    @property
    def retriable(self) -> bool:
        """Whether `graphbuild retry` may change it."""
        return self.status == "failed" and self.reason not in FINAL_REASONS


class Outcomes:
    """Counts of a graph's live nodes. `table` has one row per unit, kind, status and reason."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def counts(self) -> dict[str, dict[Status, int]]:
        """Kind -> status -> nodes, as `graphbuild status` counts them."""
        found: dict[str, dict[Status, int]] = {}
        for row in _summed(self.table, ["kind", "status"]):
            found.setdefault(row["kind"], dict.fromkeys(STATUSES, 0))[row["status"]] += row["count_sum"]
        return dict(sorted(found.items(), key=lambda each: (each[0] != "image", each[0])))

    def of_kinds(self, kinds: Sequence[str]) -> dict[Status, int] | None:
        """Status -> nodes of some kinds together; None where none of them has been planned."""
        found = [counts for kind, counts in self.counts().items() if kind in kinds]
        return {status: sum(counts[status] for counts in found) for status in STATUSES} if found else None

    def nbytes(self) -> dict[str, int]:
        """Kind -> bytes of its parts."""
        return {row["kind"]: row["nbytes_sum"] for row in _summed(self.table, ["kind"])}

    def reasons(self, status: Status = "failed") -> list[Reason]:
        """What went wrong, the commonest first."""
        rows = _summed(self.table.filter(pc.equal(self.table["status"], status)), ["kind", "reason"])
        found = [Reason(row["kind"], status, row["reason"], row["count_sum"]) for row in rows]
        return sorted(found, key=lambda each: (-each.count, each.kind, each.reason))

    def units(self, kind: str, status: str, reason: str) -> set[str]:
        """Names of the commits that have such rows; an empty status or reason is any."""
        chosen = pc.equal(self.table["kind"], kind)
        if status:
            chosen = pc.and_(chosen, pc.equal(self.table["status"], status))
        if reason:
            chosen = pc.and_(chosen, pc.equal(self.table["reason"], reason))
        return set(self.table.filter(chosen)["unit"].to_pylist())


def cached_outcomes(key: str, graph: Graph, before: Outcomes | None = None) -> Outcomes:
    """The outcomes of a graph, kept in the user's cache folder under `key`.

    Args:
        before: those of an earlier state of the graph: a commit never changes, so what it says is not read again.
    """

    def compute() -> Arrays:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _SCHEMA) as writer:
            writer.write_table(_read(graph, before))
        return {"outcomes": np.frombuffer(sink.getvalue(), np.uint8)}

    data = cached(key, "outcomes", _FORMS, compute, mapped=False)["outcomes"]
    try:
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
    except pa.ArrowException:  # a damaged cache
        return Outcomes(_read(graph, before))
    return Outcomes(table if table.schema.equals(_SCHEMA) else _read(graph, before))


def _read(graph: Graph, before: Outcomes | None) -> pa.Table:
    names = [name for live in set(graph.head.values()) for name in graph.unit_names(live.annotator, live.version)]
    known = set() if before is None else set(before.table["unit"].to_pylist())
    kept = [] if before is None else [before.table.filter(pc.is_in(before.table["unit"], pa.array(names, pa.string())))]
    rows = [row for name, document in _documents(graph, [n for n in names if n not in known])
            for row in _rows(graph, name, document)]  # fmt: skip
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    new = pa.table([pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    return pa.concat_tables([*kept, new]).combine_chunks()


def _documents(graph: Graph, names: Sequence[str]) -> Iterator[tuple[str, CommitDocument]]:
    for start in range(0, len(names), _AT_ONCE):
        yield from ((c.name, c.document) for c in read_commits(graph.fs, names[start : start + _AT_ONCE]))


def _rows(graph: Graph, name: str, document: CommitDocument) -> Iterator[tuple[str, str, str, str, int, int]]:
    live = Live(annotator=document.unit.annotator, version=document.unit.version)
    for kind in (kind for kind in document.variants if graph.head.get(kind) == live):
        nbytes = sum(part.nbytes for part in document.parts if part.kind == kind)
        yield name, kind, "ok", "", document.counts[kind].get("ok", 0), nbytes
        for outcome, count in document.reasons[kind].items():
            status, _, reason = outcome.partition(":")
            yield name, kind, status, reason, count, 0


def _summed(table: pa.Table, by: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.group_by(by).aggregate([("count", "sum"), ("nbytes", "sum")]).to_pylist()
    return rows
