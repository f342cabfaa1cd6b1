"""Nodes of another graph that would come out the same here: taken instead of computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from graphbuild.contracts import Item, Outcome
from graphbuild.engine.rows import Key
from graphbuild.hashing import canonical_json
from graphbuild.store.commits import Commit
from graphbuild.store.edges import EdgeRows
from graphbuild.store.graph import Graph
from graphbuild.store.nodes import read_node

Place = tuple[EdgeRows, int]
_FACTS = ("status", "reason", "format", "width", "height", "content_hash", "score", "attrs")


@lru_cache(maxsize=2)
def reusable(url: str) -> Reusable:
    """The graph at `url`, opened once in a process.

    Raises:
        GraphError: no graph there.
    """
    return Reusable(Graph.open(url))


class Reusable:
    """A graph whose nodes may be taken: of the same annotator and version, made from parents with the same content, for
    an item with the same id (and so with the same seed) and the same facts."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._places: dict[tuple[str, str], dict[tuple[str, str, int], Place]] = {}

    def rows(
        self, producer: tuple[str, str], planned: Iterable[Outcome], items: Mapping[int, Item], facts: Sequence[str]
    ) -> Iterator[Outcome]:
        """Those of the planned rows that the graph holds, with their bytes, checked; attribute `reused` names the
        snapshot that they are from."""
        places = self._placed(producer)
        for row in planned:
            item = items[row.item_ix]
            place = places.get((item.item_id, row.kind, row.variant))
            if place is not None and self._same_item(item, facts) and _same_parents(place, row):
                yield self._taken(row, *place)

    def _taken(self, planned: Outcome, rows: EdgeRows, number: int) -> Outcome:
        said: dict[str, Any] = {name: rows.value(number, name) for name in _FACTS}
        attrs = canonical_json({**json.loads(said.pop("attrs") or "{}"), "reused": self.graph.digest})
        if said["status"] != "ok":
            return replace(planned, **said)
        return replace(planned, data=read_node(self.graph.fs, rows, number).bytes, attrs=attrs, **said)

    def _same_item(self, item: Item, facts: Sequence[str]) -> bool:
        theirs = self._items.get(item.item_id)
        return theirs is not None and all(theirs[name] == getattr(item, name) for name in facts)

    @cached_property
    def _items(self) -> dict[str, dict[str, object]]:
        return {row["item_id"]: row for row in self.graph.items().to_pylist()}

    def _placed(self, producer: tuple[str, str]) -> dict[tuple[str, str, int], Place]:
        if producer not in self._places:
            ids = {row["item_ix"]: item_id for item_id, row in self._items.items()}
            places: dict[tuple[str, str, int], Place] = {}
            for commit in self.graph.unit_commits(*producer):
                places |= self._of(commit, ids)
            self._places[producer] = places
        return self._places[producer]

    def _of(self, commit: Commit, ids: Mapping[object, str]) -> dict[tuple[str, str, int], Place]:
        rows = EdgeRows(self.graph.fs, commit)
        return {
            (ids[row.item_ix], row.kind, row.variant): (rows, number)
            for number, row in enumerate(rows.outcomes())
            if row.status != "failed" and row.item_ix not in self.graph.excluded_items
        }


def taken_rows(
    url: str, producer: tuple[str, str], wanted: Mapping[Key, Outcome], items: Mapping[int, Item], facts: Sequence[str]
) -> list[Outcome]:
    """The rows that the graph at `url` holds of those that are wanted."""
    return list(reusable(url).rows(producer, wanted.values(), items, facts))


def _same_parents(place: Place, planned: Outcome) -> bool:
    rows, number = place
    recorded: Any = rows.value(number, "parents")
    theirs = [(p["kind"], p["variant"], p["content_hash"]) for p in recorded or ()]
    return theirs == [(p.kind, p.variant, p.content_hash) for p in planned.parents]
