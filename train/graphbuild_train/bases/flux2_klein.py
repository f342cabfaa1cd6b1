"""FLUX.2 klein: the given cells as reference images, each with a time coordinate of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch, at_inference
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, cells_of, check_sides, floats, stacked, views
from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import Work, transformer_work
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image

_TOKEN = 16
"""Pixels along the side of a token."""
_LEAST, _MOST = 64, 1024
"""Sides of a square reference that the pipeline takes as it is."""
_APART = 10
"""Between the time coordinates of pictures: the pipeline has the target at 0 and references at 10, 20, ..."""


class Flux2Klein(Base):
    """FLUX.2-klein-base, a model that is not distilled. Units are cells, encoded one by one, as the pipeline does.

    Tokens of a hole come first, then those of all given cells, row by row, then those of further holes; so a task with
    one hole is what the pipeline makes of its cells as references. Beyond about four references the model has seen
    nothing like it, and the LoRA has to learn it. The pipeline refuses references below 64 pixels a side and shrinks
    those above a megapixel: cells are to be of sizes between.
    """

    checkpoint, licence = "black-forest-labs/FLUX.2-klein-base-4B", {"license": "apache-2.0"}
    pipeline = "Flux2KleinPipeline"
    objectives = ("flux2_klein",)
    sample_steps, sample_guidance, editor = 50, 4.0, "Flux2KleinInpaintPipeline"
    large_encoders = ("text_encoder",)
    attention = (
        *flux.ATTENTION,
        *("attn.to_qkv_mlp_proj", "attn.to_out"),  # single blocks: attention and feed-forward in one
    )
    feed_forward = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        if not _LEAST <= config.resolution <= _MOST:
            raise ValueError(
                f"resolution: {config.resolution}; allowed for flux2_klein: {_LEAST} to {_MOST}; its pipeline refuses "
                "smaller references and shrinks larger ones"
            )

    def work(self, image: int, text: int) -> Work:
        return transformer_work(self.bare, image, text)

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        size = ((side // _TOKEN, side // _TOKEN),) * (rows * columns)
        tokens = sum(height * width for height, width in size)
        text = {
            "prompt_embeds": self._zeros(count, self.text_tokens, config.joint_attention_dim),
            "ids": self._zeros(self.text_tokens, 4),
        }
        z = self._zeros(count, tokens, config.in_channels)
        return LatentBatch.blank(z, self._zeros(tokens, 4), size, text)

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        return list(chain(*cells))

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        return [floats(cell).contiguous() for cell in cells_of(grid)]

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        grid = grid.to(self.device)
        found = zip(self.posteriors(grid), grid.holes.tolist(), strict=True)
        cells = stacked([[self._normal(own[cell].mode()) for cell in _order(len(own), holes)] for own, holes in found])
        size = tuple((cell.shape[2], cell.shape[3]) for cell in cells)
        view = views(size).to(self.device)
        further = len(size) - grid.holes.sum(1, keepdim=True)  # the last view that is given
        return LatentBatch(
            z=torch.cat([cell.flatten(2).transpose(1, 2) for cell in cells], 1).float(),
            generated=(view == 0) | (view > further),
            view=view.expand(len(grid.index), -1),
            ids=torch.cat([_positions(_APART * time, unit) for time, unit in enumerate(size)]).to(self.device),
            size=size,
            text=self.text(grid.prompts),
            index=grid.index,
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

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        return (self._pipeline if len(task.holes) == 1 else self._euler)(task, steps, guidance, seed)

    def _pipeline(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        """One picture by the stock pipeline."""
        from PIL import Image

        grid = at_inference(task)
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

        batch = self.encode(at_inference(task), seed)
        wordless = replace(batch, text=self.text([""]))

        def guided(x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
            guided, free = self.predict(x, level, batch), self.predict(x, level, wordless)
            return free + guidance * (guided - free)

        mu = compute_empirical_mu(int(batch.generated.sum()), steps)
        sampler = replace(self.objective, shift=math.exp(mu))
        z = sampler.sample(guided if guidance > 1 else self.predict, batch, steps=steps, seed=seed)
        further = len(batch.size) - len(task.holes) + 1
        return [self._decode(_picture(z, batch, view)) for view in (0, *range(further, len(batch.size)))]

    def _normal(self, latents: Tensor) -> Tensor:
        """Latents of the VAE as the model has them: pairs by pairs, each channel at mean 0 and variance 1."""
        pipe, norm = self.pipe, self.pipe.vae.bn
        latents = pipe._patchify_latents(latents)
        mean = norm.running_mean.view(1, -1, 1, 1).to(latents)
        spread = (norm.running_var.view(1, -1, 1, 1) + pipe.vae.config.batch_norm_eps).sqrt().to(latents)
        normal: Tensor = (latents - mean) / spread
        return normal

    def _decode(self, latents: Tensor) -> Image.Image:
        pipe, norm = self.pipe, self.pipe.vae.bn
        spread = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        latents = latents * spread[:, None, None] + norm.running_mean[:, None, None]
        pixels = pipe.vae.decode(pipe._unpatchify_latents(latents.to(pipe.vae.dtype)), return_dict=False)[0]
        return pipe.image_processor.postprocess(pixels)[0]  # type: ignore[no-any-return]

    def words(self, prompt: str) -> dict[str, Tensor]:
        hidden, ids = self.pipe.encode_prompt([prompt], device=self.device)
        return {"prompt_embeds": hidden, "ids": ids}


def _order(cells: int, holes: Sequence[bool]) -> list[int]:
    """Cells of a grid in the order of their tokens, of which the last have these holes."""
    made = [cells - len(holes) + column for column, hole in enumerate(holes) if hole]
    given = [cell for cell in range(cells) if cell not in made]
    return [*made[:1], *given, *made[1:]]


def _positions(time: int, size: tuple[int, int]) -> Tensor:
    """h w x 4 float32 (time, y, x, 0)."""
    height, width = size
    one = torch.tensor([0])
    return torch.cartesian_prod(one + time, torch.arange(height), torch.arange(width), one).float()


def _picture(tokens: Tensor, batch: LatentBatch, view: int) -> Tensor:
    """The latents of one view, B x C x height x width."""
    start = sum(batch.lengths[:view])
    own = tokens[:, start : start + batch.lengths[view]]
    return own.transpose(1, 2).reshape(len(own), -1, *batch.size[view])
