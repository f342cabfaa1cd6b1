"""Cached VAE posteriors: the posterior, not a draw from it, so that every round still draws anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graphbuild.data import GridSample
from graphbuild_train.disk_cache import DiskCache

Units = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[int]], list[str]]
"""`Base.units`: keys of rows, keys of cells, and holes, to the keys of what a base encodes of a grid task."""


class LatentCache:
    """Parameters of posteriors (mean and log-variance) by key, in main memory and on disk. Nothing is ever dropped:
    when `gigabytes` are used, new ones are not kept in memory."""

    def __init__(self, gigabytes: float, disk: DiskCache | None = None) -> None:
        self.room, self.disk = int(gigabytes * 1e9), disk
        self.hits = self.misses = 0
        self._kept: dict[str, Tensor | None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._kept or (self.disk is not None and key in self.disk)

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process has the present keys only: its loader needs no more."""
        return {**vars(self), "_kept": dict.fromkeys(self._kept)}

    def get(self, key: str, encode: Callable[[], Tensor]) -> Tensor:
        """The parameters of a key, computed by `encode` if they are not cached. An empty key is never cached."""
        if (kept := self._kept.get(key)) is not None:
            self.hits += 1
            return kept
        stored = self.disk.get(key) if self.disk and key else None
        self.hits += stored is not None
        self.misses += stored is None
        made = encode() if stored is None else stored["posterior"]
        if self.disk and key and stored is None:
            self.disk.put(key, {"posterior": made})
        if key and made.nbytes <= self.room:
            self.room -= made.nbytes
            self._kept[key] = made.to("cpu", copy=True)
        return made


@dataclass(frozen=True)
class Known:
    """Whether a cache has all that a base encodes of a sample, so that the sample need not be decoded."""

    cache: LatentCache
    units: Units

    def __call__(self, sample: GridSample) -> bool:
        keys = self.units(sample.row_keys, sample.cell_keys, sample.walk.holes)
        return all(key in self.cache for key in keys)
