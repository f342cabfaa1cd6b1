"""FLUX.1-dev with clean conditions: given cells are told time 0 (VisualCloze, arXiv 2504.07960, appendix B), or every
cell has a time of its own (OneDiffusion, arXiv 2411.16318)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux, per_token
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, geometry, grid_of
from graphbuild_train.objective import generators

if TYPE_CHECKING:
    from PIL import Image


class FluxDev(Base):
    """Units are cells, row by row, each encoded alone: latents of given cells know nothing of the target.

    Positions are (row from 1, y, x in the row); for `onediffusion` (view from 0, y, x in the cell). Text is told the
    noisiest time of its sample. diffusers has no pipeline for either objective: `sample` is the sampler.
    """

    objectives = ("visualcloze_dev", "onediffusion")
    attention, feed_forward = flux.ATTENTION, flux.FEED_FORWARD

    def __init__(self, pipe: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(pipe, *arguments, **options)
        per_token.tell_times(self.bare)

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers import FluxPipeline

        return FluxPipeline

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        rows = geometry(grid, flux.TOKEN)
        grid = grid.to(self.device)
        pixels, draws = grid.floats(), generators(seed, grid.index, "vae")
        cells = [
            flux.encoded(self.pipe.vae, pixels[..., top : top + height, left : left + width], draws)
            for top, left, height, width in chain(*rows)
        ]
        size = tuple((height // flux.TOKEN, width // flux.TOKEN) for _, _, height, width in chain(*rows))
        lengths = torch.tensor([cell.shape[1] for cell in cells], device=self.device)
        holes = torch.zeros(len(grid.index), len(cells), dtype=torch.bool, device=self.device)
        holes[:, -len(rows[0]) :] = grid.holes
        view = torch.arange(len(cells), device=self.device).repeat_interleave(lengths)
        return LatentBatch(
            z=torch.cat(cells, 1),
            generated=holes.repeat_interleave(lengths, 1),
            view=view.expand(len(grid.index), -1),
            ids=self._positions(rows, size).to(self.device),
            size=size,
            text=flux.encoded_text(self.pipe, grid.prompts, self.device),
            index=grid.index,
            types=grid.types,
            paths=grid.paths,
            next=grid.next,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        return self._velocity(x, level, batch, guidance=self.guidance)

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        predict = partial(self._velocity, guidance=guidance)
        made = []
        for task in tasks:
            batch = self.encode(grid_of(task), seed)
            cells = torch.split(self.objective.sample(predict, batch, steps=steps, seed=seed), batch.lengths, 1)
            first = len(cells) - len(task.walk.kinds)
            pixels = [flux.decoded(self.pipe.vae, cells[first + hole], batch.size[first + hole]) for hole in task.holes]
            made.append([self.pipe.image_processor.postprocess(cell, output_type="pil")[0] for cell in pixels])
        return made

    def _velocity(self, x: Tensor, level: Tensor, batch: LatentBatch, *, guidance: float) -> Tensor:
        lengths, words = batch.lengths, batch.text["prompt_embeds"]
        firsts = [0, *accumulate(lengths[:-1])]
        times = torch.cat([level.amax(1)[None], level[:, firsts].T])  # part by part, the text first
        velocity: Tensor = self.model(
            hidden_states=x.to(self.dtype),
            timestep=times.flatten(),
            guidance=flux.told_guidance(self.bare, guidance, times.numel()),
            pooled_projections=batch.text["pooled"].repeat(len(times), 1),
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=batch.ids,
            joint_attention_kwargs=per_token.parts(self.bare, lengths),
            return_dict=False,
        )[0]
        return velocity.float()

    def _positions(self, rows: list[list[tuple[int, int, int, int]]], size: Sequence[tuple[int, int]]) -> Tensor:
        if self.objective.name == "onediffusion":
            return torch.cat([flux.positions(view, unit) for view, unit in enumerate(size)])
        places = [(row, cell[1] // flux.TOKEN) for row, cells in enumerate(rows, start=1) for cell in cells]
        return torch.cat([flux.positions(row, unit, left) for (row, left), unit in zip(places, size, strict=True)])
