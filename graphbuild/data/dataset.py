"""Grid tasks for torch: datasets whose samples are ids until their pixels are asked for, and the batch they make.

Sample i is a function of the sampler and i alone. A position in training is therefore one integer: the global index
before which everything was drawn, whatever the number of workers and processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from graphbuild.data.prefetch import loaded
from graphbuild.data.sample import Block, GridSample, Known, Room, TaskSource, joined
from graphbuild.tasks.layouts import CellSwitches
from graphbuild.tasks.sampler import PathSampler


class GridTasks(IterableDataset[GridSample]):
    """Grid tasks `start, start + 1, ...` in order, shared out among processes and DataLoader workers by index.

    A step is `world * batch` consecutive indices, `batch` for each rank. Worker w of W takes every W-th step: so
    `DataLoader(tasks, batch_size=batch, num_workers=W, collate_fn=collate)` gives the same batches for any W, and
    together the ranks give the same ones for any `world` with the same `world * batch`.

    Args:
        sampler: draws them; its `group` is 1 or a multiple of `world * batch`, so that a batch has one geometry.
        resolution: side of a cell in pixels.
        start, stop: global indices; without stop it never ends. With several ranks a whole number of steps.
        batch: samples a rank takes of each step; the `batch_size` of the DataLoader.
        rank, world: this process among all; by default torch.distributed's, else `RANK` and `WORLD_SIZE`.
        prefetch: samples decoded ahead in each process, and so at most held; 0 decodes when pixels are asked for.
        threads: that decode ahead.
        cache_bytes: of decoded cells kept in each process.
        known: is asked for each sample's key; what it knows is not decoded. Spawned workers need it picklable.
        switches: how cells are made; by default as the sampler's configuration says, if it does.

    Raises:
        ValueError: a value is out of range or does not go with another one.
    """

    def __init__(
        self, sampler: PathSampler, *, resolution: int = 384, start: int = 0, stop: int | None = None, batch: int = 1,
        rank: int | None = None, world: int | None = None, prefetch: int = 4, threads: int = 2, cache_bytes: int = 0,
        known: Known | None = None, switches: CellSwitches | None = None,
    ) -> None:  # fmt: skip
        self.start, self.stop, self.batch, self.prefetch, self.threads = start, stop, batch, prefetch, threads
        self.rank = _process("get_rank", "RANK", 0) if rank is None else rank
        self.world = _process("get_world_size", "WORLD_SIZE", 1) if world is None else world
        self.stride = self.world * batch
        self._check(sampler.group)
        self.source = TaskSource(sampler, resolution, cache_bytes, known, switches)
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
        """Its position: all indices of its own before `next` were given out."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin at `state["next"]`: in a DataLoader worker that worker's position, elsewhere
        that of all workers and ranks together, however many there are now. A DataLoader with workers takes it for every
        iteration, until another state is loaded: it iterates over copies."""
        self._next, self._pending, self._own = int(state["next"]), True, get_worker_info() is not None

    def _samples(self, first: int, step: int, workers: int) -> Iterator[GridSample]:
        while True:
            after = self.start + (step + 1) * self.stride
            begin = after - self.stride + self.rank * self.batch
            end = begin + self.batch if self.stop is None else min(begin + self.batch, self.stop)
            if end <= begin:
                return
            room = Room(end - begin)
            for index in range(max(first, begin), end):
                yield GridSample(self.source, index, Block(begin, end, after), room, index - begin)
            step += workers

    def _tracked(self, samples: Iterator[GridSample], workers: int) -> Iterator[GridSample]:
        with closing(loaded(samples, self.prefetch, self.threads)) as ready:
            for sample in ready:
                assert sample.block is not None
                last = sample.index == sample.block.stop - 1
                self._next = sample.block.next + (workers - 1) * self.stride if last else sample.index + 1
                yield sample

    def _check(self, group: int) -> None:
        if self.batch < 1 or self.prefetch < 0 or self.threads < 1 or not 0 <= self.rank < self.world:
            raise ValueError(
                f"batch {self.batch}, prefetch {self.prefetch}, threads {self.threads}, rank {self.rank} of "
                f"{self.world}; allowed: batch and threads from 1, prefetch from 0, rank below world"
            )
        if group > 1 and (group % self.stride or self.start % group):
            raise ValueError(
                f"start {self.start}, world * batch {self.stride} and the sampler's group {group}: a batch would mix "
                f"geometries; allowed: group a multiple of world * batch, start a multiple of group"
            )
        if self.stop is not None and self.world > 1 and (self.stop - self.start) % self.stride:
            raise ValueError(f"stop {self.stop}: ranks would end apart; allowed: start + a multiple of {self.stride}")


class GridTaskList(Dataset[GridSample]):
    """Grid tasks `start` to `stop` by position, for evaluation or an order of one's own; arguments as above."""

    def __init__(
        self, sampler: PathSampler, stop: int, *, resolution: int = 384, start: int = 0, threads: int = 2,
        cache_bytes: int = 0, known: Known | None = None, switches: CellSwitches | None = None,
    ) -> None:  # fmt: skip
        self.indices, self.threads = range(start, stop), threads
        self.source = TaskSource(sampler, resolution, cache_bytes, known, switches)
        self._prepared = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> GridSample:
        """Ids; decoded when its pixels are asked for."""
        return self._sample(at)

    def __getitems__(self, places: Sequence[int]) -> list[GridSample]:
        """A batch, as a DataLoader asks for it, decoded by threads."""
        room = Room(len(places))
        samples = (self._sample(place, room, at) for at, place in enumerate(places))
        return list(loaded(samples, len(places), self.threads))

    def _sample(self, place: int, room: Room | None = None, at: int = 0) -> GridSample:
        if self._prepared != os.getpid():
            self.source.prepare(get_worker_info() is not None)
            self._prepared = os.getpid()
        return GridSample(self.source, self.indices[place], None, room, at)


@dataclass(frozen=True)
class GridBatch:
    """B grid tasks of R rows and L columns. Strings come in lists of B; tensors share a device.

    Attributes:
        index: int64 B, the walks; `items`: int64 B x R, their items.
        cells: uint8 D x R x L x 3 x height x width, RGB 0..255, targets included, black beside cells smaller than the
            largest; channels last in memory, which the samples share.
        decoded: int64 D, which samples `cells` holds: all of them, but for those that `known` knew.
        boxes: int32 B x R x L x 4, top, left, height and width of each cell in `pixels`.
        holes: bool B x L, columns of the last row that are to be generated.
        kinds: the kind of each shown column; `keys`, `row_keys`: see `GridSample`.
        snapshot: digest of the graph's state; `next`: the position to resume at after this batch.
    """

    index: Tensor
    items: Tensor
    cells: Tensor
    decoded: Tensor
    boxes: Tensor
    holes: Tensor
    paths: list[str]
    types: list[str]
    kinds: list[tuple[str, ...]]
    prompts: list[str]
    keys: list[str]
    row_keys: list[list[str]]
    snapshot: str
    next: int

    @cached_property
    def pixels(self) -> Tensor:
        """Uint8 D x 3 x H x W, RGB 0..255: each sample's cells as one picture, rows below each other, black beside
        shorter ones; channels last in memory. Put together on the device of `cells`."""
        boxes = self.boxes[self.decoded.to(self.boxes.device)]
        num_rows, num_columns, _, height, width = self.cells.shape[1:]
        if bool((boxes[..., 2] == height).all() and (boxes[..., 3] == width).all()):
            rows = self.cells.permute(0, 1, 4, 2, 5, 3)
            return rows.reshape(-1, num_rows * height, num_columns * width, 3).permute(0, 3, 1, 2)
        pictures = self.cells.new_zeros(len(self.cells), *self._extent, 3).permute(0, 3, 1, 2)
        for picture, cells, places in zip(
            pictures, self.cells.flatten(1, 2), boxes.flatten(1, 2).tolist(), strict=True
        ):
            for cell, (top, left, high, wide) in zip(cells, places, strict=True):
                picture[:, top : top + high, left : left + wide] = cell[:, :high, :wide]
        return pictures

    @property
    def _extent(self) -> list[int]:
        """Height and width of `pixels`."""
        ends = self.boxes[..., :2] + self.boxes[..., 2:]
        return ends.flatten(0, 2).max(0).values.tolist()

    def mask(self) -> Tensor:
        """Bool D x 1 x H x W, true inside holes."""
        mask = torch.zeros(len(self.cells), 1, *self._extent, dtype=torch.bool, device=self.cells.device)
        for at, sample in enumerate(self.decoded.tolist()):
            for top, left, height, width in self.boxes[sample, -1][self.holes[sample]].tolist():
                mask[at, :, top : top + height, left : left + width] = True
        return mask

    def floats(self) -> Tensor:
        """The pixels as float32 in [-1, 1]."""
        return self.pixels.float().div_(127.5).sub_(1.0)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> GridBatch:
        """The same with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GridBatch:
        """The same in page-locked memory; a DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> GridBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.type == "Tensor"}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(samples: Sequence[GridSample]) -> GridBatch:
    """A batch of samples; decodes those that are wanted and are not decoded yet.

    Raises:
        ValueError: they differ in rows or columns, or are not one batch of `GridTasks`.
    """
    _check_batch(samples)
    walks, snapshot = [sample.walk for sample in samples], samples[0].source.sampler.graph.digest
    decoded = [at for at, sample in enumerate(samples) if sample.wanted]
    cells, boxes = joined(samples), np.array([sample.boxes for sample in samples], np.int32)
    holes = np.zeros((len(walks), len(walks[0].columns)), bool)
    for row, walk in zip(holes, walks, strict=True):
        row[list(walk.holes)] = True
    last = samples[-1]
    return GridBatch(
        index=_integers([sample.index for sample in samples]),
        items=_integers([walk.rows for walk in walks]),
        cells=torch.from_numpy(cells).permute(0, 1, 2, 5, 3, 4),
        decoded=_integers(decoded),
        boxes=torch.from_numpy(boxes),
        holes=torch.from_numpy(holes),
        paths=[walk.path.name for walk in walks],
        types=[walk.path.type for walk in walks],
        kinds=[walk.kinds for walk in walks],
        prompts=[sample.prompt for sample in samples],
        keys=[sample.key for sample in samples],
        row_keys=[sample.row_keys for sample in samples],
        snapshot=snapshot,
        next=last.block.next if last.block else last.index + 1,
    )


def _integers(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64))  # a third of the time of torch.tensor


def _check_batch(samples: Sequence[GridSample]) -> None:
    indices, block = [sample.index for sample in samples], samples[0].block
    if block and indices != list(range(block.first, block.stop)):
        raise ValueError(
            f"samples {indices} are not the batch {block.first}..{block.stop - 1}; allowed: a DataLoader whose "
            f"batch_size is the batch of its GridTasks"
        )
    if len({sample.shape for sample in samples}) > 1:
        raise ValueError(f"samples {indices} differ in rows or columns; give the PathSampler group=world * batch")


def position(loader_state: Any) -> int:
    """The `next` to resume at, from the state of a StatefulDataLoader: the least of its workers'.

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
