"""FLUX.1-Fill as VisualCloze (arXiv 2504.07960) uses it: all rows are noised, and shown with holes in extra channels.

What the model gets is, bit for bit, what diffusers' `VisualClozePipeline` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.layouts import FILLS, generate
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, geometry
from graphbuild_train.objective import generator, generators

if TYPE_CHECKING:
    from PIL import Image


class FluxFill(Base):
    """Units are rows. `extra` is 64 channels of latents with the holes filled and 256 of mask, 1 inside holes.

    The pipeline fills holes with black: `hole_fill="grey"` trains for samplers of one's own.
    """

    objectives = ("visualcloze_fill",)
    attention, feed_forward = flux.ATTENTION, flux.FEED_FORWARD

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers import VisualClozePipeline

        return VisualClozePipeline

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        rows = geometry(grid, flux.TOKEN)
        grid = grid.to(self.device)
        pixels, hidden = grid.floats(), grid.mask()
        shown = pixels.masked_fill(hidden, FILLS[self.hole_fill] / 127.5 - 1)
        areas = [_area(row) for row in rows]
        draws = generators(seed, grid.index, "vae")
        seen = [flux.encoded(self.pipe.vae, shown[area], draws) for area in areas]
        truth = flux.encoded(self.pipe.vae, pixels[areas[-1]], draws)  # other rows have no holes
        mask = torch.cat([flux.packed_mask(hidden[area].float()) for area in areas], 1)
        size = tuple((row[0][2] // flux.TOKEN, sum(cell[3] for cell in row) // flux.TOKEN) for row in rows)
        view = torch.cat([torch.full((height * width,), row) for row, (height, width) in enumerate(size)])
        return LatentBatch(
            z=torch.cat([*seen[:-1], truth], 1),
            generated=mask[..., 0].bool(),
            view=view.to(self.device).expand(len(grid.index), -1),
            ids=torch.cat([flux.positions(row, unit) for row, unit in enumerate(size, start=1)]).to(self.device),
            size=size,
            extra=torch.cat([torch.cat(seen, 1), mask], -1),
            text=flux.encoded_text(self.pipe, grid.prompts, self.device),
            index=grid.index,
            types=grid.types,
            paths=grid.paths,
            next=grid.next,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        assert batch.extra is not None
        words = batch.text["prompt_embeds"]
        velocity: Tensor = self.model(
            hidden_states=torch.cat([x, batch.extra], -1).to(self.dtype),
            timestep=level[:, 0],
            guidance=flux.told_guidance(self.bare, self.guidance, len(x)),
            pooled_projections=batch.text["pooled"],
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=batch.ids,
            return_dict=False,
        )[0]
        return velocity.float()

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        stage = self.pipe.generation_pipe
        stage.set_progress_bar_config(disable=True)
        made = []
        for task in tasks:
            stage.image_processor.resolution = task.resolution
            draws = generator(seed, task.walk.index, "sample")
            options = {"num_inference_steps": steps, "guidance_scale": guidance, "max_sequence_length": 512}
            made.append(generate(stage, task.pipeline_kwargs(), generator=draws, **options))
        return made


def _area(row: list[tuple[int, int, int, int]]) -> tuple[Any, ...]:
    """Where a row is in the pictures of a batch."""
    top, _, height, _ = row[0]
    return ..., slice(top, top + height), slice(0, sum(cell[3] for cell in row))
