"""Pools: the items that can serve each path after filters, splits and held-out tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from graphbuild.config.lookup import suggestion
from graphbuild.errors import GraphError
from graphbuild.hashing import canonical_json, checksum
from graphbuild.store import leakage as groups
from graphbuild.store.conditions import SCORE, matching, of_items, ranges_in
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.counter_rng import Bits
from graphbuild.tasks.item_draws import LENGTH, Pool, Scenes
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.together import Together, links
from graphbuild.tasks.variants import (
    Choices,
    Flags,
    Items,
    Nodes,
    Variants,
    Wanted,
    cell_roles,
    choices,
    components,
    roles_of,
)

_FINEST = 1000
"""Steps of an item's weight: the best item of a pool has so many."""
_SIDES = {"train": groups.TRAIN, "validation": groups.VALIDATION}


@dataclass(frozen=True, eq=False)
class Bound:
    """Cells of a path whose variants are chosen together.

    Attributes:
        cells: (index of a role in `choices.roles`, cell that shows it).
        text: for the text of the path's content: the index of a role that was made from it, and which variant of the
            text each node of that role was made from (items x variants). None if the text has no variants to follow.
    """

    choices: Choices
    cells: tuple[tuple[int, int], ...]
    text: tuple[int, Variants] | None

    def choose(self, rows: Items, bits: Bits, pinned: int | None) -> Iterator[tuple[int | None, Variants]]:
        """(cell, its variant in every row), then (None, the variant of the text); rows of item -1 get any."""
        items = np.where(rows < 0, rows[:, :1], rows).ravel()
        choice = self.choices.draw(items, bits.ravel()) if pinned is None else self.choices.having(items, pinned)
        for role, cell in self.cells:
            yield cell, self.choices.of(role, items, choice).reshape(rows.shape)
        if self.text is not None:
            role, table = self.text
            yield None, np.maximum(table[items, self.choices.of(role, items, choice)], 0).reshape(rows.shape)


@dataclass(frozen=True, eq=False)
class Served:
    """The items that walks of one path are drawn from.

    Attributes:
        rows: relative chances of 1, 2, ... rows, as far as there are items for them.
    """

    pool: Pool | Scenes
    bound: tuple[Bound, ...]
    rows: tuple[float, ...]


class Stock:
    """The items of a graph that can serve each path of a list, under the filters of a configuration.

    Args:
        together: what is sampled together with it, itself included; it decides the sides of a split.
    """

    def __init__(
        self, graph: Graph, paths: PathSet, config: SamplerConfig, together: Together | None = None
    ) -> None:  # fmt: skip
        self.graph, self.config, self.nodes, self.kind_where = graph, config, Nodes(graph), paths.kind_where
        self.together = together or Together([graph], [paths])
        self.kinds = sorted({role.kind for path in paths.paths for role in roles_of(path)})
        self._pools: dict[str, Pool] = {}
        self._filtered: dict[tuple[Wanted, ...], Nodes] = {(): self.nodes}
        self._choices: dict[tuple[Any, ...], Choices] = {}
        self._filters: dict[str, Flags] = {}

    def served(self, path: TaskPath) -> Served:
        """The items that have every node of a path in consistent variants, and how to choose those."""
        able, bound = self._allowed(path), list[Bound]()
        roles, nodes = roles_of(path), self._nodes_of(path)
        if not all(nodes.has(role.kind) for role in roles) or self._unscored(path):
            return self._served(path, np.zeros(len(able), bool), ())
        plain, together = components(nodes, roles)
        for role in plain:
            able &= nodes.present(role.kind)[:, 0]
        for members in together:
            known = (nodes.wanted, members)
            if known not in self._choices:
                self._choices[known] = choices(nodes, members)
            able &= self._choices[known].counts > 0
            bound.append(self._bound(path, self._choices[known]))
        return self._served(path, able, tuple(bound))

    def _served(self, path: TaskPath, able: Flags, bound: tuple[Bound, ...]) -> Served:
        if path.views is None:
            pool = self._pool(able, self._weight(path))
            return Served(pool, bound, self.config.rows[: pool.groups])
        fewest, most = path.views
        scenes = Scenes(able, self._named_groups, fewest)
        return Served(scenes, bound, ((0.0,) * (fewest - 1) + (1.0,) * (most - fewest + 1))[: scenes.largest])

    def counts(self, path: TaskPath) -> dict[str, int]:
        """Number of items that have each kind of a path, and that pass the filters (`allowed`)."""
        kinds = sorted({role.kind for role in roles_of(path)})
        nodes = self._nodes_of(path)
        has = {kind: int(nodes.present(kind).any(axis=1).sum()) if nodes.has(kind) else 0 for kind in kinds}
        if path.where or self.config.where or self.config.split or self._of_kinds(path) or self.graph.excluded:
            has["allowed"] = int(self._allowed(path).sum())
        return has

    def lacks(self, path: TaskPath) -> list[str]:
        """Why a path is not served, in a few words each; nothing if items have all that it needs."""
        if not self._in_use.any():
            return [f"no item is left by {' and '.join(self._asked())}"]
        counts = self.counts(path)
        if unscored := self._unscored(path):
            return unscored
        absent = [kind for kind, count in counts.items() if not count and kind != "allowed"]
        if absent:
            return [self._absent(kind) for kind in absent]
        if not counts.get("allowed", 1):
            kinds = [f"the conditions of {kind}" for kind in self.kind_where if kind in path.nodes]
            own = [f"where {canonical_json(path.where)}"] if path.where else []
            return [f"no item is left by {' and '.join([*self._asked(), *own, *kinds])}"]
        if self.served(path).pool.size:
            return []
        return [f"no group has {path.views[0]} such items" if path.views else "no item has its kinds in variants that "
                "belong together"]  # fmt: skip

    def _absent(self, kind: str) -> str:
        there = self.nodes.has(kind) and self.nodes.present(kind).any()
        return f"no {kind} whose scores are in range" if there else f"no {kind}"

    def _nodes_of(self, path: TaskPath) -> Nodes:
        """The nodes whose scores are as a path, its kinds and the configuration want them."""
        wanted = (*self._wanted(self.config.where), *self._wanted(path.where or {}), *self._wanted_of_kinds(path))
        if wanted not in self._filtered:
            self._filtered[wanted] = Nodes(self.graph, wanted)
        return self._filtered[wanted]

    def _wanted_of_kinds(self, path: TaskPath) -> list[Wanted]:
        asked = {kind: where for kind, where in self.kind_where.items() if kind in path.nodes}
        return [wanted for kind, where in asked.items() for wanted in self._wanted(where, kind)]

    def _wanted(self, where: Mapping[str, Any], kind: str | None = None) -> list[Wanted]:
        """Conditions on scores.

        Raises:
            GraphError: the graph has no such score.
        """
        known = sorted({name.partition(f".{SCORE}")[2] for name in self.graph.head if f".{SCORE}" in name})
        found = [Wanted(name, *bounds, kind) for name, bounds in ranges_in(where).items()]
        for asked in found:
            if asked.name not in known:
                told = f"it has: {', '.join(known) or 'none'}; scores are made by annotators, see docs/annotators.md"
                raise GraphError(f"{self.graph.url} has no score {asked.name!r}{suggestion(asked.name, known)}; {told}")
        return found

    def _unscored(self, path: TaskPath) -> list[str]:
        """Scores that a path asks for and none of its kinds has."""
        kinds = {role.kind for role in roles_of(path)}
        asked = [*self._wanted(path.where or {}), *self._wanted_of_kinds(path)]
        return [f"no {wanted.kind or 'kind of it'} with a score {wanted.name}" for wanted in asked
                if not any(wanted.of(kind) in self.graph.head for kind in kinds)]  # fmt: skip

    def _asked(self) -> list[str]:
        """What leaves items out of every path."""
        config = self.config
        asked = {f"where {canonical_json(config.where)}": config.where, f"split {config.split}": config.split,
                 "exclude": self.graph.excluded}  # fmt: skip
        return [name for name, given in asked.items() if given]

    @cached_property
    def bridging(self) -> int:
        """Number of items that are never drawn because they link leakage groups of both sides of the split."""
        return 0 if self._sides is None else int((self._sides == groups.BRIDGE).sum())

    def _bound(self, path: TaskPath, chosen: Choices) -> Bound:
        found = [(chosen.roles.index(role), cell) for cell, role in cell_roles(path).items() if role in chosen.roles]
        return Bound(chosen, tuple(found), self._text(path, dict(found)))

    def _text(self, path: TaskPath, cells: Mapping[int, int]) -> tuple[int, Variants] | None:
        """The role to ask for the variant of the content's text: that of the cell it describes, or any made from it."""
        content = path.content
        if content is None:
            return None
        made = [(path.cells[cell] != content.of, role, self.nodes.variants_of(content.source, path.kinds[cell]))
                for role, cell in cells.items()]  # fmt: skip
        found = sorted((other, role, table) for other, role, table in made if table is not None)
        return found[0][1:] if found else None

    @cached_property
    def _in_use(self) -> Flags:
        """Items that meet the conditions of the configuration, are on its side and not excluded."""
        allowed = np.ones(self.nodes.num_items, bool)
        allowed[list(self.graph.excluded_items)] = False
        if self.config.where:
            allowed &= self._meeting(of_items(self.config.where))
        if self._sides is not None:
            allowed &= self._sides == _SIDES[str(self.config.split)]
        return allowed

    def _allowed(self, path: TaskPath) -> Flags:
        """Of these, the items that meet the conditions of a path and of its kinds."""
        allowed = self._in_use.copy()
        if path.where:
            allowed &= self._meeting(of_items(path.where))
        for where in self._of_kinds(path):
            allowed &= self._meeting(of_items(where), known=False)
        return allowed

    def _of_kinds(self, path: TaskPath) -> list[Mapping[str, Any]]:
        return [where for kind, where in self.kind_where.items() if kind in path.nodes]

    def _meeting(self, where: Mapping[str, Any], *, known: bool = True) -> Flags:
        name = canonical_json([where, known])
        if name not in self._filters:
            self._filters[name] = np.zeros(self.nodes.num_items, bool)
            self._filters[name][self._item_ix[matching(self._items, where, known=known)]] = True
        return self._filters[name]

    def _pool(self, able: Flags, weight: Items | None) -> Pool:
        if weight is not None:
            able = able & (weight > 0)
        name = checksum(np.packbits(able)) + ("" if weight is None else checksum(weight))
        if name not in self._pools:
            self._pools[name] = Pool(able, self._groups, weight)
        return self._pools[name]

    def _weight(self, path: TaskPath) -> Items | None:
        """The weight of each item of the graph in steps of the best one's; None if all weigh alike."""
        if self.config.item_weight is None:
            return None
        (wanted,) = self._wanted({self.config.item_weight: [0, None]})
        known = [scored for kind in path.kinds if (scored := wanted.of(kind)) in self.graph.head and scored]
        if not known:
            return None
        scores = [np.nan_to_num(self.graph.scores(kind)).clip(0).max(axis=1) for kind in known]
        lowest = np.min(scores, axis=0)
        finest = min(_FINEST, LENGTH // len(lowest))
        steps: Items = np.ceil(lowest / (lowest.max(initial=0) or 1.0) * finest).astype(np.int64)
        return steps

    @cached_property
    def _groups(self) -> Items:
        return groups.components(self.nodes.num_items, links(self.graph, self.kinds))

    @cached_property
    def _named_groups(self) -> Items:
        """The group that the source gave each item, as a number; an item without one has its own."""
        labels = np.arange(self.nodes.num_items)
        names = self._items.column("group").to_pylist()
        first: dict[str, int] = {}
        for item, name in zip(self._item_ix.tolist(), names, strict=True):
            if name is not None:
                labels[item] = first.setdefault(name, item)
        return labels

    @cached_property
    def _sides(self) -> Any:
        """The sides at this snapshot; None if items of both are drawn."""
        return None if self.config.split is None else self.together.sides(self.graph, self.config.validation)

    @cached_property
    def _items(self) -> pa.Table:
        return self.graph.items()

    @property
    def _item_ix(self) -> Items:
        return np.asarray(self._items.column("item_ix").to_numpy())
