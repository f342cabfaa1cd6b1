"""Publishing a finished unit: node parts first, the edges part last. Its publication is the commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphbuild.contracts import CommitDocument, Outcome, PartRef, Status, Unit
from graphbuild.store.commits import read_commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import AlreadyPublished, Files
from graphbuild.store.parts import Place, edge_table, edges_name, nodes_folder, rows_digest, write_edges, write_nodes
from graphbuild.store.workspace import Workspace

Places = dict[tuple[int, str, int], Place]


def publish_unit(
    files: Files,
    workspace: Workspace,
    *,
    rows: Sequence[Outcome],
    previous: EdgeRows | None,
    document: CommitDocument,
    renewed: bool = False,
) -> CommitDocument | None:
    """Commit `rows` (all planned rows, in key order).

    Rows without data that `previous` stored keep their bytes: a part of which every row stays is named again, one
    that loses a row is rewritten without it.

    Args:
        renewed: publish although no outcome changed, because the parents did. Rows with equal results keep their
            bytes.

    Returns:
        the committed document, which is another worker's if it was first; None if no outcome changed.
    """
    if previous is not None:
        old = {row.key: _compared(row) for row in previous.outcomes()}
        same = {row.key for row in rows if old.get(row.key) == _compared(row)}
        if not renewed and len(same) == len(rows) == len(old):
            return None
        rows = [replace(row, data=None) if renewed and row.key in same else row for row in rows]
    parts: list[PartRef] = []
    places: Places = {}
    for kind in document.variants:
        stored = [row for row in rows if row.kind == kind and row.status == "ok"]
        kept, rest = _intact_parts(stored, previous, places)
        data = _with_data(files, rest, previous)
        written, at = write_nodes(files, workspace, document.unit, document.revision, kind, data)
        parts += [*kept, *written]
        places |= {(item_ix, kind, variant): place for (item_ix, variant), place in at.items()}
    table = edge_table(rows, places)
    facts = {"parts": parts, "rows_digest": rows_digest(table), **_totals(rows, document)}
    document = document.model_copy(update=facts)
    try:
        write_edges(files, workspace, table, document)
    except AlreadyPublished:
        document = read_commit(files, edges_name(document.unit, document.revision)).document
    _remove_orphans(files, document)
    return document


def _compared(row: Outcome) -> tuple[object, ...]:
    names = ("status", "reason", "detail", "parents", "format", "content_hash", "score", "attrs")
    return tuple(getattr(row, name) for name in names)


def _intact_parts(
    stored: Sequence[Outcome], previous: EdgeRows | None, places: Places
) -> tuple[list[PartRef], list[Outcome]]:
    """The parts of the last revision that stay whole, and the rows that need a new part."""
    if previous is None:
        return [], list(stored)
    old = {row.key: _place(previous, row) for row in stored if row.data is None}
    rows_in = Counter(place.part for place in old.values())
    intact = [part for part in previous.commit.document.parts if rows_in[part.name] == part.rows]
    names = {part.name for part in intact}
    rest = []
    for row in stored:
        place = old.get(row.key)
        if place is not None and place.part in names:
            places[row.key] = place
        else:
            rest.append(row)
    return intact, rest


def _with_data(files: Files, rows: Sequence[Outcome], previous: EdgeRows | None) -> Iterator[Outcome]:
    """The rows with their bytes, read when they are wanted: a part may be larger than the memory."""
    for row in rows:
        if row.data is None and previous is not None:
            place = _place(previous, row)
            row.data = files.pread(place.part, place.offset, place.nbytes)
        yield row


def _place(previous: EdgeRows, row: Outcome) -> Place:
    number = previous.find(*row.key)
    assert number is not None, f"{row.key} has neither data nor an older place"
    return previous.place(number)


def _totals(rows: Sequence[Outcome], document: CommitDocument) -> dict[str, object]:
    counts: dict[str, dict[Status, int]] = {kind: {} for kind in document.variants}
    reasons: dict[str, dict[str, int]] = {kind: {} for kind in document.variants}
    for row in rows:
        counts[row.kind][row.status] = counts[row.kind].get(row.status, 0) + 1
        if row.reason is not None:
            key = f"{row.status}:{row.reason}"
            reasons[row.kind][key] = reasons[row.kind].get(key, 0) + 1
    return {"counts": counts, "reasons": reasons}


def _remove_orphans(files: Files, document: CommitDocument) -> None:
    """Parts of this very revision that its footer does not name: left by a worker that died or lost the race."""
    unit: Unit = document.unit
    named = {part.name for part in (*document.parts, *([document.items] if document.items else []))}
    folders = [nodes_folder(kind, unit.version) for kind in document.variants]
    for folder in [*folders, *(["items"] if document.items and document.revision else [])]:
        for name in files.names(folder):
            if name.startswith(f"{unit.shard.label}-r{document.revision:03d}-") and f"{folder}/{name}" not in named:
                files.remove(f"{folder}/{name}")
