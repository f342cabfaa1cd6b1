"""What is exported of a graph: chosen items with their nodes, and a node as a file that anybody reads."""

from __future__ import annotations

import io
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.config.lookup import suggestion
from graphbuild.contracts import Shard
from graphbuild.errors import GraphError, MissingNode
from graphbuild.images.codecs import DRAWN, Pixels
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS, parents_of
from graphbuild.store.conditions import matching
from graphbuild.store.graph import Graph

ENDINGS: Mapping[str, str] = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "text": "txt", "pixels": "png"}
"""Format of a node -> ending of its file, where the two differ."""


@dataclass(frozen=True)
class ExportItem:
    """One item: its row of the items table, and kind -> nodes by variant, None where there is none."""

    row: Mapping[str, Any]
    nodes: Mapping[str, Sequence[Node | None]]

    @property
    def name(self) -> str:
        """A file name for it, without an ending."""
        return f"{self.row['item_ix']:08d}"

    @property
    def meta(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.row["meta"] or "{}")
        return found


@dataclass(frozen=True)
class Selection:
    """The part of a graph to export.

    Attributes:
        kinds: which kinds, the picture first; computed ones too, if they are named.
        where: conditions on items, as in a task list; `split` is the source's own.
    """

    graph: Graph
    kinds: tuple[str, ...]
    where: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, kinds: Sequence[str] = (), where: Mapping[str, Any] | None = None) -> Selection:
        """Raises:
        GraphError: the graph has no such kind.
        """
        counts = graph.kinds()
        servable = [kind for kind in KINDS if KINDS[kind].is_computed and counts.keys() >= set(parents_of(kind))]
        for kind in kinds:
            if kind not in counts and kind not in servable:
                raise GraphError(
                    f"{graph.url} has no kind {kind!r}{suggestion(kind, counts)}; it has: {', '.join(counts)}"
                )
        chosen = list(kinds) or [kind for kind, count in counts.items() if count]
        return cls(graph, tuple(sorted(chosen, key=lambda kind: kind != "image")), dict(where or {}))

    @cached_property
    def variants(self) -> dict[str, int]:
        """Kind -> how many variants it has."""
        return {kind: presence.shape[1] for kind, presence in self._presence.items()}

    @cached_property
    def _presence(self) -> dict[str, NDArray[np.bool_]]:
        found: dict[str, NDArray[np.bool_]] = {}
        for kind in self.kinds:
            stored = [kind] if kind in self.graph.head else list(parents_of(kind))
            found[kind] = self.graph.presence(stored[0])[:, : None if stored == [kind] else 1].copy()
            for parent in stored[1:]:
                found[kind] &= self.graph.presence(parent)[:, :1]
        return found

    def codec(self, kind: str) -> str:
        """How a kind is stored; `png` for a computed one, as it is exported."""
        graph = self.graph
        return graph.commits(kind)[0].document.lineage.codec[kind] if kind in graph.head else "png"

    @property
    def encodes(self) -> bool:
        """Whether files are made, and not only copied: of computed kinds, label maps, and values that are drawn."""
        return any(kind not in self.graph.head or self.codec(kind) in ("labels", *DRAWN) for kind in self.kinds)

    @cached_property
    def _scored(self) -> set[str]:
        """Kinds some of whose nodes have a score: the edges of others need not be looked at."""
        stored = [kind for kind in self.kinds if kind in self.graph.head]
        return {kind for kind in stored if (edges := self.graph.edges(kind)).column("score").null_count < len(edges)}

    def facts_of(self, node: Node) -> dict[str, Any]:
        """What others should know of a node: who made it, its names and palette, its score."""
        facts: dict[str, Any] = {"version": node.version, **node.attrs}
        if node.kind in self._scored and node.edge and (score := node.edge.get("score")) is not None:
            facts["score"] = score
        return facts

    def counts(self) -> dict[str, int]:
        """Kind -> nodes that are exported."""
        chosen = [row["item_ix"] for row in self.rows]
        return {kind: int(presence[chosen].sum()) for kind, presence in self._presence.items()}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The items that are exported: not excluded, with a picture, and meeting the conditions."""
        table = self.graph.items()
        met = matching(table, self.where) if self.where else np.ones(len(table), bool)
        first: NDArray[np.bool_] = np.any(self._presence[self.kinds[0]], axis=1)
        found = [
            row
            for row, holds in zip(table.to_pylist(), met, strict=True)
            if holds and row["item_ix"] not in self.graph.excluded_items and first[row["item_ix"]]
        ]
        return sorted(found, key=itemgetter("item_ix"))

    def rows_of(self, shard: Shard) -> list[dict[str, Any]]:
        """Those of one shard."""
        edges = (bisect_left(self.rows, edge, key=itemgetter("item_ix")) for edge in (shard.start, shard.stop))
        return self.rows[slice(*edges)]

    def items(self, shard: Shard) -> Iterator[ExportItem]:
        """The items of one shard, each with its nodes read and verified."""
        read = {parent for kind in self.kinds for parent in parents_of(kind)} & set(self.graph.head)
        for parent in read:
            self.graph.offsets(parent)  # a read then takes a third of the time
        for row in self.rows_of(shard):
            yield ExportItem(row, {kind: self._nodes(row["item_ix"], kind) for kind in self.kinds})

    def _nodes(self, item_ix: int, kind: str) -> list[Node | None]:
        def read(variant: int) -> Node | None:
            try:
                return self.graph.read(item_ix, kind, variant)
            except MissingNode:
                return None

        return [read(at) if there else None for at, there in enumerate(self._presence[kind][item_ix].tolist())]


def file_of(node: Node) -> tuple[bytes, str]:
    """A node as the bytes of a file and its ending: stored bytes as they are, label maps as PNG with their palette,
    documents drawn, computed kinds as PNG."""
    if node.codec == "labels":
        return _palette_png(node.values(), node.attrs.get("palette") or []), "png"
    if node.codec in DRAWN or node.format == "pixels":
        return _png(node.array()), "png"
    form = node.format.partition("-")[0]
    return node.bytes, ENDINGS.get(form, form)


def is_text(node: Node) -> bool:
    """Whether it has no picture."""
    return node.format in ("text", "json") and node.codec not in DRAWN


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def _palette_png(labels: Pixels, palette: Sequence[Sequence[int]]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(labels).convert("L")
    picture.putpalette([part for colour in palette for part in colour] or [0, 0, 0])
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()
