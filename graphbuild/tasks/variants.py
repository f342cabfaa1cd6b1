"""Consistent variants within a row, from derivation edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import GraphError
from graphbuild.kinds.registry import parents_of
from graphbuild.store.conditions import SCORE
from graphbuild.store.edges import NodeParents, cached_crossings, cached_node_parents, parent_kinds
from graphbuild.store.graph import Graph
from graphbuild.store.leakage import Pairs
from graphbuild.tasks.counter_rng import Bits, below
from graphbuild.tasks.paths import TaskPath

Items = NDArray[np.int64]
Flags = NDArray[np.bool_]
Variants = NDArray[np.int16]

MAX_CHOICES = 4096
"""Most combinations of variants that a path may have."""


@dataclass(frozen=True)
class Wanted:
    """A range that a score of nodes has to lie in.

    Attributes:
        kind: whose score it is; None for every kind that has it.
    """

    name: str
    low: float
    high: float
    kind: str | None = None

    def of(self, kind: str) -> str | None:
        """The kind that holds this score of the nodes of a kind; None if it is not asked of that kind."""
        return f"{kind}.{SCORE}{self.name}" if self.kind in (None, kind) else None


class Nodes:
    """Presence and derivation of stored kinds, at one snapshot.

    Args:
        wanted: ranges of scores; a node outside of one counts as absent.
    """

    def __init__(self, graph: Graph, wanted: Sequence[Wanted] = ()) -> None:
        self.graph, self.num_items, self.wanted = graph, graph.num_items, wanted
        self._present: dict[str, Flags] = {}
        self._parents: dict[str, tuple[list[str], NodeParents]] = {}
        self._ancestors: dict[str, dict[str, Variants]] = {}

    def has(self, kind: str) -> bool:
        """Whether the kind is live."""
        return kind in self.graph.head

    def present(self, kind: str) -> Flags:
        """Which nodes exist: items x variants."""
        if kind not in self._present:
            self._present[kind] = self._good(kind, self.graph.presence(kind))
        return self._present[kind]

    def _good(self, kind: str, present: Flags) -> Flags:
        """Those of these nodes whose scores are in range; without a score none is."""
        for asked in self.wanted:
            if (scored := asked.of(kind)) in self.graph.head and scored is not None:
                scores = self.graph.scores(scored)
                present = present & (scores >= asked.low) & (scores <= asked.high)
        return present

    def variants(self, kind: str) -> int:
        """How many variants of a kind are planned."""
        return int(self.present(kind).shape[1])

    def ancestors(self, kind: str) -> dict[str, Variants]:
        """Kind with variants that `kind` was made from, directly or not -> which variant of it: items x variants of
        `kind`; -1 if no edge records it.
        """
        if kind not in self._ancestors:
            self._ancestors[kind] = {}  # kinds of one source may be each other's parents
            self._ancestors[kind] = self._bound_to(kind)
        return self._ancestors[kind]

    def variants_of(self, source: str, kind: str) -> Variants | None:
        """Which variant of the kind `source` each node of `kind` was made from, items x variants, or of a kind that an
        annotator makes together with it, as a caption and an instruction; None if neither is so."""
        found, head = self.ancestors(kind), self.graph.head
        if source in found or not self.has(source) or head[source].annotator.startswith("source:"):
            return found.get(source)
        return next((table for made, table in found.items() if head[made] == head[source]), None)

    def crossings(self, kinds: Iterable[str]) -> Pairs:
        """Items linked by a node of one, of these kinds or their ancestors, that was made from a node of the other."""
        found, waiting, seen = [np.empty((0, 2), np.int64)], list(kinds), set[str]()
        while waiting:
            kind = waiting.pop()
            if kind in seen or not self.has(kind):
                continue
            seen.add(kind)
            if names := self._parent_kinds(kind):
                waiting += names
                graph = self.graph
                found.append(cached_crossings(graph.digest, graph.fs, graph.commits(kind), kind))
        return np.concatenate(found)

    def _bound_to(self, kind: str) -> dict[str, Variants]:
        names = [name for name in self._parent_kinds(kind) if self.has(name) and name != kind]
        near = [name for name in names if self.variants(name) > 1]
        if not near and not any(self.ancestors(name) for name in names):
            return {}  # the edges need not be read
        tables = {name: self._table(kind, name) for name in names}
        if self.graph.live(kind).annotator.startswith("source:"):  # which may have none
            tables = {name: table for name, table in tables.items() if (table >= 0).any()}
        bound = {name: tables[name] for name in near if name in tables}
        for name, table in tables.items():
            for far, of_name in self.ancestors(name).items():
                via = np.take_along_axis(of_name, np.maximum(table, 0), axis=1)
                bound.setdefault(far, np.where(table < 0, np.int16(-1), via))
        return bound

    def _table(self, kind: str, parent: str) -> Variants:
        names, rows = self._recorded(kind)
        rows = rows[(rows[:, 3] == names.index(parent)) & (rows[:, 0] == rows[:, 2])][::-1]  # the first recorded wins
        table = np.full((self.num_items, self.variants(kind)), -1, np.int16)
        table[rows[:, 0], rows[:, 1]] = rows[:, 4]
        return table

    def _recorded(self, kind: str) -> tuple[list[str], NodeParents]:
        if kind not in self._parents:
            graph, names = self.graph, self._parent_kinds(kind)
            rows = cached_node_parents(graph.digest, graph.fs, graph.commits(kind), kind) if names else _NO_PARENTS
            self._parents[kind] = names, rows
        return self._parents[kind]

    def _parent_kinds(self, kind: str) -> list[str]:
        commits = self.graph.commits(kind)
        return parent_kinds(commits[0]) if commits else []


_NO_PARENTS: NodeParents = np.empty((0, 5), np.int64)


@dataclass(frozen=True)
class Role:
    """A stored node that a row of a path needs: a cell's, or a parent of a computed cell, which is always variant 0."""

    kind: str
    name: str = ""
    pinned: bool = False


def cell_roles(path: TaskPath) -> dict[int, Role]:
    """The role of each cell that is a stored node."""
    pinned = _computed_parents(path)
    return {
        cell: Role(kind, path.cells[cell].partition(":")[2], kind in pinned)
        for cell, kind in enumerate(path.kinds)
        if parents_of(kind) == (kind,)
    }


def roles_of(path: TaskPath) -> list[Role]:
    """What a row of a path needs: its stored cells, and the parents of its computed cells."""
    roles = list(cell_roles(path).values())
    return roles + [Role(kind, pinned=True) for kind in sorted(_computed_parents(path) - {role.kind for role in roles})]


def _computed_parents(path: TaskPath) -> set[str]:
    return {parent for kind in path.kinds for parent in parents_of(kind) if parent != kind}


@dataclass(frozen=True, eq=False)
class Choices:
    """The valid combinations of variants of roles that depend on each other.

    Attributes:
        heads: indices of the roles whose variant follows from no other role.
        variants: for each role, (items or 1) x choices; 1 if all items agree.
        counts: number of choices of each item.
        order: items x choices, the choices that an item has first; None if every item has all of them or none.
    """

    roles: tuple[Role, ...]
    heads: tuple[int, ...]
    variants: tuple[Variants, ...]
    counts: NDArray[np.int16]
    order: Variants | None

    def draw(self, items: Items, bits: Bits) -> NDArray[np.int64]:
        """A uniform choice for each item."""
        drawn = below(bits, self.counts[items].astype(np.int64))
        return drawn if self.order is None else self.order[items, drawn].astype(np.int64)

    def of(self, role: int, items: Items, choice: NDArray[np.int64]) -> Variants:
        """The variant of a role in each item under its choice."""
        table = self.variants[role]
        return table[0, choice] if len(table) == 1 else table[items, choice]

    def offered(self, item: int) -> NDArray[np.int64]:
        """All choices of one item."""
        numbers = np.arange(self.counts[item])
        return numbers if self.order is None else self.order[item, numbers].astype(np.int64)

    def having(self, items: Items, variant: int) -> NDArray[np.int64]:
        """The first choice of each item in which every head is this variant.

        Raises:
            ValueError: an item has none; the message lists what it has.
        """
        found = []
        for item in items.tolist():
            offered = self.offered(item)
            heads = np.stack([self.of(head, np.full(len(offered), item), offered) for head in self.heads])
            fitting = offered[(heads == variant).all(axis=0)]
            if not len(fitting):
                kinds = ", ".join(self.roles[head].kind for head in self.heads)
                raise ValueError(f"variant: {variant}: item {item} offers {heads.T.tolist()} of {kinds}")
            found.append(fitting[0])
        return np.array(found, np.int64)


def components(nodes: Nodes, roles: list[Role]) -> tuple[list[Role], list[tuple[Role, ...]]]:
    """Roles without a choice, and sets of roles that share a kind with variants, directly or by derivation."""
    kinds = [role.kind for role in roles]
    plain, found = [], list[tuple[set[str], list[Role]]]()
    for role in roles:
        shares = set(nodes.ancestors(role.kind))
        if nodes.variants(role.kind) > 1 or kinds.count(role.kind) > 1:
            shares.add(role.kind)
        if not shares:
            plain.append(role)
            continue
        members = [role]
        for other in [other for other in found if other[0] & shares]:
            found.remove(other)
            shares, members = shares | other[0], [*other[1], *members]
        found.append((shares, members))
    return plain, [tuple(members) for _, members in found]


def choices(nodes: Nodes, roles: tuple[Role, ...]) -> Choices:
    """The choices of each item for dependent roles: a role takes the variant that a role made from its kind recorded.

    Raises:
        GraphError: there are more than `MAX_CHOICES`.
    """
    followed = {role: [other for other in roles if _follows(nodes, roles, role, other)] for role in roles}
    ordered: list[Role] = []
    while len(ordered) < len(roles):
        ordered += [role for role in roles if role not in ordered and set(followed[role]) <= set(ordered)]
    heads = [role for role in ordered if not followed[role]]
    ranges = [range(1 if role.pinned else nodes.variants(role.kind)) for role in heads]
    combinations = list(product(*ranges))
    if len(combinations) > MAX_CHOICES:
        raise GraphError(f"{' and '.join(role.kind for role in heads)}: {len(combinations)} ways to choose variants; "
                         f"allowed: {MAX_CHOICES}")  # fmt: skip
    able, chosen = zip(*(_combine(nodes, roles, ordered, followed, dict(zip(heads, combination, strict=True)))
                         for combination in combinations), strict=True)  # fmt: skip
    valid = np.stack(able, axis=1)
    tables = [_compact(np.stack([at[role] for at in chosen], axis=1), valid) for role in roles]
    counts = valid.sum(axis=1).astype(np.int16)
    whole = bool(((counts == 0) | (counts == len(combinations))).all())
    order = None if whole else np.argsort(~valid, axis=1, kind="stable").astype(np.int16)
    return Choices(roles, tuple(roles.index(role) for role in heads), tuple(tables), counts, order)


def _follows(nodes: Nodes, roles: tuple[Role, ...], role: Role, other: Role) -> bool:
    """Whether `other` was made from the kind of `role`; of two roles of that kind, from the one of the same name."""
    if role.kind not in nodes.ancestors(other.kind):
        return False
    return role.name == other.name or sum(role.kind == any_.kind for any_ in roles) == 1


def _combine(
    nodes: Nodes, roles: tuple[Role, ...], ordered: list[Role], followed: Mapping[Role, list[Role]],
    heads: Mapping[Role, int],
) -> tuple[Flags, dict[Role, Variants]]:  # fmt: skip
    """Which items have this combination of the heads' variants, and what the other roles are then."""
    able = np.ones(nodes.num_items, bool)
    chosen: dict[Role, Variants] = {}
    for role in ordered:
        bound = [_made_from(nodes, role.kind, other, chosen[other]) for other in followed[role]]
        chosen[role] = bound[0] if bound else np.full(nodes.num_items, heads[role], np.int16)
        for variant in bound[1:]:
            able &= variant == chosen[role]
        able &= (chosen[role] >= 0) & (chosen[role] < nodes.variants(role.kind))
        able &= _at(nodes.present(role.kind), chosen[role])
        if role.pinned:
            able &= chosen[role] == 0
    for one, other in ((a, b) for at, a in enumerate(roles) for b in roles[:at]):
        able &= _go_together(nodes, one, other, chosen)
    return able, chosen


def _go_together(nodes: Nodes, one: Role, other: Role, chosen: Mapping[Role, Variants]) -> Flags:
    """Two roles of one kind need different variants; others of one name need the same node of every common ancestor."""
    able = np.ones(nodes.num_items, bool)
    if one.kind == other.kind:
        return np.asarray(chosen[one] != chosen[other])
    if one.name == other.name:
        for kind in nodes.ancestors(one.kind).keys() & nodes.ancestors(other.kind).keys():
            able &= _made_from(nodes, kind, one, chosen[one]) == _made_from(nodes, kind, other, chosen[other])
    return able


def _made_from(nodes: Nodes, kind: str, role: Role, variant: Variants) -> Variants:
    return _at(nodes.ancestors(role.kind)[kind], variant)  # type: ignore[return-value]


def _at(table: NDArray[np.generic], variant: Variants) -> NDArray[np.generic]:
    column = np.clip(variant, 0, table.shape[1] - 1)
    return np.take_along_axis(table, column[:, None].astype(np.int64), axis=1)[:, 0]


def _compact(table: Variants, valid: Flags) -> Variants:
    """One row if all items that have a choice agree on it."""
    masked = np.where(valid, table, np.int16(-1))
    common = masked.max(axis=0, initial=0)
    return common[None] if ((masked == common) | ~valid).all() else table
