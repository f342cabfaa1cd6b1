"""Walks: which items, variants and columns make grid task i. A pure function of (snapshot, configuration, seed, i)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import GraphError
from graphbuild.hashing import canonical_json, digest_of
from graphbuild.kinds.registry import kind_of
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import ROWS, HeldOut, SamplerConfig, masks
from graphbuild.tasks.counter_rng import Bits, Draws, draw_bits, hash64, label_hashes, unit
from graphbuild.tasks.draw_tables import Tables, labels
from graphbuild.tasks.instruction import Layout, Pick
from graphbuild.tasks.paths import Path, PathSet, load
from graphbuild.tasks.pools import Served, Stock

if TYPE_CHECKING:
    import os

    from graphbuild.tasks.grid import GridTask

__all__ = ["ROWS", "Frozen", "HeldOut", "PathSampler", "SamplerConfig", "Walk", "Walks"]

OnMissing = Literal["error", "drop"]
_DEFAULTS = SamplerConfig()
_GEOMETRY = label_hashes(["path", "rows"])
_LAST = (1 << 63) - 1  # indices are stored as int64
_BLOCK = 1 << 14  # walks drawn at once: their tables stay in a processor's cache


@dataclass(frozen=True, slots=True)
class Walk:
    """Grid task i as ids.

    Attributes:
        path: the task; `columns[k]` is the cell of the path that shown column k holds.
        rows: `item_ix` of each row, the query row last.
        variants: one per row and shown column; 0 for recipe kinds.
        columns: the cell behind each shown column.
        holes: shown columns of the query row that are to be generated.
        seeds: one per row, for the recipe kinds in it.
        text_variant: which variant of the text that `path.content` names belongs to the query row.
    """

    index: int
    path: Path
    rows: tuple[int, ...]
    variants: tuple[tuple[int, ...], ...]
    columns: tuple[int, ...]
    holes: tuple[int, ...]
    seeds: tuple[int, ...]
    text_variant: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each shown column."""
        return tuple(self.path.kinds[cell] for cell in self.columns)

    @property
    def targets(self) -> tuple[int, ...]:
        """Shown columns that the path declares as targets; the instruction speaks of these."""
        return tuple(column for column, cell in enumerate(self.columns) if cell in self.path.targets)


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """Many walks as arrays, one row a walk, padded; `walks[i]` and iteration give each as a `Walk`.

    Attributes:
        paths: what `path` counts in.
        count: number of rows of each walk.
        rows, seeds: walks x rows.
        variants: walks x rows x columns.
        columns, holes: walks x columns.
    """

    paths: tuple[Path, ...]
    index: Bits
    path: NDArray[np.int64]
    count: NDArray[np.int64]
    rows: NDArray[np.int64]
    variants: NDArray[np.int16]
    columns: NDArray[np.int64]
    holes: NDArray[np.bool_]
    seeds: NDArray[np.int64]
    text_variant: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, at: int) -> Walk: ...
    @overload
    def __getitem__(self, at: slice) -> Walks: ...
    def __getitem__(self, at: int | slice) -> Walk | Walks:
        if isinstance(at, slice):
            return Walks(self.paths, *(values[at] for values in self._arrays()))
        at = range(len(self))[at]
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[Walk]:
        columns = (values.tolist() for values in self._arrays())
        for index, at, count, rows, variants, order, holes, seeds, text in zip(*columns, strict=True):
            path = self.paths[at]
            shown = len(path.cells)
            yield Walk(
                index,
                path,
                tuple(rows[:count]),
                tuple([tuple(row[:shown]) for row in variants[:count]]),
                tuple(order[:shown]),
                tuple(compress(range(shown), holes)),
                tuple(seeds[:count]),
                text,
            )

    @classmethod
    def joined(cls, parts: Sequence[Walks]) -> Walks:
        """One after the other."""
        return cls(parts[0].paths, *map(np.concatenate, zip(*(part._arrays() for part in parts), strict=True)))

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in _ARRAYS]


_ARRAYS = tuple(field.name for field in fields(Walks) if field.name != "paths")


class Frozen(NamedTuple):
    """Walks written down for evaluation: they are the same whatever the library draws later.

    Attributes:
        header: snapshot, list, seed, group and switches they were drawn with.
        records: one a walk, ids only.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """What this set is called."""
        return digest_of([self.header, self.records])

    def write(self, file: str | os.PathLike[str]) -> None:
        """JSON lines: the header with the digest, then the records."""
        lines = [canonical_json(line) for line in ({**self.header, "digest": self.digest}, *self.records)]
        with open(file, "w", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")


class PathSampler:
    """Draws grid tasks from a graph.

    Args:
        graph: pinned at the snapshot it was opened at.
        paths: a shipped list (`graph200k`), a YAML file, or a `PathSet`.
        seed: another seed gives other walks.
        group: this many consecutive walks share path and number of rows, so that a batch has one geometry.
        on_missing: `error` refuses a path the graph cannot serve; `drop` leaves it out, its type keeps its weight.
        layout: short for the `layout` of `config`.
        config: every other switch.

    Attributes:
        paths: those that are drawn; a held-out path is not among them.

    Raises:
        GraphError: a path cannot be served (`error`), or none can.
        ValueError: no such list, it breaks a rule, an unknown kind is held out, or `on_missing` is another word.
    """

    def __init__(
        self,
        graph: Graph,
        paths: str | os.PathLike[str] | PathSet = "graph200k",
        *,
        seed: int = 0,
        group: int = 1,
        on_missing: OnMissing = "error",
        layout: Layout | None = None,
        config: SamplerConfig = _DEFAULTS,
    ) -> None:
        seed, group = _integer("seed", seed), _integer("group", group, range(1, _LAST))
        if on_missing not in (allowed := get_args(OnMissing)):
            raise ValueError(f"on_missing: {on_missing!r}; allowed: {', '.join(allowed)}")
        self.config = config if layout is None else replace(config, layout=layout)
        self.graph, self.seed, self.group, self.layout = graph, seed, group, self.config.layout
        self.listed = paths if isinstance(paths, PathSet) else load(paths)
        own = [kind for path in self.listed.paths for kind in path.own]
        for kind in (kind for task in self.config.held_out for kind in (*task.given, *task.holes)):
            kind_of(kind, own)
        self.stock = Stock(graph, self.listed, self.config)
        self._served = [self.stock.served(path) for path in self.listed.paths]
        self.paths = self._drawable(on_missing)
        self._tables = Tables(self.listed.paths, self.probabilities(), self._served, self.config)
        grouped = {"group": group} if group != 1 else {}
        self._key = hash64(canonical_json([{"paths": self.listed.name, **grouped, **self.config.changed()}, seed]))

    def walk(
        self,
        index: int,
        *,
        path: str | None = None,
        items: Sequence[int] | None = None,
        variant: int | None = None,
        hole: int | Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
    ) -> Walk:
        """Grid task `index` as ids: the same for any number of workers, after any resume.

        Any part can be pinned; the others stay as they are drawn.

        Args:
            path: its name in the list, drawn or not.
            items: `item_ix` of each row, the query last.
            variant: of the kinds with variants that follow no other kind of the path, in every row.
            hole: shown column, or columns, to be generated.
            columns: the cell of the path for each shown column.

        Raises:
            ValueError: a pinned part does not exist; the message says what does.
        """
        at = None if path is None else self._position(path)
        items = None if items is None else [_integer("items", item) for item in items]
        walks = self._draw(np.array([_integer("index", index, range(_LAST))], np.uint64), at, items, variant)
        if variant and not self._served[int(walks.path[0])].bound:
            raise ValueError(f"variant: {variant}: path {walks[0].path.name!r} has no variants; allowed: 0")
        drawn = walks[0]
        if columns is not None:
            drawn = _with_columns(drawn, tuple(columns))
        return drawn if hole is None else _with_holes(drawn, np.atleast_1d(hole).tolist())

    def walks(self, start: int, n: int) -> Walks:
        """Grid tasks `start`, `start` + 1, ...: what `walk` gives for each, much faster."""
        start, n = _integer("start", start, range(_LAST)), _integer("n", n, range(_LAST))
        stops = range(start, start + n, _BLOCK)
        indices = [np.arange(at, min(at + _BLOCK, start + n), dtype=np.uint64) for at in stops]
        return Walks.joined([self._draw(index) for index in indices or [np.empty(0, np.uint64)]])

    def frozen(self, n: int, start: int = 0) -> Frozen:
        """The first `n` walks as records, to be written down once and evaluated for ever."""
        drawn = {"paths": self.listed.name, "seed": self.seed, "group": self.group, **self.config.changed()}
        return Frozen({"snapshot": self.graph.digest, **drawn}, [_record(walk) for walk in self.walks(start, n)])

    def task(self, index: int, resolution: int = 384) -> GridTask:
        """Grid task `index` with its pictures; `resolution` is the side of a cell in pixels."""
        from graphbuild.tasks.grid import GridTask

        return GridTask(self, self.walk(index), resolution)

    def pick(self, index: int) -> Pick:
        """The draws that choose the words of walk `index`."""
        return Draws(self._key, index, "words").below

    def variants_of(self, kind: str) -> int:
        """How many variants the graph plans of a stored kind."""
        return self.stock.nodes.variants(kind)

    def coverage(self) -> dict[str, dict[str, int]]:
        """Path -> how many items have each of its kinds, and `all` of them in variants that belong together."""
        served = zip(self.listed.paths, self._served, strict=True)
        return {path.name: {**self.stock.counts(path), "all": found.pool.size} for path, found in served}

    def probabilities(self) -> dict[str, float]:
        """Path -> the chance that a walk goes along it, of those that are drawn; sums to 1."""
        weighted = self.paths
        if self.config.weights == "coverage":
            items = {path.name: found.pool.size for path, found in zip(self.listed.paths, self._served, strict=True)}
            weighted = tuple(replace(path, weight=path.weight * items[path.name]) for path in self.paths)
        drawn = PathSet(name=self.listed.name, paths=weighted, type_weights=self.listed.type_weights)
        return dict(zip((path.name for path in self.paths), drawn.probabilities().tolist(), strict=True))

    # ---- what is drawn -----------------------------------------------------------------------------------------

    def _drawable(self, on_missing: OnMissing) -> tuple[Path, ...]:
        fitting = {path.name: self._fits(served) for path, served in zip(self.listed.paths, self._served, strict=True)}
        wanted = [path for path in self.listed.paths if self.listed.has_chance(path)]
        lacking = [path for path in wanted if not fitting[path.name]]
        drawable = tuple(path for path in wanted if fitting[path.name] and masks(path, self.config))
        if not drawable or (lacking and on_missing == "error"):
            coverage = self.coverage()
            shown = "; ".join(f"{path.name}: {coverage[path.name]}" for path in lacking[:3])
            raise GraphError(
                f"{self.graph.url} serves {len(drawable)} of the {len(self.listed.paths)} paths of "
                f"{self.listed.name!r}. Items that have: {shown or 'all'}. Run the missing annotators, ask less of "
                "items (where, split, rows), or leave such paths out (on_missing drop); a path whose targets are held "
                "out is never served"
            )
        return drawable

    def _fits(self, served: Served) -> bool:
        """Whether there are items enough for a number of rows that has a chance."""
        return sum(self.config.rows[: served.pool.groups]) > 0

    def _position(self, name: str) -> int:
        for at, (path, served) in enumerate(zip(self.listed.paths, self._served, strict=True)):
            if path.name == name and self._fits(served):
                return at
        raise ValueError(f"path: {name!r}; allowed: {', '.join(path.name for path in self.paths)}")

    # ---- draws -------------------------------------------------------------------------------------------------

    def _draw(
        self, index: Bits, path: int | None = None, items: Sequence[int] | None = None, variant: int | None = None
    ) -> Walks:
        tables, most = self._tables, max(len(self.config.rows), len(items or ()))
        shared = unit(draw_bits(self._key, "geometry", index // np.uint64(self.group), _GEOMETRY))
        own = draw_bits(self._key, "items", index, labels(most, tables.width))
        at = tables.paths(shared[:, 0]) if path is None else np.full(len(index), path)
        if items is None:
            count = tables.counts(at, shared[:, 1])
            rows = tables.items(at, count, own[:, 1 : 1 + most])
        else:
            count, rows = np.array([len(items)]), self._served[int(at[0])].pool.checked(items)[None]
        columns = tables.columns(at, own[:, 1 + 2 * most :])
        holes = tables.holes(at, unit(own[:, 0]))[np.arange(len(index))[:, None], columns]
        seeds = (own[:, 1 + most : 1 + 2 * most] >> np.uint64(2)).astype(np.int64)
        variants = np.zeros((*rows.shape, tables.width), np.int16)
        text = np.zeros(len(index), np.int16)
        for chosen, number, bound in tables.bound(at):
            names = tuple(f"variant:{number}:{row}" for row in range(rows.shape[1]))
            bits = draw_bits(self._key, "items", index[chosen], label_hashes(names))
            for cell, drawn in bound.choose(rows[chosen], bits, variant):
                if cell is None:
                    text[chosen] = drawn[np.arange(len(chosen)), count[chosen] - 1]
                else:
                    variants[chosen, :, cell] = drawn
        variants = np.take_along_axis(variants, columns[:, None], axis=2) if variants.any() else variants
        return Walks(self.listed.paths, index, at, count, rows, variants, columns, holes, seeds, text)


def _integer(name: str, value: object, allowed: range | None = None) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}: {value!r}; allowed: an integer") from None
    if allowed is not None and number not in allowed:
        raise ValueError(f"{name}: {number}; allowed: {allowed.start} to {allowed.stop - 1}")
    return number


def _with_columns(walk: Walk, columns: tuple[int, ...]) -> Walk:
    """The same cells in another order; what was a hole stays one."""
    if sorted(columns) != sorted(walk.columns):
        raise ValueError(f"columns: {columns}; allowed: each of 0..{len(walk.columns) - 1} once")
    moved = [walk.columns.index(cell) for cell in columns]
    variants = tuple(tuple(row[column] for column in moved) for row in walk.variants)
    holes = tuple(column for column, old in enumerate(moved) if old in walk.holes)
    return replace(walk, columns=columns, variants=variants, holes=holes)


def _with_holes(walk: Walk, holes: Sequence[int]) -> Walk:
    if not holes or not set(holes) <= set(range(len(walk.columns))):
        raise ValueError(f"hole: {list(holes)}; allowed: columns 0..{len(walk.columns) - 1}, at least one")
    return replace(walk, holes=tuple(sorted(set(holes))))


def _record(walk: Walk) -> dict[str, Any]:
    return {field.name: getattr(walk, field.name) for field in fields(walk)} | {"path": walk.path.name}
