"""Walks: which items, variants and columns make grid task i. A pure function of (snapshot, configuration, seed, i)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import GraphError
from graphbuild.instruction import Layout, Pick
from graphbuild.lineage import canonical_json
from graphbuild.paths import Path, PathSet, load, role_kind
from graphbuild.store.graph import Graph
from graphbuild.store.recipes import parents_of

if TYPE_CHECKING:
    import os

    from graphbuild.grid import GridTask

OnMissing = Literal["error", "drop"]
ROWS = (0.3, 0.4, 0.3)
"""Probability of 1, 2, 3 rows, the query included (VisualCloze, released training code)."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Walk:
    """Grid task i as ids.

    Attributes:
        path: the task; `columns[k]` is the cell of the path that shown column k holds.
        rows: `item_ix` of each row, the query row last.
        variants: one per row, shared by the kinds of that row which have variants.
        holes: shown columns of the query row that are to be generated.
        seeds: one per row, for the recipe kinds in it.
    """

    index: int
    path: Path
    rows: tuple[int, ...]
    variants: tuple[int, ...]
    columns: tuple[int, ...]
    holes: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each shown column."""
        return tuple(self.path.kinds[cell] for cell in self.columns)

    @property
    def targets(self) -> tuple[int, ...]:
        """Shown columns that the path declares as targets; the instruction speaks of these."""
        return tuple(column for column, cell in enumerate(self.columns) if cell in self.path.targets)


class PathSampler:
    """Draws grid tasks from a graph.

    Args:
        graph: pinned at the snapshot it was opened at.
        paths: a shipped list (`graph200k`), a YAML file, or a `PathSet`.
        seed: another seed gives other walks.
        group: this many consecutive walks share path and number of rows, so that a batch has one geometry.
        on_missing: `error` refuses a path the graph cannot serve; `drop` leaves it out, its type keeps its weight.
        layout: the instruction's layout sentence, `pipeline` or `random`.

    Raises:
        GraphError: a path cannot be served (`error`), or none can.
        ValueError: no such list, or it breaks a rule.
    """

    def __init__(
        self,
        graph: Graph,
        paths: str | os.PathLike[str] | PathSet = "graph200k",
        *,
        seed: int = 0,
        group: int = 1,
        on_missing: OnMissing = "error",
        layout: Layout = "pipeline",
    ) -> None:
        self.graph, self.seed, self.group, self.layout = graph, seed, group, layout
        self.listed = paths if isinstance(paths, PathSet) else load(paths)
        self.paths = self._servable(on_missing)
        chances = PathSet(
            name=self.listed.name, paths=self.paths, type_weights=self.listed.type_weights
        ).probabilities()
        self._cumulative = np.cumsum(chances)
        config = {"paths": self.listed.name, "group": group} if group != 1 else {"paths": self.listed.name}
        self._key = _hash64(canonical_json([config, seed]))

    def walk(self, index: int) -> Walk:
        """Grid task `index` as ids: the same for any number of workers, after any resume."""
        index = int(index)  # of numpy, say, whose integers overflow
        shared = _Draws(self._key, index // self.group, "geometry")
        path = self.paths[int(np.searchsorted(self._cumulative, shared.unit("path") * self._cumulative[-1], "right"))]
        items = self._items[path.name]
        rows = 1 + int(
            np.searchsorted(np.cumsum(ROWS[: len(items)]), shared.unit("rows") * sum(ROWS[: len(items)]), "right")
        )
        own = _Draws(self._key, index, "items")
        chosen = own.distinct("item", rows, len(items))
        columns = self._shuffled(path, own)
        return Walk(
            index=index,
            path=path,
            rows=tuple(int(items[at]) for at in chosen),
            variants=tuple(self._variant(path, int(items[at]), own, row) for row, at in enumerate(chosen)),
            columns=columns,
            holes=self._holes(path, columns, own),
            seeds=tuple(own.below(f"seed:{row}", 1 << 62) for row in range(rows)),
        )

    def task(self, index: int, resolution: int = 384) -> GridTask:
        """Grid task `index` with its pictures; `resolution` is the side of a cell in pixels."""
        from graphbuild.grid import GridTask

        return GridTask(self, self.walk(index), resolution)

    def pick(self, index: int) -> Pick:
        """The draws that choose the words of walk `index`."""
        return _Draws(self._key, index, "words").below

    def variants_of(self, kind: str) -> int:
        """How many variants the graph plans of a stored kind."""
        return int(self._present[kind].shape[1])

    def coverage(self) -> dict[str, dict[str, int]]:
        """Path -> how many items have each of its kinds, and `all` of them at once."""
        return {path.name: self._counts(path) for path in self.listed.paths}

    # ---- what the graph can serve ------------------------------------------------------------------------------

    @cached_property
    def _present(self) -> dict[str, NDArray[np.bool_]]:
        """Kind -> bool, items x variants, for every stored kind that the paths need."""
        needed = {parent for path in self.listed.paths for kind in path.kinds for parent in parents_of(kind)}
        return {kind: self.graph.presence(kind) for kind in sorted(needed) if kind in self.graph.head}

    @cached_property
    def _items(self) -> dict[str, NDArray[np.int64]]:
        return {path.name: np.flatnonzero(self._serves(path)) for path in self.listed.paths}

    def _serves(self, path: Path) -> NDArray[np.bool_]:
        present = [self._present[kind] for kind in _stored(path) if kind in self._present]
        if len(present) < len(_stored(path)):
            return np.zeros(self.graph.num_items, bool)
        single = [p[:, 0] for p in present if p.shape[1] == 1]
        return np.asarray(np.all([*single, _common(present).any(axis=1)], axis=0), bool)

    def _servable(self, on_missing: OnMissing) -> tuple[Path, ...]:
        if refused := [path.name for path in self.listed.paths if path.where]:
            raise GraphError(f"path {refused[0]!r}: this release does not understand `where`; leave it out")
        servable = tuple(path for path in self.listed.paths if len(self._items[path.name]) and path.weight > 0)
        lacking = [path for path in self.listed.paths if not len(self._items[path.name])]
        if not servable or (lacking and on_missing == "error"):
            shown = "; ".join(f"{path.name}: {self._counts(path)}" for path in lacking[:3])
            raise GraphError(
                f"{self.graph.url} serves {len(servable)} of the {len(self.listed.paths)} paths of "
                f"{self.listed.name!r}. Items that have: {shown}. Run the missing annotators, or leave such paths out "
                "with on_missing='drop'"
            )
        return servable

    def _counts(self, path: Path) -> dict[str, int]:
        counts = {kind: int(p.any(axis=1).sum()) if (p := self._present.get(kind)) is not None else 0
                  for kind in _stored(path)}  # fmt: skip
        return {**counts, "all": len(self._items[path.name])}

    # ---- draws -----------------------------------------------------------------------------------------------

    def _variant(self, path: Path, item_ix: int, draws: _Draws, row: int) -> int:
        """One variant for the row, among those that all its varied kinds have."""
        common = np.flatnonzero(_common([self._present[kind][item_ix : item_ix + 1] for kind in _stored(path)]))
        return int(common[draws.below(f"variant:{row}", len(common))])

    def _shuffled(self, path: Path, draws: _Draws) -> tuple[int, ...]:
        """Columns in shown order: the conditions shuffled, the last cell last."""
        order = list(range(len(path.cells) - 1))
        for at in range(len(order) - 1, 0, -1):
            other = draws.below(f"shuffle:{at}", at + 1)
            order[at], order[other] = order[other], order[at]
        return (*order, len(path.cells) - 1)

    def _holes(self, path: Path, columns: Sequence[int], draws: _Draws) -> tuple[int, ...]:
        """The targets, or with probability 1/2 one uniformly drawn column (VisualCloze's released code)."""
        if len(path.targets) == 1 and draws.unit("mask") < 0.5:
            return (draws.below("hole", len(columns)),)
        return tuple(column for column, cell in enumerate(columns) if cell in path.targets)


def _common(present: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Items x variants that every kind with variants has; all true, one wide, if no kind has variants."""
    varied = [p for p in present if p.shape[1] > 1]
    width = min((p.shape[1] for p in varied), default=1)
    return np.asarray(np.all([np.ones((len(present[0]), width), bool), *(p[:, :width] for p in varied)], axis=0), bool)


def _stored(path: Path) -> list[str]:
    """The stored kinds a path needs."""
    return sorted({parent for role in path.cells for parent in parents_of(role_kind(role))})


class _Draws:
    """Counter-based draws: each is a function of (key, counter, label) alone, so leaving one out moves no other."""

    def __init__(self, key: int, counter: int, stream: str) -> None:
        self._base = _mix(key ^ _hash64(stream)) + counter * _GOLDEN

    def bits(self, label: str) -> int:
        """64 uniform bits."""
        return _mix(_mix(self._base & _MASK) ^ _hash64(label))

    def unit(self, label: str) -> float:
        """Uniform in [0, 1)."""
        return (self.bits(label) >> 11) * 2.0**-53

    def below(self, label: str, n: int) -> int:
        """Uniform in range(n), by multiply and shift (D. Lemire, "Fast Random Integer Generation in an Interval")."""
        return (self.bits(label) * n) >> 64

    def distinct(self, label: str, count: int, n: int) -> list[int]:
        """`count` different numbers below n, by R. Floyd's sampling; then shuffled so that order is uniform too."""
        chosen: list[int] = []
        for at, top in enumerate(range(n - count, n)):
            drawn = self.below(f"{label}:{at}", top + 1)
            place = self.below(f"{label}-place:{at}", at + 1)
            chosen.insert(place, top if drawn in chosen else drawn)
        return chosen


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (G. Steele et al., OOPSLA 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
