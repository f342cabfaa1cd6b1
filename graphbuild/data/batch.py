"""Batches: grid tasks of one geometry as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.data.sample import GridSample, joined


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
