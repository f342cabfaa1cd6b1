"""Viewing rays as latents, as OneDiffusion has them (D. Le et al., arXiv 2411.16318): the six coordinates of each ray,
repeated to the channels of the VAE and scaled to about unit variance, are a view of their own beside the pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from graphbuild.data import GridBatch

if TYPE_CHECKING:
    from PIL import Image

SCALE = 1.658
"""OneDiffusion's factor."""


def ray_latents(rays: Tensor, channels: int) -> Tensor:
    """B x 6 x h x w rays as B x `channels` x h x w, in the units of the model."""
    return rays.repeat(1, -(-channels // 6), 1, 1)[:, :channels] * SCALE


def rays_in(latents: Tensor) -> Tensor:
    """The opposite: each coordinate is the mean of its copies."""
    copies = [latents[:, coordinate::6].mean(1) for coordinate in range(6)]
    return torch.stack(copies, 1) / SCALE


def ray_picture(rays: Tensor, side: int) -> Image.Image:
    """The directions of 1 x 6 x h x w rays as a picture, `side` pixels for each; as `draw_rays` draws a camera."""
    from PIL import Image

    direction = torch.nn.functional.normalize(rays[:, 3:], dim=1)
    larger = interpolate(direction, scale_factor=side, mode="bilinear")
    pixels = (127.5 + 127.5 * larger).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels[0].permute(1, 2, 0).cpu().numpy())


def without_rays(grid: GridBatch) -> GridBatch:
    """A batch without the column of rays, whose pictures no VAE needs to see."""
    if (column := grid.ray_column) is None:
        return grid
    kept = [each for each in range(grid.holes.shape[1]) if each != column]
    keys = [[[row[each] for each in kept] for row in rows] for rows in grid.cell_keys]
    return replace(grid, cells=grid.cells[:, :, kept], holes=grid.holes[:, kept], cell_keys=keys)
