"""FLUX.2 klein: the given cells as reference images, each with a time coordinate of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, geometry, grid_of
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image

_TOKEN = 16
"""Pixels along the side of a token."""
_APART = 10
"""Between the time coordinates of pictures: the pipeline has the target at 0 and references at 10, 20, ..."""


class Flux2Klein(Base):
    """FLUX.2-klein-base, a model that is not distilled. Units are cells, encoded one by one, as the pipeline does.

    Tokens of a hole come first, then those of all given cells, row by row, then those of further holes; so a task with
    one hole is what the pipeline makes of its cells as references. Beyond about four references the model has seen
    nothing like it, and the LoRA has to learn it. The pipeline refuses references below 64 pixels a side and shrinks
    those above a megapixel: cells are to be of sizes between.
    """

    objectives = ("flux2_klein",)
    attention = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out"),  # single blocks: attention and feed-forward in one
    )
    feed_forward = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers import Flux2KleinPipeline

        return Flux2KleinPipeline

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        boxes = [box for row in geometry(grid, _TOKEN) for box in row]
        grid = grid.to(self.device)
        orders = [_order(len(boxes), holes) for holes in grid.holes.tolist()]
        sizes = {tuple((boxes[cell][2] // _TOKEN, boxes[cell][3] // _TOKEN) for cell in order) for order in orders}
        if len(sizes) > 1:
            raise ValueError("the holes of a batch differ in size; allowed: micro_batch 1, or row_sizes shared")
        (size,) = sizes
        encoded = []
        for picture, order in zip(grid.floats(), orders, strict=True):
            ordered = [boxes[cell] for cell in order]
            encoded.append(self._tokens([picture[None, :, y : y + h, x : x + w] for y, x, h, w in ordered]))
        lengths = torch.tensor([height * width for height, width in size])
        view = torch.arange(len(size)).repeat_interleave(lengths).to(self.device)
        further = len(size) - grid.holes.sum(1, keepdim=True)  # the last view that is given
        return LatentBatch(
            z=torch.cat([z for z, _ in encoded]).float(),
            generated=(view == 0) | (view > further),
            view=view.expand(len(orders), -1),
            ids=encoded[0][1],
            size=size,
            text=self._text(grid.prompts),
            index=grid.index,
            types=grid.types,
            paths=grid.paths,
            next=grid.next,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        velocity: Tensor = self.model(
            hidden_states=x.to(self.dtype),
            timestep=level[:, 0],
            encoder_hidden_states=batch.text["prompt_embeds"],
            txt_ids=batch.text["ids"],
            img_ids=batch.ids,
            return_dict=False,
        )[0]
        return velocity.float()

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        self.pipe.set_progress_bar_config(disable=True)
        return [
            (self._pipeline if len(task.holes) == 1 else self._euler)(task, steps, guidance, seed) for task in tasks
        ]

    def _pipeline(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        """One picture by the stock pipeline."""
        from PIL import Image

        grid = grid_of(task)
        batch = self.encode(grid, seed)
        noise = torch.randn(batch.z.shape[1:], generator=generator(seed, task.walk.index, "sample"))[None]
        cells = [cell for row in task.cells() for cell in row]
        given = [Image.fromarray(cells[cell]) for cell in _order(len(cells), grid.holes[0].tolist())[1:]]
        height, width = batch.size[0]
        made: list[Image.Image] = self.pipe(
            prompt=grid.prompts,
            image=given or None,
            height=height * _TOKEN,
            width=width * _TOKEN,
            latents=_picture(noise, batch, 0),
            num_inference_steps=steps,
            guidance_scale=guidance,
        ).images
        return made

    def _euler(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        """Several pictures at once, which the pipeline has no way to ask for, at its noise levels and guidance."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        batch = self.encode(grid_of(task), seed)
        wordless = replace(batch, text=self._text([""]))

        def guided(x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
            told, free = self.predict(x, level, batch), self.predict(x, level, wordless)
            return free + guidance * (told - free)

        mu = compute_empirical_mu(int(batch.generated.sum()), steps)
        sampler = replace(self.objective, shift=math.exp(mu))
        z = sampler.sample(guided if guidance > 1 else self.predict, batch, steps=steps, seed=seed)
        further = len(batch.size) - len(task.holes) + 1
        return [self._decode(_picture(z, batch, view)) for view in (0, *range(further, len(batch.size)))]

    def _tokens(self, cells: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents 1 x S x C and positions S x 4 (time, y, x, 0) of cells 1 x 3 x H x W, the first of them at time 0."""
        vae = self.pipe.vae
        z, ids = self.pipe.prepare_image_latents(cells, 1, None, self.device, vae.dtype)
        return z, ids[0].float() - torch.tensor([_APART, 0, 0, 0], device=ids.device)

    def _decode(self, latents: Tensor) -> Image.Image:
        pipe, norm = self.pipe, self.pipe.vae.bn
        spread = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        latents = latents * spread[:, None, None] + norm.running_mean[:, None, None]
        pixels = pipe.vae.decode(pipe._unpatchify_latents(latents.to(pipe.vae.dtype)), return_dict=False)[0]
        return pipe.image_processor.postprocess(pixels)[0]  # type: ignore[no-any-return]

    def _text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        hidden, ids = self.pipe.encode_prompt(list(prompts), device=self.device)
        return {"prompt_embeds": hidden, "ids": ids}


def _order(cells: int, holes: Sequence[bool]) -> list[int]:
    """Cells of a grid in the order of their tokens, of which the last have these holes."""
    made = [cells - len(holes) + column for column, hole in enumerate(holes) if hole]
    given = [cell for cell in range(cells) if cell not in made]
    return [*made[:1], *given, *made[1:]]


def _picture(tokens: Tensor, batch: LatentBatch, view: int) -> Tensor:
    """The latents of one view, B x C x height x width."""
    start = sum(batch.lengths[:view])
    own = tokens[:, start : start + batch.lengths[view]]
    return own.transpose(1, 2).reshape(len(own), -1, *batch.size[view])
