"""Walks: which items, variants and columns make grid task i. A pure function of (snapshot, configuration, seed, i)."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import numpy as np

from graphbuild.errors import GraphError, counted
from graphbuild.hashing import canonical_json
from graphbuild.images.notebook import Shown, figure
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.counter_rng import Bits, draw_bits, hash64, label_hashes, unit
from graphbuild.tasks.draw_tables import Tables, labels
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import PathSet, TaskPath, load
from graphbuild.tasks.pools import Served, Stock
from graphbuild.tasks.together import Together
from graphbuild.tasks.walk import Drawing, Frozen, Walk, Walks

OnMissing = Literal["error", "drop"]
_DEFAULTS = SamplerConfig()
_CELLS = CellConfig()
_GEOMETRY = label_hashes(["path", "rows"])
_OWN_PATH = label_hashes(["path"])
_LAST = (1 << 63) - 1  # indices are stored as int64
_MOST_REASONS = 4
_BLOCK = 1 << 14  # walks drawn at once: their tables stay in a processor's cache


class PathSampler:
    """Draws grid tasks from a graph.

    Args:
        graph: pinned at the snapshot it was opened at.
        paths: a shipped list (`graph200k`), a YAML file, or a `PathSet`.
        seed: seed of all draws.
        path_repeat: consecutive walks that share a path and a number of rows, or less: see `SamplerConfig.repeat`; with
            the global batch size, or a multiple of it, every batch has one geometry.
        on_missing: for a path that the graph cannot serve, `error` raises; `drop` leaves it out, and its type keeps its
            weight.
        config: every other switch.
        together: what it is sampled together with, see `TaskMixture`; by default nothing else.

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
        path_repeat: int = 1,
        on_missing: OnMissing = "error",
        config: SamplerConfig = _DEFAULTS,
        together: Together | None = None,
    ) -> None:
        seed = _integer("seed", seed)
        path_repeat = _integer("path_repeat", path_repeat, range(1, _LAST))
        if on_missing not in (allowed := get_args(OnMissing)):
            raise ValueError(f"on_missing: {on_missing!r}; allowed: {', '.join(allowed)}")
        self.graph, self.seed, self.path_repeat, self.config = graph, seed, path_repeat, config
        self.listed = paths if isinstance(paths, PathSet) else load(paths)
        together = together or Together([graph], [self.listed])
        for kind in (kind for task in self.config.held_out for kind in (*task.given, *task.holes)):
            kind_of(kind, together.kinds)
        for declared in (kind for path in self.listed.paths for kind in path.own):
            _refuse_contradiction(graph, declared, self.listed.name)
        self.stock = Stock(graph, self.listed, self.config, together)
        self._served = [self.stock.served(path) for path in self.listed.paths]
        self.paths = self._drawable(on_missing)
        self._tables = Tables(self.listed.paths, self.probabilities(), self._served, self.config)
        repeated = {"group": path_repeat} if path_repeat != 1 else {}  # its first name, so that old walks stay
        self._key = hash64(canonical_json([{"paths": self.listed.name, **repeated, **self.config.changed()}, seed]))
        self.drawing = Drawing(graph, self.listed, seed, path_repeat, config, self._key, together.beside(graph))

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
            variant: in every row, of the kinds whose variant does not follow from another kind of the path.
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
        return self.walks_of(np.arange(start, start + n, dtype=np.uint64))

    def walks_of(self, indices: Bits) -> Walks:
        """The grid tasks of these indices, in this order."""
        blocks = [indices[at : at + _BLOCK] for at in range(0, len(indices), _BLOCK)]
        return Walks.joined([self._draw(block) for block in blocks or [indices]])

    def frozen(self, n: int, start: int = 0, *, per_path: bool = False) -> Frozen:
        """The first `n` walks as a fixed evaluation set, independent of later releases.

        Args:
            per_path: `n` walks of each path that is drawn instead, so that rare tasks have as many as others.
        """
        drawn = {"paths": self.listed.name, "seed": self.seed, "path_repeat": self.path_repeat, **self.drawing.switches}
        if per_path:
            pinned = [path.name for path in self.paths for _ in range(n)]
            walks = [self.walk(index, path=name) for index, name in enumerate(pinned, start)]
        else:
            walks = [*self.walks(start, n)]
        return Frozen({"snapshot": self.graph.digest, **drawn}, [_record(walk) for walk in walks])

    def task(self, walk: int | Walk, resolution: int = 384, *, cells: CellConfig = _CELLS) -> GridTask:
        """A grid task with its pictures.

        Args:
            walk: its index, or a walk of this sampler.
            resolution: side of a cell in pixels.
            cells: how cells are made.
        """
        drawn = walk if isinstance(walk, Walk) else self.walk(walk)
        return GridTask(drawn, self.drawing, resolution, cells=cells)

    def show(self, n: int = 3, start: int = 0, resolution: int = 224) -> Shown:
        """Grid tasks `start`, `start` + 1, ... as a notebook shows them."""
        tasks = (self.task(index, resolution) for index in range(start, start + n))
        return Shown("".join(figure(task.image(), task.walk.path.name, width=None) for task in tasks))

    @property
    def parts(self) -> tuple[PathSampler, ...]:
        """Itself; a `TaskMixture` has several."""
        return (self,)

    @property
    def snapshot(self) -> str:
        """Digest of the graph's state."""
        return self.graph.digest

    def part(self, index: int) -> PathSampler:
        """The sampler that draws grid task `index`."""
        return self

    def coverage(self) -> dict[str, dict[str, int]]:
        """Path name -> number of items that have each of its kinds, and `all` of them in consistent variants."""
        served = zip(self.listed.paths, self._served, strict=True)
        return {path.name: {**self.stock.counts(path), "all": found.pool.size} for path, found in served}

    def most_rows(self) -> dict[str, int]:
        """TaskPath -> rows of its largest grid, for those that are drawn: fewer than configured where items are few, or
        related to each other."""
        chances = {path.name: found.rows for path, found in zip(self.listed.paths, self._served, strict=True)}
        return {path.name: max(at for at, chance in enumerate(chances[path.name], 1) if chance) for path in self.paths}

    def probabilities(self) -> dict[str, float]:
        """Path name -> its probability among the paths that are drawn; sums to 1."""
        weighted = self.paths
        if self.config.weights == "coverage":
            items = {path.name: found.pool.size for path, found in zip(self.listed.paths, self._served, strict=True)}
            weighted = tuple(replace(path, weight=path.weight * items[path.name]) for path in self.paths)
        drawn = PathSet(name=self.listed.name, paths=weighted, type_weights=self.listed.type_weights)
        return dict(zip((path.name for path in self.paths), drawn.probabilities().tolist(), strict=True))

    # ---- what is drawn -----------------------------------------------------------------------------------------

    def _drawable(self, on_missing: OnMissing) -> tuple[TaskPath, ...]:
        fitting = {path.name: self._fits(served) for path, served in zip(self.listed.paths, self._served, strict=True)}
        wanted = [path for path in self.listed.paths if self.listed.has_chance(path)]
        lacking = [path for path in wanted if not fitting[path.name]]
        drawable = tuple(path for path in wanted if fitting[path.name] and masks(path, self.config))
        if not drawable or (lacking and on_missing == "error"):
            raise GraphError(
                f"{self.graph.url} serves {len(drawable)} of the {len(self.listed.paths)} paths of "
                f"{self.listed.name!r}: {self._lacks(lacking)}. Run the missing annotators, ask less of items (where, "
                "split, rows, kinds), or leave such paths out (on_missing drop)"
            )
        return drawable

    def _lacks(self, lacking: Sequence[TaskPath]) -> str:
        """The commonest reasons why paths are not served, with the number of paths that each keeps away."""
        few, kept_away = f"too few items for rows {list(self.config.rows)}", dict[str, list[str]]()
        for path in lacking:
            for reason in self.stock.lacks(path) or [few]:
                kept_away.setdefault(reason, []).append(path.name)
        commonest = sorted(kept_away.items(), key=lambda found: -len(found[1]))
        told = [
            f"{reason} ({counted(len(names), 'path')}: {names[0]}{', ...' if names[1:] else ''})"
            for reason, names in commonest[:_MOST_REASONS]
        ]
        told += [counted(len(commonest) - len(told), "more reason")] if len(commonest) > len(told) else []
        return "; ".join(told) or "their targets are held out"

    def _fits(self, served: Served) -> bool:
        """Whether there are enough items for any number of rows that can be drawn."""
        return sum(served.rows) > 0

    def _position(self, name: str) -> int:
        for at, (path, served) in enumerate(zip(self.listed.paths, self._served, strict=True)):
            if path.name == name and self._fits(served):
                return at
        raise ValueError(f"path: {name!r}; allowed: {', '.join(path.name for path in self.paths)}")

    # ---- draws -------------------------------------------------------------------------------------------------

    def _draw(
        self, index: Bits, path: int | None = None, items: Sequence[int] | None = None, variant: int | None = None
    ) -> Walks:
        tables, most = self._tables, max(self._tables.rows, len(items or ()))
        shared = unit(draw_bits(self._key, "geometry", index // np.uint64(self.path_repeat), _GEOMETRY))
        own = draw_bits(self._key, "items", index, labels(most, tables.width))
        at = tables.paths(shared[:, 0]) if path is None else np.full(len(index), path)
        if path is None and self.config.repeat == "geometry":
            at = tables.alike(at, unit(draw_bits(self._key, "items", index, _OWN_PATH))[:, 0])
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


def _refuse_contradiction(graph: Graph, kind: Kind, listed: str) -> None:
    """Refuse a kind that a task list declares otherwise than its annotator did."""
    commits = graph.commits(kind.name) if kind.name in graph.head else []
    if commits and (stored := commits[0].document.lineage.codec[kind.name]) != kind.codec:
        raise GraphError(
            f"kind {kind.name!r}: the task list {listed!r} declares the codec {kind.codec}, {graph.url} holds it as "
            f"{stored}, as {commits[0].document.use} declares it; give both the same"
        )


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
