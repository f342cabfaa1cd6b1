"""Encoded grid tasks: latents as tokens, and the model's other inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphbuild.data import GridBatch

_MIXED = "the cells of a batch differ in size; allowed: micro_batch 1, or cell_fit crop_square"


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """B samples of S tokens of C channels. Tensors share a device.

    A base encodes units: whole rows, cells, or one canvas. Tokens come unit by unit, each in reading order.

    Attributes:
        z: float32 B x S x C, clean latents in the units that the model is trained on.
        generated: bool B x S, tokens inside holes.
        view: int64 B x S, which unit a token belongs to, counted from 0.
        ids: float32 S x n, position ids in the layout of the base.
        size: height and width in tokens of each unit.
        extra: float32 B x S x E, further input channels of the model; None for bases without.
        text: text embeddings and further conditioning of the base's model, by name; first dimension B.
        index: int64 B, indices of the walks, which seed all draws.
    """

    z: Tensor
    generated: Tensor
    view: Tensor
    ids: Tensor
    size: tuple[tuple[int, int], ...]
    extra: Tensor | None = None
    text: Mapping[str, Tensor]
    index: Tensor

    @classmethod
    def blank(
        cls, z: Tensor, ids: Tensor, size: tuple[tuple[int, int], ...], text: Mapping[str, Tensor]
    ) -> LatentBatch:
        """A batch of which only shapes matter; every token is to be generated."""
        tokens = z.new_zeros(z.shape[:2], dtype=torch.int64)
        return cls(z=z, generated=tokens == 0, view=tokens, ids=ids, size=size, text=text, index=tokens[:, 0])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each unit."""
        return [height * width for height, width in self.size]


def floats(pixels: Tensor) -> Tensor:
    """Pixels B x 3 x H x W of 0..255 as float32 in [-1, 1], channels last in memory."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def cells_of(grid: GridBatch) -> list[Tensor]:
    """Each cell of the decoded samples, row by row: uint8 D x 3 x height x width.

    Raises:
        ValueError: the samples' cells differ in size.
    """
    return [cell for row in grid.rows() for cell in row.chunk(grid.holes.shape[1], -1)]


def check_sides(grid: GridBatch, divisor: int) -> None:
    """Refuse samples of different sizes, and sides that are no multiples of `divisor`: a hole would end inside a token.

    Raises:
        ValueError: there are some.
    """
    if len(grid.sizes) and bool((grid.sizes != grid.sizes[0]).any()):
        raise ValueError(_MIXED)
    odd = (grid.sizes % divisor).any(-1)
    if bool(odd.any()):
        height, width = grid.sizes[odd][0].tolist()
        raise ValueError(f"resolution: cells of {width} x {height} pixels; allowed: multiples of {divisor}")


def stacked(samples: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The units of samples, 1 x C x h x w each, as one B x C x h x w for each unit.

    Raises:
        ValueError: the samples' units differ in size.
    """
    columns = list(zip(*samples, strict=True))
    if any(len({unit.shape for unit in column}) > 1 for column in columns):
        raise ValueError(_MIXED)
    return [torch.cat(column) for column in columns]


def holes_in_cells(grid: GridBatch) -> Tensor:
    """Bool B x R L, which cells are to be generated, row by row."""
    columns = grid.holes.shape[1]
    holes = grid.holes.new_zeros(len(grid.index), grid.items.shape[1] * columns)
    holes[:, -columns:] = grid.holes
    return holes


def shown_cells(grid: GridBatch) -> list[list[int]]:
    """The cells that each line of a grid shows, as positions row by row."""
    columns = grid.holes.shape[1]
    return [[row * columns + column for row, column in line] for line in grid.places]


def place_of(grid: GridBatch, column: int) -> tuple[int, int]:
    """Line and place in it of a cell of the last row; of the first one where it comes several times."""
    wanted = grid.items.shape[1] - 1, column
    return next((y, x) for y, line in enumerate(grid.places) for x, place in enumerate(line) if place == wanted)


def views(size: Sequence[tuple[int, int]]) -> Tensor:
    """int64 S, the unit of each token, for units of these heights and widths."""
    lengths = torch.tensor([height * width for height, width in size])
    return torch.arange(len(size)).repeat_interleave(lengths)


def holes_in_row(holes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool B x L holes as B x (h w) tokens of the row, h x w tokens in reading order."""
    height, width = size
    return holes.repeat_interleave(width // holes.shape[1], 1).repeat(1, height)
