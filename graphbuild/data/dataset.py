"""Grid tasks for torch: datasets whose samples are ids until their pixels are asked for, one position in training.

Sample i is a function of the sampler and i alone. A position in training is therefore one integer: the global index
before which everything was drawn, whatever the number of workers and processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from graphbuild.data.buffers import PixelBuffer
from graphbuild.data.prefetch import loaded
from graphbuild.data.sample import Block, GridSample, Known, TaskSource
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.mixture import Sampler

_CELLS = CellConfig()


class GridTasks(IterableDataset[GridSample]):
    """Grid tasks `start, start + 1, ...` in order, shared out among processes and DataLoader workers by index.

    A step is `world * batch` consecutive indices, `batch` for each rank. Worker w of W takes every W-th step: so
    `DataLoader(tasks, batch_size=batch, num_workers=W, collate_fn=collate)` gives the same batches for any W, and
    together the ranks give the same ones for any `world` with the same `world * batch`.

    Args:
        sampler: draws the tasks, a `PathSampler` or `TaskMixture`; its `path_repeat` is 1, or a multiple of `batch` so
            that a batch has one geometry.
        resolution: side of a cell in pixels.
        start, stop: global indices; without stop it never ends. With several ranks a whole number of steps.
        batch: samples a rank takes of each step; the `batch_size` of the DataLoader.
        rank, world: number of this process and of all; default: torch.distributed's, else `RANK`, `WORLD_SIZE`.
        prefetch: samples decoded ahead in each DataLoader worker, and so at most held; 0, or a process that is no
            worker, decodes when pixels are asked for.
        threads: decoding threads in each DataLoader worker.
        cache_bytes: size of the cache of decoded cells in each process.
        known: called with each sample; where it returns True, nothing is decoded. Spawned workers need it picklable.
        cells: how cells are made.

    Raises:
        ValueError: a value is out of range or does not go with another one.
    """

    def __init__(
        self, sampler: Sampler, *, resolution: int = 384, start: int = 0, stop: int | None = None, batch: int = 1,
        rank: int | None = None, world: int | None = None, prefetch: int = 4, threads: int = 2, cache_bytes: int = 0,
        known: Known | None = None, cells: CellConfig = _CELLS,
    ) -> None:  # fmt: skip
        self.start, self.stop, self.batch, self.prefetch, self.threads = start, stop, batch, prefetch, threads
        self.rank = _process("get_rank", "RANK", 0) if rank is None else rank
        self.world = _process("get_world_size", "WORLD_SIZE", 1) if world is None else world
        self.stride = self.world * batch
        self._check(sampler.path_repeat)
        self.source = TaskSource(sampler, resolution, cache_bytes, known, cells)
        self.source.prepare(get_worker_info() is not None)
        self._next, self._pending, self._own = start, False, False

    def __iter__(self) -> Iterator[GridSample]:
        self.source.prepare(get_worker_info() is not None)
        first = self._next if self._pending else self.start
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        step = (first - self.start) // self.stride + (0 if self._pending and self._own else worker)
        self._next, self._pending = max(first, self.start + step * self.stride), False
        return self._tracked(self._samples(self._next, step, workers), workers)

    def state_dict(self) -> dict[str, int]:
        """The position: all of its indices below `next` were yielded."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at `state["next"]`. In a DataLoader worker that is the worker's own position,
        elsewhere that of all workers and ranks together, whatever their number. A DataLoader with workers iterates
        over copies: it begins every iteration there, until another state is loaded."""
        self._next, self._pending, self._own = int(state["next"]), True, get_worker_info() is not None

    def _samples(self, first: int, step: int, workers: int) -> Iterator[GridSample]:
        while True:
            after = self.start + (step + 1) * self.stride
            begin = after - self.stride + self.rank * self.batch
            end = begin + self.batch if self.stop is None else min(begin + self.batch, self.stop)
            if end <= begin:
                return
            buffer = PixelBuffer(end - begin)
            for index in range(max(first, begin), end):
                yield GridSample(self.source, index, Block(begin, end, after), buffer, index - begin)
            step += workers

    def _tracked(self, samples: Iterator[GridSample], workers: int) -> Iterator[GridSample]:
        with closing(loaded(samples, self.prefetch, self.threads)) as ready:
            for sample in ready:
                assert sample.block is not None
                last = sample.index == sample.block.stop - 1
                self._next = sample.block.next + (workers - 1) * self.stride if last else sample.index + 1
                yield sample

    def _check(self, repeat: int) -> None:
        if self.batch < 1 or self.prefetch < 0 or self.threads < 1 or not 0 <= self.rank < self.world:
            raise ValueError(
                f"batch {self.batch}, prefetch {self.prefetch}, threads {self.threads}, rank {self.rank} of "
                f"{self.world}; allowed: batch and threads from 1, prefetch from 0, rank below world"
            )
        if repeat > 1 and (repeat % self.batch or self.start % self.batch):
            raise ValueError(
                f"start {self.start}, batch {self.batch} and the sampler's path_repeat {repeat}: a batch would mix "
                f"geometries; allowed: path_repeat and start multiples of batch"
            )
        if self.stop is not None and self.world > 1 and (self.stop - self.start) % self.stride:
            raise ValueError(f"stop {self.stop}: ranks would end apart; allowed: start + a multiple of {self.stride}")


class GridTaskList(Dataset[GridSample]):
    """Grid tasks `start` to `stop` by position, for evaluation or a custom order; arguments as above."""

    def __init__(
        self, sampler: Sampler, stop: int, *, resolution: int = 384, start: int = 0, threads: int = 2,
        cache_bytes: int = 0, known: Known | None = None, cells: CellConfig = _CELLS,
    ) -> None:  # fmt: skip
        self.indices, self.threads = range(start, stop), threads
        self.source = TaskSource(sampler, resolution, cache_bytes, known, cells)
        self._prepared = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> GridSample:
        """A sample as ids; it is decoded when its pixels are read."""
        return self._sample(at)

    def __getitems__(self, places: Sequence[int]) -> list[GridSample]:
        """A batch, as a DataLoader requests it; a worker decodes it in threads."""
        buffer = PixelBuffer(len(places))
        samples = (self._sample(place, buffer, at) for at, place in enumerate(places))
        return list(loaded(samples, len(places), self.threads))

    def _sample(self, place: int, buffer: PixelBuffer | None = None, at: int = 0) -> GridSample:
        if self._prepared != os.getpid():
            self.source.prepare(get_worker_info() is not None)
            self._prepared = os.getpid()
        return GridSample(self.source, self.indices[place], None, buffer, at)


def position(loader_state: Any) -> int:
    """The `next` to resume at, from the state of a StatefulDataLoader: the minimum over its workers.

    Raises:
        ValueError: no `GridTasks` position in it.
    """
    found = list(_positions(loader_state))
    if not found:
        raise ValueError("no position of GridTasks in this state; allowed: a state_dict() of a StatefulDataLoader")
    return min(found)


def _positions(state: Any) -> Iterator[int]:
    for key, value in state.items() if isinstance(state, dict) else ():
        if key == "next":
            yield int(value)
        yield from _positions(value)


def _process(call: str, variable: str, default: int) -> int:
    """Rank or world size: torch.distributed's where it runs, else what a launcher set."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(getattr(torch.distributed, call)())
    return int(os.environ.get(variable, default))
