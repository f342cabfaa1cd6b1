"""Single stored nodes, read from where their edges say and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from graphbuild.contracts import EDGES
from graphbuild.errors import CorruptNode, GraphError
from graphbuild.hashing import checksum
from graphbuild.images.node import Node
from graphbuild.store.edges import EdgeRows
from graphbuild.store.files import Files
from graphbuild.store.parts import unreadable


def read_node(files: Files, rows: EdgeRows, row: int) -> Node:
    """The stored node behind an `ok` row, checked against its hash.

    Raises:
        CorruptNode: the stored bytes changed; the message names part, row and item.
    """
    place, item_ix, kind = rows.place(row), rows.value(row, "item_ix"), str(rows.value(row, "kind"))
    where = f"{files.path(place.part)}: row {row}, item {item_ix}, {kind}"
    try:
        data = files.pread(place.part, place.offset, place.nbytes)
    except (GraphError, FileNotFoundError) as error:
        raise CorruptNode(f"{where}: {unreadable(files, place.part, error)}") from error
    if (found := checksum(data)) != (recorded := rows.value(row, "content_hash")):
        raise CorruptNode(
            f"{where}: stored bytes hash to {found}, its edge says {recorded}; run graphbuild verify --full"
        )
    document = rows.commit.document
    try:
        attrs = json.loads(str(rows.value(row, "attrs") or "{}"))
    except (ValueError, RecursionError) as error:
        raise CorruptNode(f"{where}: its attributes are no JSON ({error})") from error
    return Node(
        item_ix=item_ix,  # type: ignore[arg-type]
        kind=kind,
        variant=rows.value(row, "variant"),  # type: ignore[arg-type]
        version=document.unit.version,
        bytes=data,
        format=str(rows.value(row, "format")),
        codec=document.lineage.codec[kind],
        attrs=attrs,
        edge=LazyEdge.of(rows.table, row),
    )


class LazyEdge(Mapping[str, Any]):
    """An edge row as a mapping, turned into Python values only when looked at: reads stay cheap."""

    def __init__(self, find: Callable[[], tuple[pa.Table, int]]) -> None:
        self._find = find

    @classmethod
    def of(cls, table: pa.Table, row: int) -> LazyEdge:
        return cls(partial(_same, table, row))

    def __getitem__(self, key: str) -> Any:
        if key not in EDGES.names:
            raise KeyError(key)
        table, row = self._find()
        return table.column(key)[row].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(EDGES.names)

    def __len__(self) -> int:
        return len(EDGES)

    def __repr__(self) -> str:
        return repr(dict(self))


def _same(table: pa.Table, row: int) -> tuple[pa.Table, int]:
    return table, row
