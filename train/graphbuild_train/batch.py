"""What a base makes of grid tasks: latents as tokens, and all that its model is told beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild.tasks.grid import GridTask


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """B samples of S tokens of C channels. Tensors share a device.

    A base encodes units: whole rows, cells, or one canvas. Tokens come unit by unit, each in reading order.

    Attributes:
        z: float32 B x S x C, clean latents in the units that the model is trained on.
        generated: bool B x S, tokens inside holes.
        view: int64 B x S, which unit a token belongs to, counted from 0.
        ids: float32 S x n, positions as the base counts them.
        size: height and width in tokens of each unit.
        extra: float32 B x S x E, channels that the model gets beside the noisy ones; None for bases without.
        text: what the base's model wants to be told, by name; first dimension B.
        index: int64 B, the walks; all randomness is counted by them.
        types, paths: of the tasks; `next`: the position to resume at after this batch.
    """

    z: Tensor
    generated: Tensor
    view: Tensor
    ids: Tensor
    size: tuple[tuple[int, int], ...]
    extra: Tensor | None = None
    text: Mapping[str, Tensor]
    index: Tensor
    types: Sequence[str] = ()
    paths: Sequence[str] = ()
    next: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each unit."""
        return [height * width for height, width in self.size]


def geometry(grid: GridBatch, divisor: int) -> list[list[tuple[int, int, int, int]]]:
    """Top, left, height and width in pixels of every cell, row by row, the same for all samples.

    Raises:
        ValueError: samples differ, or a side is not a multiple of `divisor`: a hole would end inside a token.
    """
    boxes = grid.boxes[0]
    if not bool((grid.boxes == boxes).all()):
        raise ValueError("the cells of a batch differ in size; allowed: micro_batch 1, or cell_fit crop_square")
    if bool((boxes % divisor).any()):
        height, width = boxes[..., 2:][(boxes % divisor).any(-1)][0].tolist()
        raise ValueError(f"resolution: cells of {width} x {height} pixels; allowed: multiples of {divisor}")
    return [[(box[0], box[1], box[2], box[3]) for box in row] for row in boxes.tolist()]


def grid_of(task: GridTask) -> GridBatch:
    """A task as a batch of one to sample from: holes not shown, words as at inference."""
    cells = task.cells()
    height, width = (max(cell.shape[side] for row in cells for cell in row) for side in (0, 1))
    pixels = np.zeros((1, len(cells), len(cells[0]), height, width, 3), np.uint8)
    for row, column in np.ndindex(pixels.shape[1:3]):
        high, wide = cells[row][column].shape[:2]
        pixels[0, row, column, :high, :wide] = cells[row][column]
    walk = task.walk
    return GridBatch(
        index=torch.tensor([walk.index]),
        items=torch.tensor([walk.rows]),
        cells=torch.from_numpy(pixels).permute(0, 1, 2, 5, 3, 4),
        decoded=torch.tensor([0]),
        boxes=torch.tensor([task.boxes], dtype=torch.int32),
        holes=torch.from_numpy(task.hole_mask[-1:].copy()),
        paths=[walk.path.name],
        types=[walk.path.type],
        kinds=[walk.kinds],
        prompts=[task.evaluation.text],
        keys=[""],
        row_keys=[[""] * len(cells)],
        snapshot=task.drawing.graph.digest,
        next=walk.index + 1,
    )
