"""Samples: grid tasks that are ids until their pixels are asked for, decoded where their batch will lie."""

from __future__ import annotations

import ctypes
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import product
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import xxhash

from graphbuild.errors import CorruptNode, GraphError, MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import parents_of
from graphbuild.store.offsets import identity
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.layouts import Box, boxes
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk

Known = Callable[["GridSample"], bool]
"""Says of a sample, by its keys, whether the consumer has what it would make of the pixels, such as latents."""


_PAGE = 64  # walks drawn at once
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Block(NamedTuple):
    """The indices that one batch consists of, and the global position after its step."""

    first: int
    stop: int
    next: int


class Room:
    """Where the pixels of samples that will be a batch lie: in one array, if they are of one shape, so that putting the
    batch together copies nothing. Threads may share it.

    Attributes:
        pixels: samples x rows x columns x height x width x 3 uint8; None until a sample asked for its place.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.pixels: Pixels | None = None
        self._lock = Lock()

    def place(self, at: int, shape: tuple[int, ...]) -> Pixels:
        """Of `shape`, not initialised: number `at` of the array, or of its own where shapes differ."""
        with self._lock:
            if self.pixels is None:
                self.pixels = np.empty((self.samples, *shape), np.uint8)
        return self.pixels[at] if self.pixels.shape[1:] == shape else np.empty(shape, np.uint8)

    def filled(self, places: Sequence[Pixels]) -> Pixels | None:
        """The array if these are all its places in order, else None."""
        whole = [] if self.pixels is None else list(self.pixels)
        same = [place.ctypes.data for place in places] == [place.ctypes.data for place in whole]
        return self.pixels if same else None


class CellCache:
    """The decoded cells used last, by key, in at most `max_bytes` bytes. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._cells: OrderedDict[str, Pixels] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> Pixels | None:
        with self._lock:
            if key in self._cells:
                self._cells.move_to_end(key)
            return self._cells.get(key)

    def put(self, key: str, cell: Pixels) -> None:
        with self._lock:
            self.nbytes += cell.nbytes - getattr(self._cells.pop(key, None), "nbytes", 0)
            self._cells[key] = cell
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._cells.popitem(last=False)[1].nbytes


def keep_freed_memory() -> None:
    """Let the allocator reuse the memory of dropped pictures instead of giving it back to the system and faulting in
    new pages for the next: a tenth of a worker's time. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


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


_TRAVELS = ("_pixels", "_painted", "_wanted", "boxes")


class GridSample:
    """Grid task `index`: ids at first; its pixels are decoded when they are asked for, each cell once.

    Attributes:
        walk: the ids; `shape`: rows (C + 1) and columns (L).
        block: the batch it belongs to, None outside `GridTasks`.
        room, at: where its pixels will lie.
    """

    def __init__(
        self, source: TaskSource, index: int, block: Block | None = None, room: Room | None = None, at: int = 0
    ) -> None:
        self.index, self.block, self.source = index, block, source
        self.walk = source.walk(index)
        self.shape = len(self.walk.rows), len(self.walk.columns)
        self.room, self.at = room or Room(1), at
        self._task: GridTask | None = None
        self._pixels: Pixels | None = None
        self._painted: set[tuple[int, int]] = set()
        self._wanted: bool | None = None

    @property
    def task(self) -> GridTask:
        """The grid task; let go of once all cells are decoded, as its pictures may be large."""
        if self._task is None:
            source = self.source
            self._task = source.sampler.task(self.walk, source.resolution, cells=source.cells)
        return self._task

    @cached_property
    def prompt(self) -> str:
        """The instruction."""
        return self.task.prompt

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name in _TRAVELS}
        return _sample, (self.source.token, self.index, self.block), state

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

    @cached_property
    def boxes(self) -> list[list[Box]]:
        """Where each cell lies when rows are below each other. Pictures have to be read for that where cells keep their
        `aspect`, unless the sample is not wanted: then its cells count as squares."""
        if self.wanted:
            return self.task.boxes
        side = (self.source.resolution,) * 2
        return boxes([side] * self.shape[0], self.shape[1])

    def pixels(self) -> Pixels:
        """All cells, rows x columns x height x width x 3 RGB uint8, black beside those smaller than the largest. The
        query row is last and holds its targets too."""
        cells = [cell for cell in product(*map(range, self.shape)) if cell not in self._painted]
        if not self.source.cache.max_bytes:
            # All are read before one is decoded: decoding fills the processor's caches, so that reading between takes
            # half as long again.
            for cell in cells:
                self._named(self.task.node, *cell)
        for cell in cells:
            self._named(self._paint, *cell)
        if cells:
            _, self._task = self.prompt, None
        return self._place

    def cell(self, row: int, column: int) -> Pixels:
        """One cell, height x width x 3 RGB uint8, a view of `pixels`."""
        if (row, column) not in self._painted:
            self._named(self._paint, row, column)
        return self._view(row, column)

    def cells(self) -> list[list[Pixels]]:
        """All cells, row by row."""
        self.pixels()
        rows, columns = (range(number) for number in self.shape)
        return [[self.cell(row, column) for column in columns] for row in rows]

    def rows(self) -> list[Pixels]:
        """Each row as one picture, height x width x 3 RGB uint8: its cells side by side."""
        return [np.concatenate(row, axis=1) for row in self.cells()]

    def load(self) -> GridSample:
        """Decode all cells if they are wanted; returns itself."""
        if self.wanted:
            self.pixels()
        return self

    @property
    def _place(self) -> Pixels:
        """The pixels, as far as they are painted."""
        if self._pixels is None:
            sizes = {(row[0].height, row[0].width) for row in self.boxes}
            height, width = map(max, zip(*sizes, strict=True))
            self._pixels = self.room.place(self.at, (*self.shape, height, width, 3))
            if len(sizes) > 1:
                self._pixels[:] = 0
        return self._pixels

    def _view(self, row: int, column: int) -> Pixels:
        box = self.boxes[row][column]
        return self._place[row, column, : box.height, : box.width]

    def _paint(self, row: int, column: int) -> None:
        place, cache = self._view(row, column), self.source.cache
        if not cache.max_bytes:
            self.task.paint(row, column, place)
        elif (cell := cache.get(key := self.cell_keys[row][column])) is not None:
            place[:] = cell
        else:
            self.task.paint(row, column, place)
            cache.put(key, place.copy())
        self._painted.add((row, column))

    def _named(self, work: Callable[[int, int], object], row: int, column: int) -> None:
        """Do it; its errors name the cell."""
        try:
            work(row, column)
        except (LookupError, OSError, ValueError) as error:
            walk = self.walk
            kind = type(error) if isinstance(error, CorruptNode | MissingNode) else GraphError
            raise kind(
                f"grid task {self.index} ({walk.path.name}), row {row}, column {column}: item {walk.rows[row]}, "
                f"{walk.kinds[column]}: {type(error).__name__}: {error}"
            ) from error

    def _identity(self, row: int, kind: str, variant: int) -> str:
        offsets = self.source.sampler.graph.offsets
        return identity(offsets, self.walk.rows[row], kind, variant, seed=self.walk.seeds[row])


def joined(samples: Sequence[GridSample]) -> Pixels:
    """The pixels of the samples that are wanted, samples x rows x columns x height x width x 3 uint8, black beside
    cells smaller than the largest. Decodes what is not decoded yet; copies nothing that lies together already."""
    places = [sample.pixels() for sample in samples if sample.wanted]
    if (pixels := samples[0].room.filled(places)) is not None:
        return pixels
    cells = [sample.boxes[row][0] for sample in samples for row in range(sample.shape[0])]
    height, width = max(cell.height for cell in cells), max(cell.width for cell in cells)
    pixels = np.zeros((len(places), *samples[0].shape, height, width, 3), np.uint8)
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
