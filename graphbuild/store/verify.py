"""Is a graph what its documents and commits say? Footers and sizes quickly, every byte on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise

from pydantic import BaseModel

from graphbuild.contracts import CommitRef, GraphDocument, LineageDocument, PartRef
from graphbuild.hashing import checksum, version_of
from graphbuild.store.card import card_text, read_card
from graphbuild.store.commits import Commit
from graphbuild.store.erased import removed_commits
from graphbuild.store.exclusions import EXCLUSIONS
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import (
    Head,
    Snapshot,
    committed,
    foreign_names,
    head_numbers,
    head_of,
    lineages,
    read_document,
    read_json,
    read_lineage,
    read_snapshot,
    snapshot_bytes,
    snapshots,
)
from graphbuild.store.locations import files_at
from graphbuild.store.parallel import Mapper
from graphbuild.store.parts import commit_name, edges_folder, is_as_written, items_name, read_items_shard, read_table
from graphbuild.store.pins import Use, read_use, used
from graphbuild.store.verify_unit import Level, Problem, UnitFiles, UnitVerdict, check_unit, naming

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
    url: str | os.PathLike[str],
    level: Level = "quick",
    progress: Callable[[UnitVerdict], None] | None = None,
    mapped: Mapper = map,
) -> Verdict:
    """Check everything a graph consists of: documents, every revision of every unit of all versions, snapshots, card.

    Args:
        level: `quick` reads documents, footers and sizes; `full` also reads every part, checks its checksum and each
            node's hash.
        progress: called after each unit.
        mapped: applies the check of one unit to all, one after the other or, as that of `processes` does, side by side.

    Raises:
        GraphError: there is no graph.
    """
    files = files_at(url)
    if not {"graph.json", "edges", "heads", "lineage"} & set(files.names(".")):
        read_document(files)  # raises
    checking = _Checking(files, level)
    checking.names()
    checking.lineages()
    checking.units(progress, mapped)
    checking.document()
    checking.heads()
    checking.items()
    checking.snapshots()
    checking.reports()
    checking.exclusions()
    checking.card()
    return checking.verdict()


class _Report(BaseModel):
    """The one thing that the report of a run, of whatever release, is asked for."""

    snapshot: str | None = None


class _Checking:
    def __init__(self, files: Files, level: Level) -> None:
        self.files, self.level = files, level
        self.problems: list[Problem] = []
        self.nodes = 0
        self._document: GraphDocument | None = None
        self._lineages: dict[str, LineageDocument] = {}
        self._commits: dict[Place, Commit] = {}
        self._heads: list[Head] = []
        self._parts: dict[str, PartRef | None] = {}
        self._reported: set[str] = set()
        self._gone: dict[str, list[CommitRef]] = {}

    def verdict(self) -> Verdict:
        lines = list(dict.fromkeys(f"{problem.name}: {problem.what}" for problem in self.problems))
        damaged = list(dict.fromkeys(problem.name for problem in self.problems))
        return Verdict(len(self._commits), len(self._parts), self.nodes, lines, damaged)

    def say(self, name: str, problem: str) -> None:
        self.problems.append(Problem(name, problem))

    def named(self, name: str) -> AbstractContextManager[None]:
        if name.endswith(".json"):
            with naming(self.files, name, self.problems):
                if self.files.exists(name) and self.files.tail(name, 1) != b"\n":
                    self.say(name, "is cut short: its last line has no end")
        return naming(self.files, name, self.problems)

    def names(self) -> None:
        """Readers of folders take every file in them."""
        for name in foreign_names(self.files):
            self.say(name, "is no file of a graph; move it elsewhere")

    # ---- documents -------------------------------------------------------------------------------------------

    def document(self) -> None:
        with self.named("graph.json"):
            document = self._document = read_document(self.files)
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

    def units(self, progress: Callable[[UnitVerdict], None] | None, mapped: Mapper) -> None:
        with self.named("edges"):
            units = [
                UnitFiles(self.files, annotator, version, shard, max(revisions) + 1, self.level)
                for (annotator, version), shards in committed(self.files).items()
                for shard, revisions in shards.items()
            ]
            for found in mapped(check_unit, units):
                self._unit(found)
                if progress is not None:
                    progress(found)
        for commit in self._commits.values():
            for ref in commit.document.parents:
                self._ref(ref, commit.name)

    def _unit(self, found: UnitVerdict) -> None:
        self.problems += found.problems
        self.nodes += found.nodes
        self._parts |= found.parts
        for commit in found.commits:
            ref = commit.ref
            self._commits[ref.annotator, ref.version, ref.shard, ref.revision] = commit
            if ref.version not in self._lineages:
                self.say(f"lineage/{ref.version}.json", f"missing or damaged; {commit.name} is of that version")

    def _ref(self, ref: CommitRef, of: str) -> None:
        """A commit that something names has to be there, and to be the one that was named."""
        name = commit_name(ref.annotator, ref.version, ref.shard, ref.revision)
        found = self._commits.get((ref.annotator, ref.version, ref.shard, ref.revision))
        if found is None and name not in {problem.name for problem in self.problems}:
            self.say(name, f"missing; {of} was made from it")
        elif found is not None and found.ref != ref:
            self.say(name, f"its footer hashes to {found.ref.checksum}, {of} says {ref.checksum}")

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
                name = f"snapshots/{digest}.parquet"
                with self.named(name):
                    found[digest] = read_snapshot(self.files, digest)
                    if self.level == "full" and not is_as_written(self.files.read(name), snapshot_bytes):
                        self.say(name, "its bytes are not those that its content makes")
        for digest, snapshot in found.items():
            for ref in snapshot.refs:
                if ref not in self._removed(ref.annotator, ref.version):
                    self._ref(ref, f"snapshot {digest}")
            if snapshot.head and snapshot.head not in self._heads:
                self.say("heads", f"none is that of snapshot {digest}: a head is lost or was altered")
        self._order(found)

    def _removed(self, annotator: str, version: str) -> list[CommitRef]:
        """What `gc` has removed of a version."""
        if version not in self._gone:
            self._gone[version] = []
            name = f"{edges_folder(annotator, version)}/removed.json"
            with self.named(name):
                self._gone[version] = removed_commits(self.files, annotator, version)
        return self._gone[version]

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
                        self._reported |= {read_json(self.files, name, _Report.model_validate_json).snapshot or ""}
        self._reported -= {""}
        uses: dict[str, Use] = {}
        for digest in used(self.files):
            with self.named(f"snapshots/{digest}.json"):
                uses[digest] = read_use(self.files, digest)
        for digest in sorted({*self._reported, *uses}):
            if uses.get(digest) != "removed" and not self.files.exists(f"snapshots/{digest}.parquet"):
                self.say(f"snapshots/{digest}.parquet", "missing; a run, sample or training names it")

    def exclusions(self) -> None:
        with self.named("exclusions"):
            names = [name for name in self.files.names("exclusions") if name.endswith(".json")]
            for number, name in enumerate(names, 1):
                if name != f"{number:08d}.json":
                    self.say(f"exclusions/{number:08d}.json", f"missing, {name} follows")
                    return
                with self.named(f"exclusions/{name}"):
                    read_json(self.files, f"exclusions/{name}", EXCLUSIONS.validate_json)

    def card(self) -> None:
        """The card is written at the end of each run, and pins what nothing else names."""
        if not self.files.exists("README.md"):
            if self._reported and any(annotator.startswith("source:") for annotator, *_ in self._commits):
                self.say("README.md", "missing")
            return
        with self.named("README.md"):
            text, check = read_card(self.files)
            if check is None:
                self._current("README.md", lambda graph: text == card_text(graph))
                return
            if self._document not in (None, check.graph):
                self.say("graph.json", "is not what it was when README.md was written")
            for name, pinned in {**check.exclusions, **check.heads}.items():
                if not self.files.exists(name):
                    self.say(name, "missing; README.md names it")
                elif checksum(self.files.read(name)) != pinned:
                    self.say(name, "was altered since README.md was written")
            self._current("README.md", lambda graph: check.snapshot == graph.digest)

    def _current(self, name: str, right: Callable[[Graph], bool]) -> None:
        """A card of a finished run is that of the state which the run left."""
        if not self.problems:
            graph = Graph.open(self.files.url)
            if graph.digest in self._reported and not right(graph):
                self.say(name, "is not the card of this state of the graph")
