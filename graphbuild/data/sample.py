"""Samples of a dataset: grid tasks that are ids until their pixels are asked for, decoded where their batch lies."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import xxhash

from graphbuild.data.buffers import CellCache, PixelBuffer, check_bytes, keep_freed_memory
from graphbuild.errors import CorruptNode, GraphError, MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import parents_of
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.keys import identity
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk

Known = Callable[["GridSample"], bool]
"""Says of a sample, by its keys, whether the consumer has what it would make of the pixels, such as latents."""

_PAGE = 64  # walks drawn at once


class Block(NamedTuple):
    """The indices that one batch consists of, and the global position after its step."""

    first: int
    stop: int
    next: int


class TaskSource:
    """What all samples of one dataset share. A sample that travels between processes finds it again by its token."""

    def __init__(
        self, sampler: PathSampler, resolution: int, cache_bytes: int, known: Known | None,
        cells: CellConfig, *, token: str = "",
    ) -> None:  # fmt: skip
        self.sampler, self.resolution, self.known = sampler, resolution, known
        self.cells = cells
        self.token = token or uuid.uuid4().hex
        self.cache = CellCache(cache_bytes)
        self._walks = lru_cache(maxsize=4)(lambda page: list(sampler.walks(page * _PAGE, _PAGE)))
        self._pid = os.getpid()
        _SOURCES[self.token] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _source, (self.token, self.sampler, self.resolution, self.cache.max_bytes, self.known, self.cells)

    def walk(self, index: int) -> Walk:
        """Walk `index`. Its neighbours are drawn too: together they cost little more than one."""
        page, at = divmod(index, _PAGE)
        return self._walks(page)[at]

    def prepare(self, in_worker: bool) -> None:
        """Index what the paths read; in a worker also renew what it must not share with the process it came from."""
        if in_worker:
            import cv2

            cv2.setNumThreads(1)
            keep_freed_memory()
        if self._pid != os.getpid():
            self.sampler.graph.reopen()
            self.cache, self._pid = CellCache(self.cache.max_bytes), os.getpid()
        paths, head = self.sampler.paths, self.sampler.graph.head
        read = {parent for path in paths for kind in path.kinds for parent in parents_of(kind)}
        for kind in sorted(read | {path.content.source for path in paths if path.content} & set(head)):
            self.sampler.graph.offsets(kind)


_SOURCES: WeakValueDictionary[str, TaskSource] = WeakValueDictionary()


def _source(token: str, *shared: Any) -> TaskSource:
    return _SOURCES.get(token) or TaskSource(*shared, token=token)


_TRAVELS = ("_pixels", "_painted", "_wanted", "frames", "instruction")


class GridSample(GridTask):
    """Grid task `index` of a dataset: each cell is decoded once, where its batch will lie.

    Attributes:
        shape: rows (C + 1) and columns (L).
        block: the batch it belongs to, None outside `GridTasks`.
        buffer, at: where its pixels will lie.
    """

    def __init__(
        self, source: TaskSource, index: int, block: Block | None = None, buffer: PixelBuffer | None = None, at: int = 0
    ) -> None:
        super().__init__(source.walk(index), source.sampler.drawing, source.resolution, cells=source.cells)
        self.index, self.source, self.block = index, source, block
        self.shape = len(self.walk.rows), len(self.kinds)
        self.buffer, self.at = buffer or PixelBuffer(1), at
        self._pixels: Pixels | None = None
        self._painted: set[tuple[int, int]] = set()
        self._wanted: bool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name in _TRAVELS}
        return _sample, (self.source.token, self.index, self.block), state

    # ---- keys --------------------------------------------------------------------------------------------------------

    @cached_property
    def cell_keys(self) -> list[list[str]]:
        """Of each cell 32 hex digits, other ones whenever its pixels could differ; no node is read for them."""
        kinds = self.walk.kinds
        identities = [[self._identity(row, *cell) for cell in zip(kinds, variants, strict=True)]
                      for row, variants in enumerate(self.walk.variants)]  # fmt: skip
        common = f"{self.source.resolution}|{self.source.cells}"
        if self.source.cells.cell_fit == "aspect":  # the size of a cell depends on the others
            common += f"|{self.walk.holes}|{identities}"
        return [[_digest(f"{own}|{common}") for own in row] for row in identities]

    @cached_property
    def row_keys(self) -> list[str]:
        """The same of each row: its cells in shown order."""
        return [_digest("|".join(keys)) for keys in self.cell_keys]

    @cached_property
    def key(self) -> str:
        """The same of the whole grid."""
        return _digest("|".join(self.row_keys))

    @property
    def wanted(self) -> bool:
        """False if the consumer said, asked once, that it needs no pixels."""
        if self._wanted is None:
            self._wanted = self.source.known is None or not self.source.known(self)
        return self._wanted

    def _identity(self, row: int, kind: str, variant: int) -> str:
        offsets = self.source.sampler.graph.offsets
        return identity(offsets, self.walk.rows[row], kind, variant, seed=self.walk.seeds[row])

    # ---- pixels ------------------------------------------------------------------------------------------------------

    def pixels(self) -> Pixels:
        """All cells, rows x columns x height x width x 3 RGB uint8, black beside those smaller than the largest. The
        query row is last and holds its targets too. Pictures that were read for them are let go of."""
        todo = [cell for cell in product(*map(range, self.shape)) if cell not in self._painted]
        row = column = 0
        try:
            if not self.source.cache.max_bytes:
                # All are read before one is decoded: decoding fills the processor's caches, so that reading between
                # takes half as long again.
                for row, column in todo:
                    self.node(row, column)
            for row, column in todo:
                self._decode(row, column)
        except (LookupError, OSError, ValueError) as error:
            raise self._named(error, row, column) from error
        if todo:
            _ = self.instruction  # its words may name what a label map shows
            self._nodes.clear()
        assert self._pixels is not None
        return self._pixels

    def cell(self, row: int, column: int) -> Pixels:
        """One cell, the truth if it is a hole: height x width x 3 RGB uint8, a view of `pixels`."""
        row %= self.shape[0]
        if (row, column) not in self._painted:
            try:
                self._decode(row, column)
            except (LookupError, OSError, ValueError) as error:
                raise self._named(error, row, column) from error
        return self._view(row, column)

    def load(self) -> GridSample:
        """Decode all cells if they are wanted; returns itself."""
        if self.wanted:
            self.pixels()
        return self

    def _decode(self, row: int, column: int) -> None:
        place, cache = self._view(row, column), self.source.cache
        if not cache.max_bytes:
            self.paint(row, column, place)
        elif (cell := cache.get(key := self.cell_keys[row][column])) is not None:
            place[:] = cell
        else:
            self.paint(row, column, place)
            cache.put(key, place.copy())
        self._painted.add((row, column))

    def _view(self, row: int, column: int) -> Pixels:
        width, height = self.frames[row].size
        if self._pixels is None:
            widest, highest = width, height
            for frame in self.frames:
                widest, highest = max(widest, frame.size[0]), max(highest, frame.size[1])
            self._pixels = self.buffer.place(self.at, (*self.shape, highest, widest, 3))
            if self.cell_config.row_sizes == "own":
                self._pixels[:] = 0
        return self._pixels[row, column, :height, :width]

    def _named(self, error: Exception, row: int, column: int) -> Exception:
        """An error that names the cell."""
        walk = self.walk
        kind = type(error) if isinstance(error, CorruptNode | MissingNode) else GraphError
        return kind(
            f"grid task {self.index} ({walk.path.name}), row {row}, column {column}: item {walk.rows[row]}, "
            f"{walk.kinds[column]}: {type(error).__name__}: {error}"
        )


def joined(samples: Sequence[GridSample]) -> Pixels:
    """The pixels of the samples that are wanted, samples x rows x columns x height x width x 3 uint8, black beside
    cells smaller than the largest. Decodes what is not decoded yet; copies nothing that lies together already.

    Raises:
        ValueError: padded, they would take more than `graphbuild.data.buffers.MAX_BYTES`.
    """
    places = [sample.pixels() for sample in samples if sample.wanted]
    if (pixels := samples[0].buffer.filled(places)) is not None:
        return pixels
    side = (samples[0].resolution, samples[0].resolution)
    height, width = map(max, zip(*(place.shape[2:4] for place in places), strict=True)) if places else side
    shape = (len(places), *samples[0].shape, height, width, 3)
    check_bytes(shape)
    pixels = np.zeros(shape, np.uint8)
    for room, place in zip(pixels, places, strict=True):
        room[:, :, : place.shape[2], : place.shape[3]] = place
    return pixels


def _sample(token: str, index: int, block: Block | None) -> GridSample:
    if (source := _SOURCES.get(token)) is None:
        raise GraphError(
            f"sample {index} comes from another process; to receive it, keep its dataset alive in this one"
        )
    return GridSample(source, index, block)


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
