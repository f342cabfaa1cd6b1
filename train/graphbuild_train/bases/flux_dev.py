"""FLUX.1-dev with clean conditions: given cells have timestep 0 (VisualCloze, arXiv 2504.07960, appendix B), or every
cell has a timestep of its own (OneDiffusion, arXiv 2411.16318)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch, at_inference
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux, per_token
from graphbuild_train.bases.base import Base
from graphbuild_train.bases.rays import ray_latents, ray_picture, rays_in, without_rays
from graphbuild_train.batch import (
    LatentBatch,
    cells_of,
    check_sides,
    floats,
    holes_in_cells,
    place_of,
    shown_cells,
    views,
)
from graphbuild_train.forecast import Work, transformer_work

if TYPE_CHECKING:
    from PIL import Image


class FluxDev(Base):
    """Units are cells, row by row, each encoded alone: latents of given cells know nothing of the target.

    Positions are (row from 1, y, x in the row); for `onediffusion` (view from 0, y, x in the cell), targets being its
    first views. Text has the noisiest timestep of its sample. A cell of rays is a view of their coordinates, which no
    VAE encodes (`rays.py`). diffusers has no pipeline for either objective: `sample` is the sampler.
    """

    checkpoint, licence, pipeline = "black-forest-labs/FLUX.1-dev", flux.NON_COMMERCIAL, "FluxPipeline"
    objectives = ("visualcloze_dev", "onediffusion")
    sample_steps, sample_guidance, editor = 28, 3.5, "FluxImg2ImgPipeline"
    attention, feed_forward = flux.ATTENTION, flux.FEED_FORWARD
    large_encoders = ("text_encoder_2",)

    def __init__(self, pipe: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(pipe, *arguments, **options)
        per_token.time_by_part(self.bare)

    def work(self, image: int, text: int) -> Work:
        return transformer_work(self.bare, image, text)

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        size = ((side // flux.TOKEN, side // flux.TOKEN),) * (rows * columns)
        tokens = sum(height * width for height, width in size)
        z = self._zeros(count, tokens, config.in_channels)
        return LatentBatch.blank(z, self._zeros(tokens, 3), size, flux.blank_text(self.bare, count))

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        return list(chain(*cells))

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        return [floats(cell) for cell in cells_of(grid)]

    def words(self, prompt: str) -> dict[str, Tensor]:
        return flux.encoded_text(self.pipe, prompt, self.device)

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        grid = grid.to(self.device)
        found, lines = self._cells(grid, seed), shown_cells(grid)
        order = list(chain(*lines))
        cells = [found[cell] for cell in order]
        size = flux.sizes(cells)
        lengths = torch.tensor([height * width for height, width in size], device=self.device)
        return LatentBatch(
            z=torch.cat([flux.packed(cell).float() for cell in cells], 1),
            generated=holes_in_cells(grid)[:, order].repeat_interleave(lengths, 1),
            view=views(size).to(self.device).expand(len(grid.index), -1),
            ids=self._positions(size, len(lines[0])).to(self.device),
            size=size,
            text=self.text(grid.prompts),
            index=grid.index,
        )

    def _cells(self, grid: GridBatch, seed: int) -> list[Tensor]:
        """Latents of each cell, row by row, in the units of the model: draws of the VAE's posterior, and rays."""
        vae, column = self.pipe.vae, grid.ray_column
        found = [flux.scaled(vae, cell) for cell in self.drawn(without_rays(grid), seed)]
        if column is not None:
            for row, rays in enumerate(grid.rays.unbind(1)):
                found.insert(row * grid.holes.shape[1] + column, ray_latents(rays, self.latent_channels))
        return found

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        return self._velocity(x, level, batch, guidance=self.guidance)

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        predict = partial(self._velocity, guidance=guidance)
        batch = self.encode(grid := at_inference(task), seed)
        cells = torch.split(self.objective.sample(predict, batch, steps=steps, seed=seed), batch.lengths, 1)
        made = [y * len(grid.places[0]) + x for y, x in (place_of(grid, hole) for hole in task.holes)]
        return [
            self._picture(cells[view], batch.size[view], of_rays=hole == grid.ray_column)
            for view, hole in zip(made, task.holes, strict=True)
        ]

    def _picture(self, tokens: Tensor, size: tuple[int, int], *, of_rays: bool) -> Image.Image:
        if of_rays:
            return ray_picture(rays_in(flux.unpacked(tokens, size)), flux.VAE_SCALE)
        pixels = flux.decoded(self.pipe.vae, tokens, size)
        made: list[Image.Image] = self.pipe.image_processor.postprocess(pixels, output_type="pil")
        return made[0]

    def _velocity(self, x: Tensor, level: Tensor, batch: LatentBatch, *, guidance: float) -> Tensor:
        lengths, words = batch.lengths, batch.text["prompt_embeds"]
        firsts = [0, *accumulate(lengths[:-1])]
        times = torch.cat([level.amax(1)[None], level[:, firsts].T])  # part by part, the text first
        velocity: Tensor = self.model(
            hidden_states=x.to(self.dtype),
            timestep=times.flatten(),
            guidance=flux.guidance_of(self.bare, guidance, times.numel()),
            pooled_projections=batch.text["pooled"].repeat(len(times), 1),
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=batch.ids,
            joint_attention_kwargs=per_token.parts(self.bare, lengths),
            return_dict=False,
        )[0]
        return velocity.float()

    def _positions(self, size: Sequence[tuple[int, int]], columns: int) -> Tensor:
        if self.objective.family == "onediffusion":
            return torch.cat([flux.positions(view, unit) for view, unit in enumerate(size)])
        places = [divmod(cell, columns) for cell in range(len(size))]
        return torch.cat([
            flux.positions(row + 1, unit, column * unit[1]) for (row, column), unit in zip(places, size, strict=True)
        ])  # fmt: skip
