"""Memory of decoded cells: the buffer of a batch, and a cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from threading import Lock

import numpy as np

from graphbuild.images.codecs import Pixels

MAX_BYTES = 4 << 30
"""Memory limit for the cells of one batch, in bytes."""


class PixelBuffer:
    """Preallocated pixels of one batch: samples of one shape lie in one array, so that putting the batch together
    copies nothing. Threads may share it.

    Attributes:
        pixels: samples x rows x columns x height x width x 3 uint8; None before the first `place`.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.pixels: Pixels | None = None
        self._lock = Lock()

    def place(self, at: int, shape: tuple[int, ...]) -> Pixels:
        """An uninitialised array of `shape`: slot `at` of the shared array, or its own where shapes differ.

        Raises:
            ValueError: the array would be larger than `MAX_BYTES`.
        """
        with self._lock:
            if self.pixels is None:
                check_bytes((self.samples, *shape))
                self.pixels = np.empty((self.samples, *shape), np.uint8)
        return self.pixels[at] if self.pixels.shape[1:] == shape else np.empty(shape, np.uint8)

    def filled(self, places: Sequence[Pixels]) -> Pixels | None:
        """The shared array if these are all its slots in order, else None."""
        whole = [] if self.pixels is None else list(self.pixels)
        same = [place.ctypes.data for place in places] == [place.ctypes.data for place in whole]
        return self.pixels if same else None


def check_bytes(shape: Sequence[int]) -> None:
    """Refuse a batch of cells beyond `MAX_BYTES`.

    Args:
        shape: samples, rows, columns, height, width, 3.

    Raises:
        ValueError: it is larger; the message has its figures.
    """
    if (nbytes := prod(shape)) > MAX_BYTES:
        samples, rows, columns, height, width = shape[:5]
        raise ValueError(
            f"a batch of {samples} grids of {rows} x {columns} cells, padded to {width} x {height} px, takes "
            f"{nbytes / 2**30:.1f} GiB; allowed: {MAX_BYTES / 2**30:.0f} GiB. Lower resolution or batch, or use "
            "row_sizes shared or cell_fit crop_square"
        )


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
