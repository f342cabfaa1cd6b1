"""Erasing excluded items from a graph: units that hold nodes of them get a revision without those nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter

from graphbuild.contracts import CommitRef, Outcome, Shard
from graphbuild.engine.commit import publish_unit
from graphbuild.engine.rows import read_items
from graphbuild.store.commits import Commit, read_commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.erased import read_by
from graphbuild.store.graph import Graph
from graphbuild.store.parts import commit_name
from graphbuild.store.workspace import Workspace

EXCLUDED, PARENT_SKIPPED = "excluded", "parent_skipped"
Producer = tuple[str, str]
"""(annotator, version)."""

Node = tuple[int, str, int, str]
"""(item_ix, kind, variant, version)."""


@dataclass
class Erasure:
    """One unit with nodes of excluded items, and how many bytes of each kind these are in its newest revision."""

    newest: Commit
    shard: Shard
    nodes: Counter[str] = field(default_factory=Counter)
    nbytes: Counter[str] = field(default_factory=Counter)


class Erasing:
    """The units of a graph that hold nodes of its excluded items, in any revision whose parts are there.

    Args:
        commits: of every version that stays: shard -> all revisions.
    """

    def __init__(self, graph: Graph, commits: Mapping[Producer, Mapping[int, Sequence[Commit]]]) -> None:
        self.files, self.graph, self.commits = graph.fs, graph, commits
        self.excluded = frozenset(graph.excluded_items)
        self.shards = {graph.shard_of(item_ix).index for item_ix in self.excluded}
        self._erased: set[Node] = set()
        self.units = list(self._units())

    def _units(self) -> Iterator[Erasure]:
        renewed: set[tuple[str, str, int]] = set()
        for producer in self._parents_first():
            for shard in sorted(self.shards & self.commits[producer].keys()):
                revisions = self.commits[producer][shard]
                unit = Erasure(revisions[-1], revisions[-1].document.unit.shard)
                dirty = self._note(unit, EdgeRows(self.files, revisions[-1]))
                dirty |= any(map(self._holds, readable(revisions)[:-1]))
                refs = {(ref.annotator, ref.version, ref.shard) for ref in unit.newest.document.parents}
                if dirty or refs & renewed:
                    renewed.add((*producer, shard))
                    yield unit

    def _note(self, unit: Erasure, rows: EdgeRows) -> bool:
        """Find the nodes of a unit that go; whether any row changes."""
        changed = False
        version = unit.newest.document.unit.version
        for number, row in enumerate(rows.outcomes()):
            changed |= self._without(row, version) != row
            if row.status == "ok" and self._goes(row):
                unit.nodes[row.kind] += 1
                unit.nbytes[row.kind] += rows.place(number).nbytes
        return changed

    def _holds(self, commit: Commit) -> bool:
        rows = EdgeRows(self.files, commit).outcomes()
        return any(row.status == "ok" and self._goes(row) for row in rows)

    def _parents_first(self) -> list[Producer]:
        of = {version: (annotator, version) for annotator, version in self.commits}
        graph = {}
        for annotator, version in sorted(self.commits):
            newest = next(iter(self.commits[annotator, version].values()), None)
            parents = newest[-1].document.lineage.parents.values() if newest else ()
            graph[annotator, version] = [of[parent] for parent in parents if parent in of]
        return sorted(TopologicalSorter(graph).static_order(), key=lambda producer: not _is_source(producer))

    # ---- rows ------------------------------------------------------------------------------------------------

    def _goes(self, row: Outcome) -> bool:
        """Of an excluded item, or made from a node of one."""
        parents = ((p.item_ix, p.kind, p.variant, p.version) for p in row.parents)
        return row.item_ix in self.excluded or any(parent in self._erased for parent in parents)

    def _without(self, row: Outcome, version: str) -> Outcome:
        """What becomes of a row: just what a run plans for it, so that none computes it again."""
        if not self._goes(row):
            return row
        self._erased.add((*row.key, version))
        parents = tuple(
            p._replace(content_hash=None)  # type: ignore[arg-type]
            if (p.item_ix, p.kind, p.variant, p.version) in self._erased
            else p
            for p in row.parents
        )
        if row.status == "skipped":
            return replace(row, parents=parents)
        reason = PARENT_SKIPPED if parents != row.parents else EXCLUDED
        return Outcome(
            row.item_ix, row.item_id, row.kind, row.variant, "skipped", reason, parents=parents, seed=row.seed
        )

    # ---- writing ---------------------------------------------------------------------------------------------

    def erase(self, unit: Erasure, workspace: Workspace) -> None:
        """Publish the revision of a unit without what goes. Parents come before their children."""
        previous = EdgeRows(self.files, unit.newest)
        document = unit.newest.document
        rows = [self._without(row, document.unit.version) for row in previous.outcomes()]
        ids = self._ids(unit.shard)
        for row in rows:
            row.item_id = ids[row.item_ix]
        facts = {
            "revision": document.revision + 1,
            "erases": document.revision,
            "parents": [self._ref(ref) for ref in document.parents],
        }
        publish_unit(
            self.files,
            workspace,
            rows=rows,
            previous=previous,
            document=document.model_copy(update=facts),
            renewed=True,
        )

    def _ref(self, ref: CommitRef) -> CommitRef:
        """The commit that repeats a parent's without what went."""
        erases: dict[int, int | None] = {}
        number = ref.revision + 1
        while self.files.exists(name := commit_name(ref.annotator, ref.version, ref.shard, number)):
            erases[number] = read_commit(self.files, name).document.erases
            number += 1
        now = read_by(ref.revision, erases) or ref.revision
        return read_commit(self.files, commit_name(ref.annotator, ref.version, ref.shard, now)).ref

    def _ids(self, shard: Shard) -> dict[int, str]:
        part = next(c.document.items for c in self.graph.source_commits if c.ref.shard == shard.index)
        assert part is not None, "a source without items"
        return {item.item_ix: item.item_id for item in read_items(self.files, part.name, ())}


def readable(revisions: Sequence[Commit]) -> Sequence[Commit]:
    """Those whose parts are kept: from the last that erased something on."""
    erasing = [number for number, commit in enumerate(revisions) if commit.document.erases is not None]
    return revisions[max(erasing, default=0) :]


def _is_source(producer: Producer) -> bool:
    return producer[0].startswith("source:")
