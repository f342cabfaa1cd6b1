"""Lookup arrays for vectorised drawing of walks, one row per path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.counter_rng import Bits, label_hashes
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import TaskPath
from graphbuild.tasks.pools import Bound, Served

Ints = NDArray[np.int64]
Units = NDArray[np.float64]

_NEVER = 2.0  # above every unit draw


@lru_cache(maxsize=64)
def labels(rows: int, columns: int) -> Bits:
    """Labels of the draws of one walk: its mask, then an item per row, a seed per row, a sort key per column."""
    names = [*(f"item:{row}" for row in range(rows)), *(f"seed:{row}" for row in range(rows))]
    return label_hashes(["mask", *names, *(f"column:{column}" for column in range(columns))])


class Tables:
    """Lookup arrays for all listed paths. `at` is, for each walk, the index of its path in the list.

    Args:
        chances: probability of each path that is drawn, by name.

    Attributes:
        width: cells of the longest path; `rows`: rows of the largest grid.
    """

    def __init__(
        self, paths: Sequence[TaskPath], chances: Mapping[str, float], served: Sequence[Served], config: SamplerConfig
    ) -> None:
        self._served = served
        self._shuffled = np.array([0 if path.is_fixed else len(path.cells) - 1 for path in paths])
        self.width = max(len(path.cells) for path in paths)
        cumulative = np.cumsum([chances.get(path.name, 0.0) for path in paths])
        self._chances = np.asarray(cumulative / cumulative[-1])
        self._alike = _Alike(paths, served, self._chances)
        self.rows = max(len(config.rows), *(len(path.rows) for path in served))
        self._rows = np.stack([_row_chances(path.rows, self.rows) for path in served])
        self._masks, self._holes = _mask_tables(paths, self.width, config)
        pools = list(dict.fromkeys(path.pool for path in served))
        self._pools, self._pool = pools, np.array([pools.index(path.pool) for path in served])
        self._is_bound = np.array([bool(path.bound) for path in served])

    def paths(self, drawn: Units) -> Ints:
        return self._chances.searchsorted(drawn, "right")

    def alike(self, at: Ints, drawn: Units) -> Ints:
        """Another path with the geometry of each, which it may be itself."""
        return self._alike.paths(at, drawn)

    def counts(self, at: Ints, drawn: Units) -> Ints:
        """Number of rows."""
        return np.asarray(1 + (drawn[:, None] >= self._rows[at]).sum(axis=1))

    def items(self, at: Ints, count: Ints, bits: Bits) -> Ints:
        """`item_ix` of each row, walks x rows, the query's last; -1 beyond `count`."""
        rows = np.full((len(at), bits.shape[1]), -1, np.int64)
        pool = self._pool[at]
        for number in range(len(self._pools)) if len(at) > 1 else pool.tolist():
            chosen = np.flatnonzero(pool == number)
            if len(chosen):
                most = int(count[chosen].max())
                rows[chosen, :most] = self._pools[number].draw(bits[chosen], count[chosen])
        row = np.arange(bits.shape[1])
        order = (row + 1) % count[:, None]  # the query is drawn first
        return np.where(row < count[:, None], rows[np.arange(len(at))[:, None], order], -1)

    def columns(self, at: Ints, bits: Bits) -> Ints:
        """The cell of each shown column: all but the last shuffled, unless their order is fixed."""
        column = np.arange(self.width, dtype=np.uint64)
        last = np.uint64(1 << 63) + column
        keys = np.where(column < self._shuffled[at][:, None], bits >> np.uint64(1), last)
        return keys.argsort(axis=1, kind="stable")

    def holes(self, at: Ints, drawn: Units) -> NDArray[np.bool_]:
        """Which cells of the query row are to be generated."""
        return np.asarray(self._holes[at, (drawn[:, None] >= self._masks[at]).sum(axis=1)])

    def bound(self, at: Ints) -> Iterator[tuple[Ints, int, Bound]]:
        """For each `Bound` of a path: the walks of the path, the number of the `Bound` in it, and the `Bound`."""
        for path in np.unique(at[self._is_bound[at]]).tolist() if self._is_bound[at].any() else ():
            chosen = np.flatnonzero(at == path)
            for number, bound in enumerate(self._served[path].bound):
                yield chosen, number, bound


class _Alike:
    """The paths sorted by geometry: columns, their arrangement, and how many rows can be drawn."""

    def __init__(self, paths: Sequence[TaskPath], served: Sequence[Served], chances: Units) -> None:
        geometries = [_geometry(path, own.rows) for path, own in zip(paths, served, strict=True)]
        group = np.array([geometries.index(own) for own in geometries])
        self._order = group.argsort(kind="stable")
        self._upto = np.cumsum(np.diff(chances, prepend=0.0)[self._order])
        ends = np.append(0.0, self._upto)
        self._begin = ends[group[self._order].searchsorted(group, "left")]
        self._end = ends[group[self._order].searchsorted(group, "right")]

    def paths(self, at: Ints, drawn: Units) -> Ints:
        begin, end = self._begin[at], self._end[at]
        place = np.minimum(begin + drawn * (end - begin), np.nextafter(end, 0.0))
        return np.asarray(self._order[self._upto.searchsorted(place, "right")])


def _geometry(path: TaskPath, rows: Sequence[float]) -> tuple[object, ...]:
    """What the walks of a batch have in common."""
    return path.layout, path.views, path.places(1), [kind.codec == "rays" for kind in path.declared], tuple(rows)


def _row_chances(weights: Sequence[float], most: int) -> Units:
    """The chance of fewer rows than 2, 3, ..., `most` + 1."""
    possible = np.cumsum(weights)
    chances = np.full(most, _NEVER)
    if len(possible) and possible[-1] > 0:
        chances[: len(possible)] = possible / possible[-1]
    return chances


def _mask_tables(paths: Sequence[TaskPath], width: int, config: SamplerConfig) -> tuple[Units, NDArray[np.bool_]]:
    """Cumulative chance of every mask of every path, and its cells."""
    drawn = [masks(path, config) or [(frozenset(path.targets), 1.0)] for path in paths]
    most = max(map(len, drawn))
    chances = np.full((len(paths), most), _NEVER)
    cells = np.zeros((len(paths), most, width), bool)
    for at, options in enumerate(drawn):
        chances[at, : len(options)] = np.cumsum([chance for _, chance in options])
        chances[at, len(options) - 1 :] = _NEVER
        for number, (holes, _) in enumerate(options):
            cells[at, number, list(holes)] = True
    return chances, cells
