"""Where a node lies and which nodes exist: arrays over edges parts. All of it can be rebuilt from the graph."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.contracts import EDGES, GraphError, Outcome, Shard
from graphbuild.store.parts import Commit, Place, outcomes, read_table
from graphbuild.store.publish import Files

KEPT_SNAPSHOTS = 32


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
    path = cache_folder() / digest / f"presence-{kind}.npy"
    try:
        cached: NDArray[np.bool_] = np.load(path, allow_pickle=False)
        if cached.dtype == bool and cached.ndim == 2 and len(cached) == num_items:
            return cached
    except (OSError, ValueError):
        pass  # absent or damaged: rebuilt below
    present = presence(files, commits, kind, num_items)
    _save(path, present)
    return present


def cache_folder() -> Path:
    """`$GRAPHBUILD_CACHE`, else `graphbuild` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GRAPHBUILD_CACHE") or home / "graphbuild")


def _forget_old(folder: Path) -> None:
    """Keep the indexes of the last few snapshots used."""
    for old in sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime)[:-KEPT_SNAPSHOTS]:
        shutil.rmtree(old, ignore_errors=True)


def _save(path: Path, array: NDArray[np.bool_]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, array, allow_pickle=False)
        os.replace(file.name, path)
        _forget_old(path.parent.parent)
    except OSError:
        return  # a cache that cannot be written is only slower
