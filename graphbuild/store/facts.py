"""Facts of single items, from the part that holds their shard."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.parts import read_table

_COLUMNS = ("item_ix", "subject", "reference_caption")
_NOTHING: Mapping[str, Any] = {}


def facts_of(graph: Graph, item_ix: int) -> Mapping[str, Any]:
    """Columns `subject` and `reference_caption` of an item, None where its source does not say; empty without it."""
    at = bisect.bisect_right(graph.shards, item_ix, key=lambda shard: shard.start) - 1
    part = graph.source_commits[at].document.items if at >= 0 else None
    return _NOTHING if part is None else _facts(graph.fs, part.name).get(item_ix, _NOTHING)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _facts(files: Files, name: str) -> dict[int, dict[str, Any]]:
    return {row["item_ix"]: row for row in read_table(files, name).select(_COLUMNS).to_pylist()}
