"""Is a graph what its commits say? Footers and sizes quickly, every byte on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow.parquet as pq

from graphbuild.contracts import NODES, PartRef
from graphbuild.errors import GraphError
from graphbuild.hashing import checksum, version_of
from graphbuild.store.edges import EdgeRows
from graphbuild.store.exclusions import read_exclusions
from graphbuild.store.files import Files, files_at
from graphbuild.store.graph import read_node
from graphbuild.store.heads import newest_commits, read_document, read_head, read_lineage
from graphbuild.store.parts import Commit, read_commit, read_table, rows_digest

Level = Literal["quick", "full"]


@dataclass
class Verdict:
    """`problems` name part, row and item; empty for a sound graph. `nodes` is how many values were hashed."""

    commits: int = 0
    parts: int = 0
    nodes: int = 0
    problems: list[str] = field(default_factory=list)


def verify(
    url: str | os.PathLike[str], level: Level = "quick", progress: Callable[[Commit], None] | None = None
) -> Verdict:
    """Check the newest commit of every unit, of all versions.

    Args:
        level: `quick` reads footers and sizes; `full` also reads every part, checks its checksum and each node's hash.
        progress: called after each commit.
    """
    files = files_at(url)
    read_document(files)
    verdict = Verdict()
    verdict.problems += _head_problems(files)
    verdict.problems += _exclusion_problems(files)
    for names in newest_commits(files).values():
        for name in names:
            commit = _readable(files, name, verdict)
            if commit is not None:
                verdict.commits += 1
                verdict.problems += _commit_problems(files, commit, level, verdict)
                if progress is not None:
                    progress(commit)
    return verdict


def _readable(files: Files, name: str, verdict: Verdict) -> Commit | None:
    try:
        return read_commit(files, name)
    except GraphError as error:
        verdict.problems.append(str(error))
        return None


def _head_problems(files: Files) -> Iterator[str]:
    try:
        head = read_head(files)[1]
    except ValueError as error:
        yield f"heads/: {error}"
        return
    for live in set(head.values()):
        try:
            lineage = read_lineage(files, live.version)
        except (OSError, ValueError) as error:
            yield f"lineage/{live.version}.json: {error}"
            continue
        if version_of(lineage) != live.version:
            yield f"lineage/{live.version}.json: its content hashes to {version_of(lineage)}"


def _exclusion_problems(files: Files) -> Iterator[str]:
    names = [name for name in files.names("exclusions") if name.endswith(".json")]
    for number, name in enumerate(names, 1):
        if name != f"{number:08d}.json":
            yield f"exclusions/: {number:08d}.json is missing, {name} follows"
            return
    try:
        read_exclusions(files)
    except GraphError as error:
        yield str(error)


def _commit_problems(files: Files, commit: Commit, level: Level, verdict: Verdict) -> Iterator[str]:
    document = commit.document
    if version_of(document.lineage) != document.unit.version:
        yield f"{commit.name}: its lineage hashes to {version_of(document.lineage)}, not {document.unit.version}"
    stored = {kind: counts.get("ok", 0) for kind, counts in document.counts.items()}
    for kind, count in stored.items():
        rows = sum(part.rows for part in document.parts if part.kind == kind)
        if rows != count:
            yield f"{commit.name}: {count} {kind} rows are ok, but its parts hold {rows}"
    for part in [*document.parts, *([document.items] if document.items else [])]:
        verdict.parts += 1
        yield from _part_problems(files, commit.name, part, level)
    if level == "full":
        yield from _row_problems(files, commit, verdict)


def _part_problems(files: Files, commit: str, part: PartRef, level: Level) -> Iterator[str]:
    try:
        with files.open(part.name) as file, pq.ParquetFile(file) as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except (OSError, ValueError) as error:
        yield f"{part.name}, named by {commit}: {error}"
        return
    if (nbytes := files.size(part.name)) != part.nbytes:
        yield f"{part.name}: {nbytes} bytes, its commit says {part.nbytes}"
    if rows != part.rows:
        yield f"{part.name}: {rows} rows, its commit says {part.rows}"
    if part.kind != "items" and not schema.equals(NODES):
        yield f"{part.name}: another schema than nodes of format 1"
    if level == "full" and (found := files.checksum(part.name)) != part.checksum:
        yield f"{part.name}: its bytes hash to {found}, its commit says {part.checksum}"


def _row_problems(files: Files, commit: Commit, verdict: Verdict) -> Iterator[str]:
    try:
        rows = EdgeRows(files, commit)
    except GraphError as error:
        yield str(error)
        return
    if rows_digest(rows.table) != commit.document.rows_digest:
        yield f"{commit.name}: its rows are not those its footer pins"
    if commit.document.items is not None:
        yield from _items_problems(files, commit.document.items)
    for row, status in enumerate(rows.table.column("status").to_pylist()):
        if status == "ok":
            verdict.nodes += 1
            try:
                read_node(files, rows, row)
            except (GraphError, OSError) as error:
                yield f"{rows.value(row, 'part')}: row {row}, item {rows.value(row, 'item_ix')}: {error}"


def _items_problems(files: Files, part: PartRef) -> Iterator[str]:
    try:
        read_table(files, part.name)
    except GraphError as error:
        yield str(error)
    else:
        if checksum(files.read(part.name)) != part.checksum:
            yield f"{part.name}: not the items part its commit names"
