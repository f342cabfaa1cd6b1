"""Commits: edges parts known by their footers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError

from graphbuild.contracts import FORMAT, CommitDocument, CommitRef, Shard, Unit
from graphbuild.errors import GraphError
from graphbuild.hashing import checksum
from graphbuild.images.codecs import is_codec
from graphbuild.store.blocks import REQUESTS
from graphbuild.store.files import Files
from graphbuild.store.parts import edges_name, is_items_name, items_name, nodes_folder, read_footer, told

_PART_NUMBERS = re.compile(r"-r\d{3,}-\d+-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, slots=True)
class Commit:
    """A published edges part, known by its footer."""

    name: str
    ref: CommitRef
    document: CommitDocument


def read_commit(files: Files, name: str) -> Commit:
    """Read the footer of an edges part; the cost does not grow with its rows.

    Raises:
        GraphError: not a readable edges part of this format.
    """
    metadata, footer = read_footer(files, name)
    try:
        document = CommitDocument.model_validate_json((metadata.metadata or {}).get(b"graphbuild", b""))
    except ValidationError as error:
        raise GraphError(f"{files.path(name)}: not a readable edges part ({told(error)})") from error
    if document.format != FORMAT:
        raise GraphError(f"{files.path(name)}: format {document.format}, this release reads format {FORMAT}")
    unit = document.unit
    if name != edges_name(unit, document.revision):
        raise GraphError(f"{files.path(name)}: is the commit of {unit}, revision {document.revision}")
    if (wrong := _contradiction(document)) is not None:
        raise GraphError(f"{files.path(name)}: {wrong}; see graphbuild verify")
    ref = CommitRef(
        annotator=unit.annotator,
        version=unit.version,
        shard=unit.shard.index,
        revision=document.revision,
        checksum=checksum(footer),
    )
    return Commit(name, ref, document)


def read_commits(files: Files, names: Sequence[str]) -> list[Commit]:
    """The same of many, at once where every read is a request."""
    if not files.remote or len(names) < 2:
        return [read_commit(files, name) for name in names]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(partial(read_commit, files), names))


def _contradiction(document: CommitDocument) -> str | None:
    """The first contradiction inside a footer; None if it is consistent."""
    unit, kinds, lineage = document.unit, document.variants.keys(), document.lineage
    if lineage.annotator != unit.annotator or unit.shard.start > unit.shard.stop:
        return f"is of {unit.annotator}, its lineage of {lineage.annotator}; its shard is {unit.shard}"
    if any(named.keys() != kinds for named in (lineage.codec, document.counts, document.reasons)):
        return f"makes {', '.join(kinds)}, and does not count or encode just those"
    if unknown := [codec for codec in lineage.codec.values() if not is_codec(codec)]:
        return f"codec {unknown[0]} is neither of this release nor of an installed package"
    for part in document.parts:
        shard = f"{nodes_folder(part.kind, unit.version)}/{unit.shard.label}"
        numbered = part.name.startswith(shard) and _PART_NUMBERS.fullmatch(part.name, len(shard))
        if part.kind not in kinds or not numbered:
            return f"names {part.name!r} as a part of {part.kind}"
    if document.items is not None and not is_items_name(document.items.name, unit.shard):
        return f"names {document.items.name!r} as its items"
    return None


def newest_commit(files: Files, unit: Unit) -> Commit | None:
    """The highest revision of one unit, found by name: the cost does not grow with the graph."""
    revision = 0
    while files.exists(edges_name(unit, revision)):
        revision += 1
    return read_commit(files, edges_name(unit, revision - 1)) if revision else None


def newest_spine(commits: Sequence[Commit]) -> Commit | None:
    """The commit with the most recently corrected items, among those of all versions of a source."""
    return max(commits, key=lambda commit: _correction(items_in(commit, commit.document.unit.shard)), default=None)


def _correction(items: str) -> int:
    """The source's revision that an items part was made in; -1 for the first part of a shard."""
    _, _, number, *_ = [*items.split("-"), "", ""]
    return int(number[1:]) if number else -1


def items_in(spine: Commit | None, shard: Shard) -> str:
    """The items part of a shard."""
    items = None if spine is None else spine.document.items
    return items_name(shard) if items is None else items.name
