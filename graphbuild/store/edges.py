"""Lookup in edges parts: single rows, which nodes exist, and what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.contracts import EDGES, CommitDocument, Outcome, Shard
from graphbuild.errors import GraphError
from graphbuild.store.cache import cached_array
from graphbuild.store.commits import Commit
from graphbuild.store.files import Files
from graphbuild.store.parts import Place, outcomes, read_table

_KEYS = ["item_ix", "kind", "variant", "status"]
_INT32 = np.iinfo(np.int32).max


class EdgeRows:
    """The edge rows of one commit, looked up by (item_ix, kind, variant) in constant time."""

    def __init__(self, files: Files, commit: Commit) -> None:
        self.commit = commit
        self.table = unit_rows(files, commit)
        self._columns: dict[str, list[object]] = {}
        self._rows = _positions(self.table, commit.document.unit.shard, commit.document.variants)

    def find(self, item_ix: int, kind: str, variant: int) -> int | None:
        """The row number of a planned node, or None if it was never planned."""
        rows = self._rows.get(kind)
        start = self.commit.document.unit.shard.start
        if rows is None or not (0 <= item_ix - start < len(rows) and 0 <= variant < rows.shape[1]):
            return None
        row = int(rows[item_ix - start, variant])
        return None if row < 0 else row

    def value(self, row: int, column: str) -> object:
        """One value; a column is turned into a list on its first use."""
        if column not in self._columns:
            self._columns[column] = self.table.column(column).to_pylist()
        return self._columns[column][row]

    def place(self, row: int) -> Place:
        part, offset, nbytes = (self.value(row, name) for name in ("part", "offset", "nbytes"))
        return Place(cast(str, part), cast(int, offset), cast(int, nbytes))

    def why_missing(self, row: int | None, item_ix: int, kind: str, variant: int) -> str:
        """Why a node is not stored, for a message."""
        if row is None:
            variants = self.commit.document.variants.get(kind, 0)
            return f"item {item_ix} has no {kind} variant {variant}; variants planned: {variants}"
        return f"item {item_ix} has no {kind}: {self.value(row, 'status')} ({self.value(row, 'reason')})"

    def outcomes(self) -> list[Outcome]:
        """All rows as records, without their data."""
        return outcomes(self.table)


def unit_rows(files: Files, commit: Commit, columns: Sequence[str] | None = None) -> pa.Table:
    """The edge rows of a commit, or some columns of them.

    Raises:
        GraphError: they cannot be read, or contradict the commit's footer.
    """
    table = read_table(files, commit.name, columns)
    if (wrong := _wrong_rows(table, commit.document)) is not None:
        raise GraphError(f"{files.path(commit.name)}: {wrong}; see graphbuild verify")
    return table


def _wrong_rows(table: pa.Table, document: CommitDocument) -> str | None:
    """The first inconsistency that would break lookups; None if there is none."""
    names, shard = table.column_names, document.unit.shard
    if not table.schema.equals(pa.schema([EDGES.field(name) for name in names if name in EDGES.names])):
        return "another schema than edges of format 1"
    rows = sum(sum(counts.values()) for counts in document.counts.values())
    if table.num_rows != rows:
        return f"{table.num_rows} rows, its footer counts {rows}"
    if any(table.column(name).null_count for name in _KEYS if name in names):
        return "rows without a key or status"
    kinds = pc.index_in(table.column("kind"), pa.array(document.variants, pa.string()))
    if kinds.null_count:
        return f"rows of other kinds than {', '.join(document.variants)}"
    items, variant = table.column("item_ix").to_numpy(), table.column("variant").to_numpy()
    planned = np.array([*document.variants.values()], np.int64)[kinds.to_numpy()]
    if not ((shard.start <= items) & (items < shard.stop) & (variant >= 0) & (variant < planned)).all():
        return f"rows of other items or variants than those of {shard.label}"
    return _wrong_places(table, document) if "part" in names else None


def _wrong_places(table: pa.Table, document: CommitDocument) -> str | None:
    stored = table.filter(pc.equal(table.column("status"), "ok"))
    numbers = pc.index_in(stored.column("part"), pa.array([part.name for part in document.parts], pa.string()))
    if numbers.null_count:
        odd = stored.filter(pc.is_null(numbers)).column("part")[0].as_py()
        return f"a row lies in {odd!r}, which is none of its parts"
    sizes = np.array([part.nbytes for part in document.parts], np.int64)[numbers.to_numpy()]
    offset, nbytes = (pc.fill_null(stored.column(name), -1).to_numpy() for name in ("offset", "nbytes"))
    inside = (offset >= 0) & (nbytes >= 0) & (offset <= sizes) & (nbytes <= np.minimum(sizes - offset, _INT32))
    if not inside.all():
        at = int(np.flatnonzero(~inside)[0])
        return f"a row of {nbytes[at]} bytes from {offset[at]} on, in a part of {sizes[at]} bytes"
    hashed = pc.match_substring_regex(pc.fill_null(stored.column("content_hash"), ""), "^[0-9a-f]{32}$")
    if not pc.all(hashed, min_count=0).as_py() or stored.column("format").null_count:
        return "a stored row without hash or format"
    return None


def _positions(table: pa.Table, shard: Shard, variants: dict[str, int]) -> dict[str, NDArray[np.int32]]:
    items = table.column("item_ix").to_numpy() - shard.start
    variant = table.column("variant").to_numpy()
    kinds = np.asarray(table.column("kind").to_pylist())
    positions = {}
    for kind, count in variants.items():
        rows = np.full((shard.stop - shard.start, count), -1, np.int32)
        chosen = np.flatnonzero(kinds == kind)
        rows[items[chosen], variant[chosen]] = chosen
        if np.count_nonzero(rows >= 0) != len(chosen):
            raise GraphError(f"{shard.label}: two edge rows of one {kind}; see graphbuild verify")
        positions[kind] = rows
    return positions


def presence(files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> NDArray[np.bool_]:
    """Which nodes of a kind exist: bool, items x variants. Reads three columns of each commit once."""
    variants = max((commit.document.variants[kind] for commit in commits), default=1)
    present = np.zeros((num_items, variants), bool)
    for commit in commits:
        table = unit_rows(files, commit, _KEYS)
        ok = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
        table = table.filter(ok)
        present[table.column("item_ix").to_numpy(), table.column("variant").to_numpy()] = True
    return present


def cached_presence(
    digest: str, files: Files, commits: Sequence[Commit], kind: str, num_items: int
) -> NDArray[np.bool_]:
    """`presence`, cached by snapshot digest."""
    return cached_array(
        digest, f"presence-{kind}", np.bool_, (num_items, None), lambda: presence(files, commits, kind, num_items)
    )


Scores = NDArray[np.float32]
"""Scores of nodes: items x variants, NaN where there is none."""


def scores(files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> Scores:
    """The scores that the edges of a kind recorded."""
    variants = max((commit.document.variants[kind] for commit in commits), default=1)
    found = np.full((num_items, variants), np.nan, np.float32)
    for commit in commits:
        table = unit_rows(files, commit, [*_KEYS, "score"])
        ok = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
        table = table.filter(ok)
        values = pc.fill_null(table.column("score"), np.nan).to_numpy()
        found[table.column("item_ix").to_numpy(), table.column("variant").to_numpy()] = values
    return found


def cached_scores(digest: str, files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> Scores:
    """`scores`, cached by snapshot digest."""
    return cached_array(
        digest, f"scores-{kind}", np.float32, (num_items, None), lambda: scores(files, commits, kind, num_items)
    )


NodeParents = NDArray[np.int64]
"""Derivation of nodes, int64 N x 5, one row per (child, parent): child item, child variant, parent item, parent kind,
parent variant. A parent kind is its index in `parent_kinds`."""


def node_parents(files: Files, commits: Sequence[Commit], kind: str) -> NodeParents:
    """The parents that the edges of a kind's `ok` nodes recorded."""
    found = [np.empty((0, 5), np.int64)]
    for commit in commits:
        names = parent_kinds(commit)
        if names:
            found.append(_parents_in(unit_rows(files, commit, [*_KEYS, "parents"]), kind, names))
    return np.concatenate(found)


def parent_kinds(commit: Commit) -> list[str]:
    """The kinds that edges of a commit may name as parents: those of its version; of a source, its kinds with variants,
    which tell which of them belong together."""
    document = commit.document
    if document.unit.annotator.startswith("source:"):
        return sorted(kind for kind, count in document.variants.items() if count > 1)
    return sorted(document.lineage.parents)


def cached_node_parents(digest: str, files: Files, commits: Sequence[Commit], kind: str) -> NodeParents:
    """`node_parents`, cached by snapshot digest."""
    return cached_array(digest, f"parents-{kind}", np.int64, (None, 5), lambda: node_parents(files, commits, kind))


def cached_crossings(digest: str, files: Files, commits: Sequence[Commit], kind: str) -> NDArray[np.int64]:
    """Unordered pairs of different items, int64 N x 2: one has an `ok` node of this kind that was made from a node of
    the other. Cached by snapshot digest."""

    def crossings() -> NDArray[np.int64]:
        rows = cached_node_parents(digest, files, commits, kind)
        return np.unique(rows[rows[:, 0] != rows[:, 2]][:, [0, 2]], axis=0)

    return cached_array(digest, f"crossings-{kind}", np.int64, (None, 2), crossings)


def _parents_in(table: pa.Table, kind: str, names: Sequence[str]) -> NodeParents:
    ok = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
    table = table.filter(ok).combine_chunks()
    lists = table.column("parents")
    child, parent = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    kinds = pc.fill_null(pc.index_in(pc.struct_field(parent, "kind"), pa.array(names)), -1)
    rows = [
        table.column("item_ix").to_numpy()[child],
        table.column("variant").to_numpy()[child],
        pc.struct_field(parent, "item_ix").to_numpy(),
        kinds.to_numpy(),
        pc.struct_field(parent, "variant").to_numpy(),
    ]
    return np.stack(rows, axis=1).astype(np.int64)
