"""Graphs written row by row, so that a test can say what was made from what; their pictures are never looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphbuild.contracts import (
    CommitDocument,
    GraphDocument,
    LineageDocument,
    Live,
    Outcome,
    Parent,
    Shard,
    SourceDocument,
    Unit,
)
from graphbuild.engine.commit import publish_unit
from graphbuild.hashing import checksum, version_of
from graphbuild.kinds.registry import kind_of
from graphbuild.store.files import Files
from graphbuild.store.graph import Graph
from graphbuild.store.heads import change_head
from graphbuild.store.locations import files_at
from graphbuild.store.parts import write_items
from graphbuild.store.workspace import Workspace

Key = tuple[int, int]
"""(item_ix, variant)."""

Made = Mapping[Key, Sequence[tuple[int, str, int]]]
"""Stored nodes of one kind -> the parents (item_ix, kind, variant) of each."""

SHARD = 16


def same(items: int, variants: int, *parents: str, shift: int = 0, each: bool = False) -> dict[Key, list[Any]]:
    """Every variant of every item, made from the item's own parents: variant 0, or with `each` the own one + shift."""
    return {
        (item, variant): [(item, parent, variant + shift if each else 0) for parent in parents]
        for item in range(items)
        for variant in range(variants)
    }


def write_graph(out: Path, spine: Sequence[Mapping[str, Any]], kinds: Mapping[str, Made] | None = None) -> Graph:
    """A graph of these items (columns of the items table; `item_ix` and `item_id` are filled in) and kinds."""
    files, kinds = files_at(out), kinds or {}
    workspace = Workspace.create(files, "test")
    document = GraphDocument(source=SourceDocument(name="rows", params={}), shard_size=SHARD)
    files.publish("graph.json", f"{document.model_dump_json()}\n".encode(), workspace)
    _write_kind(files, workspace, "image", same(len(spine), 1), spine)
    for kind, made in kinds.items():
        _write_kind(files, workspace, kind, made, spine)
    workspace.close()
    return Graph.open(out)


def _write_kind(files: Files, workspace: Workspace, kind: str, made: Made, spine: Sequence[Mapping[str, Any]]) -> None:
    annotator = "source:rows" if kind == "image" else f"of_{kind.replace('.', '_')}"
    parents = sorted({parent for row in made.values() for _, parent, _ in row})
    lineage = LineageDocument(
        annotator=annotator, code_version=1, params={}, model=None, codec={kind: kind_of(kind).codec or ""},
        schema_version=1, parents=dict.fromkeys(parents, "v0"),
    )  # fmt: skip
    version = version_of(lineage)
    files.publish(f"lineage/{version}.json", f"{lineage.model_dump_json()}\n".encode(), workspace)
    variants = 1 + max((variant for _, variant in made), default=0)
    for index, start in enumerate(range(0, len(spine), SHARD)):
        shard = Shard(index=index, start=start, stop=min(start + SHARD, len(spine)))
        unit = Unit(annotator=annotator, version=version, shard=shard)
        items = [{**_item(item), **spine[item]} for item in range(shard.start, shard.stop)]
        commit = CommitDocument(
            unit=unit, revision=0, use="tests:None", config={}, lineage=lineage, variants={kind: variants}, parents=[],
            items=write_items(files, workspace, unit, items) if kind == "image" else None,
            parts=[], counts={}, reasons={}, rows_digest="",
        )  # fmt: skip
        rows = [
            _row(kind, item, variant, made) for item in range(shard.start, shard.stop) for variant in range(variants)
        ]
        publish_unit(files, workspace, rows=rows, previous=None, document=commit)
    change_head(files, workspace, lambda head: {**head, kind: Live(annotator=annotator, version=version)})


def _item(item_ix: int) -> dict[str, Any]:
    return {"item_ix": item_ix, "item_id": hashlib.md5(str(item_ix).encode()).hexdigest(), "key": f"{item_ix:05d}"}


def _row(kind: str, item_ix: int, variant: int, made: Made) -> Outcome:
    row = Outcome(
        item_ix=item_ix, item_id=_item(item_ix)["item_id"], kind=kind, variant=variant, status="skipped", reason="no"
    )
    if (item_ix, variant) in made:
        row.status, row.reason, row.data = "ok", None, f"{kind} {item_ix} {variant}".encode()
        row.format, row.width, row.height, row.content_hash = "png", 1, 1, checksum(row.data)
        row.parents = tuple(Parent(*parent, "v0", "0") for parent in made[item_ix, variant])
    return row
