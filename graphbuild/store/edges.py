"""Where a node lies and which nodes exist: arrays over edges parts. All of it can be rebuilt from the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.contracts import EDGES, Outcome, Shard
from graphbuild.errors import GraphError
from graphbuild.store.cache import cached_array
from graphbuild.store.files import Files
from graphbuild.store.parts import Commit, Place, outcomes, read_table


class EdgeRows:
    """The edge rows of one commit, looked up by (item_ix, kind, variant) in constant time."""

    def __init__(self, files: Files, commit: Commit) -> None:
        self.commit = commit
        self.table = read_table(files, commit.name)
        if not self.table.schema.equals(EDGES):
            raise GraphError(f"{files.path(commit.name)}: another schema than edges of format 1")
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
        """What became of a node that is not stored, for a message."""
        if row is None:
            variants = self.commit.document.variants.get(kind, 0)
            return f"item {item_ix} has no {kind} variant {variant}; variants planned: {variants}"
        return f"item {item_ix} has no {kind}: {self.value(row, 'status')} ({self.value(row, 'reason')})"

    def outcomes(self) -> list[Outcome]:
        """All rows as records, without their data."""
        return outcomes(self.table)


def _positions(table: pa.Table, shard: Shard, variants: dict[str, int]) -> dict[str, NDArray[np.int32]]:
    items = table.column("item_ix").to_numpy() - shard.start
    variant = table.column("variant").to_numpy()
    kinds = np.asarray(table.column("kind").to_pylist())
    positions = {}
    for kind, count in variants.items():
        rows = np.full((shard.stop - shard.start, count), -1, np.int32)
        chosen = np.flatnonzero(kinds == kind)
        rows[items[chosen], variant[chosen]] = chosen
        positions[kind] = rows
    return positions


def presence(files: Files, commits: Sequence[Commit], kind: str, num_items: int) -> NDArray[np.bool_]:
    """Which nodes of a kind exist: bool, items x variants. Reads three columns of each commit once."""
    variants = max((commit.document.variants[kind] for commit in commits), default=1)
    present = np.zeros((num_items, variants), bool)
    for commit in commits:
        table = read_table(files, commit.name, ["item_ix", "kind", "variant", "status"])
        ok = pc.and_(pc.equal(table.column("status"), "ok"), pc.equal(table.column("kind"), kind))
        table = table.filter(ok)
        present[table.column("item_ix").to_numpy(), table.column("variant").to_numpy()] = True
    return present


def cached_presence(
    digest: str, files: Files, commits: Sequence[Commit], kind: str, num_items: int
) -> NDArray[np.bool_]:
    """`presence`, kept in the user's cache folder under the snapshot's digest, so that a rerun reads no edge row."""
    return cached_array(
        digest, f"presence-{kind}", np.bool_, (num_items, None), lambda: presence(files, commits, kind, num_items)
    )


NodeParents = NDArray[np.int64]
"""Where nodes come from, one row a (child, parent): the child's item and variant, the parent's item, kind and variant.
A kind is a position in the sorted names of the parents that the kind's lineage declares."""


def node_parents(files: Files, commits: Sequence[Commit], kind: str) -> NodeParents:
    """The parents that the edges of a kind's `ok` nodes recorded."""
    found = [np.empty((0, 5), np.int64)]
    for commit in commits:
        names = sorted(commit.document.lineage.parents)
        if names:
            found.append(
                _parents_in(
                    read_table(files, commit.name, ["item_ix", "kind", "variant", "status", "parents"]), kind, names
                )
            )
    return np.concatenate(found)


def cached_node_parents(digest: str, files: Files, commits: Sequence[Commit], kind: str) -> NodeParents:
    """`node_parents`, kept like presence."""
    return cached_array(digest, f"parents-{kind}", np.int64, (None, 5), lambda: node_parents(files, commits, kind))


def cached_crossings(digest: str, files: Files, commits: Sequence[Commit], kind: str) -> NDArray[np.int64]:
    """Pairs of different items of which one has an `ok` node of this kind made from a node of the other, each once;
    kept like presence."""

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
