"""Graphs that are sampled together: one picture is on one side of a split in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.hashing import digest_of
from graphbuild.kinds.registry import Kind
from graphbuild.store import leakage
from graphbuild.store.cache import cached_array
from graphbuild.store.graph import Graph
from graphbuild.tasks.paths import PathSet
from graphbuild.tasks.variants import Nodes

Sides = NDArray[np.int8]


class Together:
    """The graphs and task lists of a sampler, or of all samplers of a mixture.

    Args:
        graphs: each once. Where several have a picture, the first decides its side.
        lists: their task lists.
    """

    def __init__(self, graphs: Sequence[Graph], lists: Sequence[PathSet]) -> None:
        self.graphs = tuple(graphs)
        self.kinds: tuple[Kind, ...] = tuple(kind for listed in lists for path in listed.paths for kind in path.own)
        self._sides: dict[float, list[Sides]] = {}

    def beside(self, graph: Graph) -> list[str]:
        """Digests of the other graphs."""
        return [other.digest for other in self.graphs if other is not graph]

    def sides(self, graph: Graph, validation: float) -> Sides:
        """The side of every item of a graph, for all kinds: what one list trains on, another must not validate on."""
        if validation not in self._sides:
            self._sides[validation] = _sides(self.graphs, validation)
        return self._sides[validation][self.graphs.index(graph)]


def links(graph: Graph, kinds: Sequence[str]) -> leakage.Pairs:
    """Items of one graph that show the same thing, or of which nodes of these kinds were made from each other."""
    return np.concatenate([leakage.item_links(graph), Nodes(graph).crossings(kinds)])


def _sides(graphs: Sequence[Graph], validation: float) -> list[Sides]:
    starts = np.cumsum([0, *(graph.num_items for graph in graphs)])
    found = [links(graph, list(graph.head)) + start for graph, start in zip(graphs, starts, strict=False)]
    items = pa.concat_tables(_numbered(graph, int(start)) for graph, start in zip(graphs, starts, strict=False))
    if len(graphs) > 1:
        name = digest_of([graph.digest for graph in graphs])[:16]
        found.append(cached_array(name, "links", np.int64, (None, 2), lambda: leakage.links_of(items)))
    sides = leakage.sides(int(starts[-1]), np.concatenate(found), items, validation)
    return np.split(sides, starts[1:-1])


def _numbered(graph: Graph, start: int) -> pa.Table:
    """What links items, numbered from `start`. Groups of different sources have nothing to do with each other."""
    items = graph.items()
    groups = pc.binary_join_element_wise(items["source"], items["group"], "\n")
    columns = {"item_ix": pc.add(items["item_ix"], start), "item_id": items["item_id"], "group": groups}
    return pa.table({**columns, "sha256": items["sha256"], "phash": items["phash"]})
