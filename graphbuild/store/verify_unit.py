"""One unit of a graph checked: its revisions, the parts they name, every stored value. Needs nothing but files, so that
units are checked side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from graphbuild.contracts import NODES, PartRef
from graphbuild.errors import GraphError, Unreachable
from graphbuild.hashing import version_of
from graphbuild.store.commits import Commit, read_commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import Files
from graphbuild.store.nodes import read_node
from graphbuild.store.parts import commit_name, edges_bytes, is_as_written, read_footer, rows_digest

Level = Literal["quick", "full"]


class Problem(NamedTuple):
    """What is wrong with a file."""

    name: str
    what: str


class UnitFiles(NamedTuple):
    """A unit to check: all that is needed to do so in another process."""

    files: Files
    annotator: str
    version: str
    shard: int
    revisions: int
    level: Level


@dataclass
class UnitVerdict:
    """What was found: the readable commits, their parts, and how many values were hashed."""

    commits: list[Commit] = field(default_factory=list)
    parts: dict[str, PartRef | None] = field(default_factory=dict)
    nodes: int = 0
    problems: list[Problem] = field(default_factory=list)


def check_unit(unit: UnitFiles) -> UnitVerdict:
    """Check all revisions of a unit; names of its parts map to what commits say of them, None if they are damaged."""
    checking = _Unit(unit.files, unit.level)
    names = [commit_name(unit.annotator, unit.version, unit.shard, number) for number in range(unit.revisions)]
    commits = {name: commit for name in names if (commit := checking.commit(name)) is not None}
    erasing = max((c.ref.revision for c in commits.values() if c.document.erases is not None), default=0)
    for name, commit in commits.items():
        with checking.named(name):
            checking.content(commit, newest=name == names[-1], gone=commit.ref.revision < erasing)
    return checking.found


class _Unit:
    def __init__(self, files: Files, level: Level) -> None:
        self.files, self.level, self.found = files, level, UnitVerdict()

    def say(self, name: str, problem: str) -> None:
        self.found.problems.append(Problem(name, problem))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        with naming(self.files, name, self.found.problems):
            yield

    def commit(self, name: str) -> Commit | None:
        with self.named(name):
            commit = read_commit(self.files, name)
            self.found.commits.append(commit)
            return commit
        return None

    def content(self, commit: Commit, newest: bool, gone: bool) -> None:
        """Check what a commit says; the parts of one that is `gone` had nodes of excluded items."""
        for problem in _contradictions(commit):
            self.say(commit.name, problem)
        for part in [*(() if gone else commit.document.parts), *filter(None, [commit.document.items])]:
            self._part(part)
        if self.level == "full":
            self._rows(commit, newest)

    def _part(self, part: PartRef) -> None:
        if part.name in self.found.parts:
            if self.found.parts[part.name] not in (None, part):
                self.say(part.name, "two commits say different things of it")
            return
        self.found.parts[part.name] = None  # until it is read
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
            self.found.parts[part.name] = part

    def _rows(self, commit: Commit, newest: bool) -> None:
        rows = EdgeRows(self.files, commit)
        if rows_digest(rows.table) != commit.document.rows_digest:
            self.say(commit.name, "its rows are not those its footer pins")
        elif not is_as_written(self.files.read(commit.name), edges_bytes):
            self.say(commit.name, "its bytes are not those that its rows and its document make")
        if not newest:
            return  # what later revisions kept is checked with them, the rest by the checksums of parts
        for row, status in enumerate(rows.table.column("status").to_pylist()):
            part = str(rows.value(row, "part"))
            if status == "ok" and self.found.parts.get(part) is not None:
                self.found.nodes += 1
                try:
                    read_node(self.files, rows, row)
                except Unreachable:
                    raise
                except (GraphError, OSError) as error:
                    self.say(part, f"row {row}, item {rows.value(row, 'item_ix')}: {error}")


@contextmanager
def naming(files: Files, name: str, problems: list[Problem]) -> Iterator[None]:
    """What cannot be read is a problem of the file it is in, unless the store does not answer."""
    try:
        yield
    except Unreachable:
        raise
    except (ValueError, OSError) as error:
        problems.append(Problem(name, str(error).removeprefix(f"{files.url}/{name}: ")))


def _contradictions(commit: Commit) -> Iterator[str]:
    document = commit.document
    if (version := version_of(document.lineage)) != document.unit.version:
        yield f"its lineage hashes to {version}, not {document.unit.version}"
    for kind, counts in document.counts.items():
        rows = sum(part.rows for part in document.parts if part.kind == kind)
        if rows != counts.get("ok", 0):
            yield f"{counts.get('ok', 0)} {kind} rows are ok, but its parts hold {rows}"
    if document.unit.annotator.startswith("source:") and document.items is None:
        yield "names no items"
