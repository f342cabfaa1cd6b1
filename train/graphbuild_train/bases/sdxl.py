"""SDXL: the whole grid as one canvas, of which the holes are noised (ONE-PIC, arXiv 2412.05619)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from graphbuild.data import GridBatch, at_inference
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import (
    LatentBatch,
    cells_of,
    check_sides,
    floats,
    holes_in_cells,
    holes_in_row,
    place_of,
    shown_cells,
)
from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import Work, unet_work
from graphbuild_train.objective import Ddpm, Objective, generator

if TYPE_CHECKING:
    from PIL import Image

_LATENT = 8
"""Pixels along the side of a latent pixel."""


class Sdxl(Base):
    """Stable Diffusion XL (arXiv 2307.01952). A token is one latent pixel; the canvas is the only unit of a batch.

    Cells are encoded one by one and put together as latents: the VAE attends to all of a picture, so that given parts
    of an encoded canvas would show what is to be generated. It stays in float32, as it overflows in half precision.
    The text encoders read 77 tokens with those that begin and end an instruction; the rest of a longer one is cut, in
    training as in the pipeline, so that tasks on a canvas say their content first.
    """

    checkpoint, licence = "stabilityai/stable-diffusion-xl-base-1.0", {"license": "openrail++"}
    pipeline, editor = "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
    objectives = ("onepic",)
    token, text_tokens = 8, 77
    dtypes: ClassVar = {"vae": torch.float32}
    multiple = 2 * _LATENT  # the UNet halves what it gets
    denoiser = "unet"
    attention = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # those of the paper: .618 % of the model at rank 32
    feed_forward = (
        *("attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        *("ff.net.0.proj", "ff.net.2"),
    )

    def work(self, image: int, text: int) -> Work:
        return unet_work(self.bare, image, text)

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        if config.cells.cell_fit == "aspect" and config.cells.row_sizes == "own":
            raise ValueError("cells.row_sizes: 'own'; allowed for sdxl: shared, as cells fill a canvas")

    @classmethod
    def load(cls, model: str, objective: Objective, *, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Self:
        """See `Base.load`.

        Raises:
            ValueError: a checkpoint that does not predict noise.
        """
        base = super().load(model, objective, dtype=dtype, **options)
        if (says := base.pipe.scheduler.config.prediction_type) != "epsilon":
            raise ValueError(f"model: {model!r} predicts {says}; allowed for sdxl: models that predict epsilon")
        return base

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        down, across = rows * side // _LATENT, columns * side // _LATENT
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        text = {
            "prompt_embeds": self._zeros(count, self.text_tokens, config.cross_attention_dim),
            "pooled": self._zeros(count, pooled), "sizes": self._zeros(count, 6),
        }  # fmt: skip
        z = self._zeros(count, down * across, config.in_channels)
        return LatentBatch.blank(z, self._zeros(down * across, 2), ((down, across),), text)

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        return list(chain(*cells))

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        return [floats(cell) for cell in cells_of(grid)]

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        grid = grid.to(self.device)
        cells, lines = self.drawn(grid, seed), shown_cells(grid)
        rows = [torch.cat([cells[cell] for cell in line], 3) for line in lines]
        if len({row.shape[3] for row in rows}) > 1:
            raise ValueError("cells do not fill a canvas; allowed for sdxl: row_sizes shared, or square cells")
        z = torch.cat(rows, 2) * self.pipe.vae.config.scaling_factor
        batch, _, down, across = z.shape
        holes = holes_in_cells(grid)
        made = [holes_in_row(holes[:, line], (row.shape[2], across)) for line, row in zip(lines, rows, strict=True)]
        return LatentBatch(
            z=z.flatten(2).transpose(1, 2),
            generated=torch.cat(made, 1),
            view=torch.zeros(batch, down * across, dtype=torch.int64, device=self.device),
            ids=torch.cartesian_prod(torch.arange(down), torch.arange(across)).float().to(self.device),
            size=((down, across),),
            text=self._text(grid.prompts, down * _LATENT, across * _LATENT),
            index=grid.index,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        noise: Tensor = self.model(
            _canvas(x, batch).to(self.dtype),
            Ddpm().step(level[:, 0]),
            encoder_hidden_states=batch.text["prompt_embeds"],
            added_cond_kwargs={"text_embeds": batch.text["pooled"], "time_ids": batch.text["sizes"]},
            return_dict=False,
        )[0]
        return noise.float().flatten(2).transpose(1, 2)

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        from diffusers import DPMSolverMultistepScheduler

        # Samplers that divide latents by their scale, as SDXL's own does, would scale the given cells down.
        self.pipe.scheduler = DPMSolverMultistepScheduler(  # type: ignore[no-untyped-call]
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            timestep_spacing="trailing",  # begins at the last step, as only there a hole is pure noise
        )  # fmt: skip
        grid = at_inference(task)
        batch = self.encode(grid, seed)
        ((down, across),) = batch.size
        noise = torch.randn(batch.z.shape[1:], generator=generator(seed, task.walk.index, "sample"))[None].to(batch.z)
        hole = _canvas(batch.generated[..., None], batch)
        given, noise = (_canvas(tokens, batch).to(self.dtype) for tokens in (batch.z, noise))

        def keep(pipe: Any, step: int, time: Tensor, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"latents": torch.where(hole, made["latents"], given)}

        latents = self.pipe(
            prompt=grid.prompts,
            negative_prompt=[""],  # what training sees where the words are left out; the default is zeros
            latents=torch.where(hole, noise, given),
            height=down * _LATENT,
            width=across * _LATENT,
            num_inference_steps=steps,
            guidance_scale=guidance,
            callback_on_step_end=keep,
            output_type="latent",
        ).images
        height, width = (grid.sizes[0, -1] // _LATENT).tolist()
        found = [place_of(grid, column) for column in task.holes]
        return [
            self._decode(latents[:, :, y * height : (y + 1) * height, x * width : (x + 1) * width]) for y, x in found
        ]

    def _decode(self, latents: Tensor) -> Image.Image:
        vae = self.pipe.vae
        pixels = vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(pixels)[0]  # type: ignore[no-any-return]

    def words(self, prompt: str) -> dict[str, Tensor]:
        """Hidden states of both encoders, and the pooled output of the second."""
        pipe, hidden = self.pipe, []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            tokens = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
            said = encoder(tokens.to(self.device), output_hidden_states=True)
            hidden.append(said.hidden_states[-2])
        return {"prompt_embeds": torch.cat(hidden, dim=-1), "pooled": said.text_embeds}

    def _text(self, prompts: Sequence[str], height: int, width: int) -> dict[str, Tensor]:
        """The words, and SDXL's size conditioning."""
        self.texts += len(prompts)
        self.cut += sum(len(ids) > self.text_tokens for ids in self.pipe.tokenizer(list(prompts)).input_ids)
        words = self.text(prompts)
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).to(words["pooled"])
        return {**words, "sizes": sizes.expand(len(prompts), -1)}


def _canvas(tokens: Tensor, batch: LatentBatch) -> Tensor:
    """B x S x C as B x C x height x width."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *batch.size[0])
