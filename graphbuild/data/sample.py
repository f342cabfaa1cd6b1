"""Samples of a dataset: grid tasks that are ids until their pixels are asked for, decoded where their batch lies."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import xxhash

from graphbuild.data.buffers import CellCache, PixelBuffer, check_bytes
from graphbuild.errors import CorruptNode, GraphError, MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.images.memory import keep_freed_memory
from graphbuild.kinds.registry import parents_of
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.keys import identity
from graphbuild.tasks.mixture import Sampler
from graphbuild.tasks.walk import Walk

Known = Callable[["GridSample"], bool]
"""Whether the consumer already has what it derives from a sample's pixels, such as latents."""

_PAGE = 64  # walks drawn at once


class Block(NamedTuple):
    """The indices that one batch consists of, and the global position after its step."""

    first: int
    stop: int
    next: int


class TaskSource:
    """State shared by the samples of one dataset. A sample sent to another process finds it there by its token."""

    def __init__(
        self, sampler: Sampler, resolution: int, cache_bytes: int, known: Known | None,
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
        """Index what the paths read; in a worker, also reopen what it must not share with its parent process."""
        if in_worker:
            import cv2

            cv2.setNumThreads(1)
            keep_freed_memory()
        if self._pid != os.getpid():
            for graph in {id(part.graph): part.graph for part in self.sampler.parts}.values():
                graph.reopen()
            self.cache, self._pid = CellCache(self.cache.max_bytes), os.getpid()
        for part in self.sampler.parts:
            read = {parent for path in part.paths for kind in path.kinds for parent in parents_of(kind)}
            words = {path.content.source for path in part.paths if path.content}
            for kind in sorted(read | words & set(part.graph.head)):
                part.graph.offsets(kind)


_SOURCES: WeakValueDictionary[str, TaskSource] = WeakValueDictionary()


def _source(token: str, *shared: Any) -> TaskSource:
    return _SOURCES.get(token) or TaskSource(*shared, token=token)


_TRAVELS = ("_pixels", "_painted", "_wanted", "frames", "instruction")


class GridSample(GridTask):
    """Grid task `index` of a dataset: each cell is decoded once, into the buffer of its batch.

    Attributes:
        shape: rows (C + 1) and columns (L).
        block: the batch it belongs to, None outside `GridTasks`.
        graph: where its pictures are.
        buffer, at: the buffer of its batch, and its slot there.
    """

    def __init__(
        self, source: TaskSource, index: int, block: Block | None = None, buffer: PixelBuffer | None = None, at: int = 0
    ) -> None:
        part = source.sampler.part(index)
        super().__init__(source.walk(index), part.drawing, source.resolution, cells=source.cells)
        self.index, self.source, self.block, self.graph = index, source, block, part.graph
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
        """The cache key of each cell (32 hex digits), which changes whenever its pixels could; reads no node."""
        kinds = self.walk.kinds
        identities = [[self._identity(row, column, kind, variants[column]) for column, kind in enumerate(kinds)]
                      for row, variants in enumerate(self.walk.variants)]  # fmt: skip
        common = f"{self.source.resolution}|{self.source.cells}"
        if self.source.cells.cell_fit == "aspect":  # the size of a cell depends on the others
            common += f"|{self.walk.holes}|{identities}"
        return [[_digest(f"{own}|{common}") for own in row] for row in identities]

    @cached_property
    def row_keys(self) -> list[str]:
        """The cache key of each row, from its cells in shown order."""
        return [_digest("|".join(keys)) for keys in self.cell_keys]

    @cached_property
    def key(self) -> str:
        """The cache key of the grid."""
        return _digest("|".join(self.row_keys))

    @property
    def wanted(self) -> bool:
        """Whether the consumer needs pixels; `known` is called once."""
        if self._wanted is None:
            self._wanted = self.source.known is None or not self.source.known(self)
        return self._wanted

    def _identity(self, row: int, column: int, kind: str, variant: int) -> str:
        found = identity(self.graph.offsets, self.walk.rows[row], kind, variant, seed=self.walk.seeds[row])
        return f"{found}|{self.drawing.key}.{self.walk.index}" if self.draws_colours(column) else found

    # ---- pixels ------------------------------------------------------------------------------------------------------

    def pixels(self) -> Pixels:
        """All cells, rows x columns x height x width x 3 RGB uint8, black beside those smaller than the largest. The
        query row is last and holds its targets too. Pictures that were read for them are let go of."""
        pixels = self._decoded(product(range(self.shape[0]), range(self.shape[1])))
        if self._nodes:
            _ = self.instruction  # its words may name what a label map shows
            self._nodes.clear()
        return pixels

    def cell(self, row: int, column: int) -> Pixels:
        """One cell, the truth if it is a hole: height x width x 3 RGB uint8, a view of `pixels`."""
        row %= self.shape[0]
        width, height = self.frames[row].size
        return self._decoded([(row, column)])[row, column, :height, :width]

    def load(self) -> GridSample:
        """Decode all cells if they are wanted; returns itself."""
        if self.wanted:
            self.pixels()
        return self

    def _decoded(self, cells: Iterable[tuple[int, int]]) -> Pixels:
        """Its pixels, of which these cells are decoded."""
        cache, row, column = self.source.cache, 0, 0
        try:
            if self.graph.fs.remote:
                self.graph.will_read(self._stored())
            pixels, todo = self._place(), []
            for row, column in cells:
                if (row, column) in self._painted:
                    continue
                if cache.max_bytes and (known := cache.get(self.cell_keys[row][column])) is not None:
                    pixels[row, column, : known.shape[0], : known.shape[1]] = known
                    self._painted.add((row, column))
                else:
                    # All are read before one is decoded: decoding fills the processor's caches, so that reading
                    # between takes half as long again.
                    todo.append((row, column, self.node(row, column)))
            for row, column, node in todo:
                frame = self.frame(row, column)
                width, height = frame.size
                frame.paint(node, place := pixels[row, column, :height, :width])
                if cache.max_bytes:
                    cache.put(self.cell_keys[row][column], place.copy())
                self._painted.add((row, column))
        except (LookupError, OSError, ValueError) as error:
            raise self._named(error, row, column) from error
        return pixels

    def _stored(self) -> Iterator[tuple[int, str, int]]:
        """The stored nodes that its cells are made from."""
        walk = self.walk
        for item_ix, variants in zip(walk.rows, walk.variants, strict=True):
            for kind, variant in zip(walk.kinds, variants, strict=True):
                for parent in parents_of(kind):
                    yield item_ix, parent, variant if parent == kind else 0

    def _place(self) -> Pixels:
        if self._pixels is None:
            widths, heights = zip(*[frame.size for frame in self.frames], strict=True)
            self._pixels = self.buffer.place(self.at, (*self.shape, max(heights), max(widths), 3))
            if self.cell_config.row_sizes == "own":
                self._pixels[:] = 0
        return self._pixels

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
    cells smaller than the largest. Decodes what is not decoded yet; contiguous samples are not copied.

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
