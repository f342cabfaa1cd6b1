"""SQL by DuckDB: views of what is live in a graph, so that no row of an older commit is counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.contracts import EDGES, Live
from graphbuild.errors import GraphError


def connect(
    items: pa.Table,
    edges: Mapping[str, list[str]],
    nodes: Mapping[str, list[str]],
    head: Mapping[str, Live],
    excluded: Collection[int],
    *,
    filesystem: Any = None,
) -> Any:
    """A DuckDB connection in memory with the views that `Graph.sql` tells of.

    Args:
        items: the spine.
        edges, nodes: kind -> files with its rows.
        filesystem: of fsspec, where the files are; None for this machine.
        excluded: `item_ix` of items whose nodes are left out.

    Raises:
        GraphError: DuckDB is not installed.
    """
    import pyarrow.dataset as ds

    try:
        import duckdb
    except ImportError as error:
        raise GraphError("SQL needs DuckDB: pip install 'graphbuild[duckdb]'") from error
    connection = duckdb.connect()
    connection.register("items", items)
    views: dict[str, list[str]] = {"edges": [], "nodes": []}
    for number, kind in enumerate(sorted(head)):
        if edges[kind]:
            rows = ds.dataset(edges[kind], EDGES, filesystem=filesystem)
            connection.register(f"edges{number}", rows.filter(pc.field("kind") == kind))
            views["edges"].append(f"select * from edges{number}")
        if nodes[kind]:
            left_out = pc.field("item_ix").isin(pa.array(list(excluded), pa.int64()))
            connection.register(f"nodes{number}", ds.dataset(nodes[kind], filesystem=filesystem).filter(~left_out))
            named = f"'{kind}' as kind, '{head[kind].version}' as version"
            views["nodes"].append(f"select {named}, * from nodes{number}")
    for name, parts in views.items():
        if parts:
            connection.execute(f"create view {name} as {' union all by name '.join(parts)}")
    return connection
