"""Is a graph what its documents and commits say? Footers and sizes quickly, every byte on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel

from graphbuild.contracts import NODES, CommitRef, GraphDocument, LineageDocument, PartRef
from graphbuild.errors import GraphError
from graphbuild.hashing import version_of
from graphbuild.store.commits import Commit, read_commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.exclusions import EXCLUSIONS
from graphbuild.store.files import Files, files_at
from graphbuild.store.graph import read_node
from graphbuild.store.heads import (
    Head,
    Snapshot,
    committed,
    head_numbers,
    head_of,
    lineages,
    read_document,
    read_json,
    read_lineage,
    read_snapshot,
    snapshots,
)
from graphbuild.store.parts import commit_name, items_name, read_footer, read_items_shard, read_table, rows_digest

Level = Literal["quick", "full"]
Place = tuple[str, str, int, int]
"""(annotator, version, shard, revision)."""


@dataclass
class Verdict:
    """`problems` name file, row and item, `damaged` the files; empty for a sound graph. `nodes` is how many values were
    hashed."""

    commits: int = 0
    parts: int = 0
    nodes: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def verify(
    url: str | os.PathLike[str], level: Level = "quick", progress: Callable[[Commit], None] | None = None
) -> Verdict:
    """Check everything a graph consists of: documents, every revision of every unit of all versions, snapshots.

    Args:
        level: `quick` reads documents, footers and sizes; `full` also reads every part, checks its checksum and each
            node's hash.
        progress: called after each commit.

    Raises:
        GraphError: there is no graph.
    """
    files = files_at(url)
    if not {"graph.json", "edges", "heads", "lineage"} & set(files.names(".")):
        read_document(files)  # raises
    checking = _Checking(files, level)
    checking.lineages()
    checking.commits(progress)
    checking.document()
    checking.heads()
    checking.items()
    checking.snapshots()
    checking.reports()
    checking.exclusions()
    return checking.verdict


class _Report(BaseModel):
    """The one thing that the report of a run, of whatever release, is asked for."""

    snapshot: str | None = None


class _Checking:
    def __init__(self, files: Files, level: Level) -> None:
        self.files, self.level, self.verdict = files, level, Verdict()
        self._lineages: dict[str, LineageDocument] = {}
        self._commits: dict[Place, Commit] = {}
        self._heads: list[Head] = []
        self._parts: dict[str, PartRef | None] = {}

    def say(self, name: str, problem: str) -> None:
        self.verdict.problems.append(f"{name}: {problem}")
        if name not in self.verdict.damaged:
            self.verdict.damaged.append(name)

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """What cannot be read is a problem of the file it is in."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.say(name, str(error).removeprefix(f"{self.files.url}/{name}: "))

    # ---- documents -------------------------------------------------------------------------------------------

    def document(self) -> None:
        with self.named("graph.json"):
            document = read_document(self.files)
            for commit in self._commits.values():
                if commit.document.unit.annotator.startswith("source:"):
                    self._source(document, commit)
                    return

    def _source(self, document: GraphDocument, commit: Commit) -> None:
        unit, params = commit.document.unit, commit.document.lineage.params
        if unit.annotator != f"source:{document.source.name}" or params != document.source.params:
            self.say(
                "graph.json",
                f"its source is {document.source.name} {document.source.params}, but the items were made by "
                f"{unit.annotator} {params}",
            )

    def lineages(self) -> None:
        with self.named("lineage"):
            for version in lineages(self.files):
                name = f"lineage/{version}.json"
                with self.named(name):
                    lineage = read_lineage(self.files, version)
                    if version_of(lineage) == version:
                        self._lineages[version] = lineage
                    else:
                        self.say(name, f"its content hashes to {version_of(lineage)}")

    def heads(self) -> None:
        with self.named("heads"):
            numbers = head_numbers(self.files)
            for missing in sorted(set(range(1, max(numbers, default=0))) - set(numbers)):
                self.say(f"heads/{missing:08d}.json", "missing; later ones are there")
            for number in sorted(numbers):
                with self.named(f"heads/{number:08d}.json"):
                    self._heads.append(head_of(self.files, number))
                    self._head(f"heads/{number:08d}.json", self._heads[-1])
            for number, (before, head) in zip(sorted(numbers)[1:], pairwise(self._heads), strict=False):
                if lost := sorted(before.keys() - head.keys()):
                    self.say(f"heads/{number:08d}.json", f"{', '.join(lost)} had a version in the head before")
                elif before == head:
                    self.say(f"heads/{number:08d}.json", "changes nothing; it, or the one before, was altered")
        served = self._heads[-1] if self._heads else {}
        made = {kind for commit in self._commits.values() for kind in commit.document.variants}
        if lost := sorted(made - served.keys()):
            self.say("heads", f"{', '.join(lost)} is committed, but no version of it is live; the newest head is lost")

    def _head(self, name: str, head: Head) -> None:
        for kind, live in head.items():
            lineage = self._lineages.get(live.version)
            if lineage is None:
                self.say(f"lineage/{live.version}.json", f"missing or damaged; {name} names it for {kind}")
            elif lineage.annotator != live.annotator or kind not in lineage.codec:
                makes = ", ".join(lineage.codec)
                self.say(name, f"{kind} is of {live.annotator} {live.version}, which is {lineage.annotator}: {makes}")

    # ---- commits and parts -----------------------------------------------------------------------------------

    def commits(self, progress: Callable[[Commit], None] | None) -> None:
        with self.named("edges"):
            for (annotator, version), shards in committed(self.files).items():
                for shard, revisions in shards.items():
                    for revision in range(max(revisions) + 1):
                        place = annotator, version, shard, revision
                        self._commit(place, newest=revision == max(revisions))
                        if progress is not None and place in self._commits:
                            progress(self._commits[place])
        for commit in self._commits.values():
            for ref in commit.document.parents:
                self._ref(ref, commit.name)

    def _commit(self, place: Place, newest: bool) -> None:
        name = commit_name(*place)
        with self.named(name):
            commit = read_commit(self.files, name)
            self._commits[place] = commit
            self.verdict.commits += 1
            for problem in self._contradictions(commit):
                self.say(name, problem)
            for part in [*commit.document.parts, *([commit.document.items] if commit.document.items else [])]:
                self._part(part)
            if self.level == "full":
                self._rows(commit, newest)

    def _contradictions(self, commit: Commit) -> Iterator[str]:
        document = commit.document
        if (version := version_of(document.lineage)) != document.unit.version:
            yield f"its lineage hashes to {version}, not {document.unit.version}"
        elif document.unit.version not in self._lineages:
            self.say(f"lineage/{document.unit.version}.json", f"missing or damaged; {commit.name} is of that version")
        for kind, counts in document.counts.items():
            rows = sum(part.rows for part in document.parts if part.kind == kind)
            if rows != counts.get("ok", 0):
                yield f"{counts.get('ok', 0)} {kind} rows are ok, but its parts hold {rows}"
        if document.unit.annotator.startswith("source:") and document.items is None:
            yield "names no items"

    def _ref(self, ref: CommitRef, of: str) -> None:
        """A commit that something names has to be there, and to be the one that was named."""
        name = commit_name(ref.annotator, ref.version, ref.shard, ref.revision)
        found = self._commits.get((ref.annotator, ref.version, ref.shard, ref.revision))
        if found is None and name not in self.verdict.damaged:
            self.say(name, f"missing; {of} was made from it")
        elif found is not None and found.ref != ref:
            self.say(name, f"its footer hashes to {found.ref.checksum}, {of} says {ref.checksum}")

    def _part(self, part: PartRef) -> None:
        if part.name in self._parts:
            if self._parts[part.name] not in (None, part):
                self.say(part.name, "two commits say different things of it")
            return
        self.verdict.parts += 1
        self._parts[part.name] = None  # until it is read
        with self.named(part.name):
            metadata, _ = read_footer(self.files, part.name)
            if (nbytes := self.files.size(part.name)) != part.nbytes:
                self.say(part.name, f"{nbytes} bytes, its commit says {part.nbytes}")
            if metadata.num_rows != part.rows:
                self.say(part.name, f"{metadata.num_rows} rows, its commit says {part.rows}")
            if part.kind != "items" and not metadata.schema.to_arrow_schema().equals(NODES):
                self.say(part.name, "another schema than nodes of format 1")
            if self.level == "full" and (found := self.files.checksum(part.name)) != part.checksum:
                self.say(part.name, f"its bytes hash to {found}, its commit says {part.checksum}")
            self._parts[part.name] = part

    def _rows(self, commit: Commit, newest: bool) -> None:
        rows = EdgeRows(self.files, commit)
        if rows_digest(rows.table) != commit.document.rows_digest:
            self.say(commit.name, "its rows are not those its footer pins")
        if not newest:
            return  # what later revisions kept is checked with them, the rest by the checksums of parts
        for row, status in enumerate(rows.table.column("status").to_pylist()):
            part = str(rows.value(row, "part"))
            if status == "ok" and self._parts.get(part) is not None:
                self.verdict.nodes += 1
                try:
                    read_node(self.files, rows, row)
                except (GraphError, OSError) as error:
                    self.say(part, f"row {row}, item {rows.value(row, 'item_ix')}: {error}")

    def items(self) -> None:
        """Also those of a run under way, which no commit names yet."""
        with self.named("items"):
            for name in (f"items/{name}" for name in self.files.names("items")):
                if name not in self._parts:
                    with self.named(name):
                        read_items_shard(self.files, name)
                        if self.level == "full":
                            read_table(self.files, name)
            shards = sorted(
                {c.document.unit.shard.index: c.document.unit.shard for c in self._commits.values()}.items()
            )
            for (_, one), (_, other) in pairwise(shards):
                if one.stop > other.start:
                    self.say(items_name(other), f"starts at {other.start}, before the end of {one.label}")

    # ---- what remembers earlier states -----------------------------------------------------------------------

    def snapshots(self) -> None:
        found: dict[str, Snapshot] = {}
        with self.named("snapshots"):
            for digest in snapshots(self.files):
                with self.named(f"snapshots/{digest}.parquet"):
                    found[digest] = read_snapshot(self.files, digest)
        for digest, snapshot in found.items():
            for ref in snapshot.refs:
                self._ref(ref, f"snapshot {digest}")
            if snapshot.head and snapshot.head not in self._heads:
                self.say("heads", f"none is that of snapshot {digest}: a head is lost or was altered")
        self._order(found)

    def _order(self, found: Mapping[str, Snapshot]) -> None:
        """Later snapshots have later heads, unless one was promoted again."""
        ages = {digest: {(r.annotator, r.version, r.shard): r.revision for r in s.refs} for digest, s in found.items()}
        for one, other in pairwise(sorted(ages, key=lambda digest: sum(1 + r for r in ages[digest].values()))):
            older = ages[one] != ages[other] and all(ages[other].get(unit, -1) >= r for unit, r in ages[one].items())
            at, then = ([n for n, head in enumerate(self._heads) if head == found[d].head] for d in (one, other))
            if older and at and then and at[0] > then[-1]:
                self.say("heads", f"that of snapshot {one} comes after that of the later {other}: their order is lost")

    def reports(self) -> None:
        with self.named("runs"):
            for run in self.files.names("runs"):
                name = f"runs/{run}/report.json"
                if self.files.exists(name):
                    with self.named(name):
                        digest = read_json(self.files, name, _Report.model_validate_json).snapshot
                        if digest and not self.files.exists(f"snapshots/{digest}.parquet"):
                            self.say(f"snapshots/{digest}.parquet", f"missing; {name} names it")

    def exclusions(self) -> None:
        with self.named("exclusions"):
            names = [name for name in self.files.names("exclusions") if name.endswith(".json")]
            for number, name in enumerate(names, 1):
                if name != f"{number:08d}.json":
                    self.say(f"exclusions/{number:08d}.json", f"missing, {name} follows")
                    return
                with self.named(f"exclusions/{name}"):
                    read_json(self.files, f"exclusions/{name}", EXCLUSIONS.validate_json)
