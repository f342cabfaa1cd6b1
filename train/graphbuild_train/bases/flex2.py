"""Flex.2, an Apache-2.0 descendant of FLUX.1-schnell with channels for inpainting and for a control picture.

Channels, their order and the mask are those of the model's own pipeline and of ai-toolkit, which trained it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings, CombinedTimestepTextProjEmbeddings
from torch import Tensor, nn

from graphbuild.data import GridBatch, at_inference
from graphbuild.tasks.cells import FILLS
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, check_sides, floats, holes_in_row, views
from graphbuild_train.config import Layers, TrainConfig
from graphbuild_train.forecast import Work, transformer_work
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image

_UNUSED = "guidance_embedder"


class Flex2(Base):
    """Flex.2-preview. The whole grid is one canvas, the only unit, encoded with its holes filled.

    `extra` is 64 channels of latents, zero inside holes, 4 of mask, 1 inside holes, and 64 of the control picture,
    zero, as examples and conditions are in the canvas. Training leaves the embedding of guidance out, as the model's
    maker does; sampling has it. diffusers' `FluxPipeline` loads the model and its LoRAs, but does not know the further
    channels: `sample` adds them to what that pipeline gives the model.
    """

    checkpoint, licence, pipeline = "ostris/Flex.2-preview", {"license": "apache-2.0"}, "FluxPipeline"
    objectives = ("visualcloze_fill",)
    large_encoders = ("text_encoder_2",)
    sample_guidance = 3.5
    attention, feed_forward = flux.ATTENTION, flux.FEED_FORWARD

    def __init__(self, pipe: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(pipe, *arguments, **options)
        model: Any = self.bare
        if model.config.guidance_embeds:
            model.time_text_embed.__class__ = _TimeTextEmbed

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        if config.cells.cell_fit == "aspect" and config.cells.row_sizes == "own":
            raise ValueError("cells.row_sizes: 'own'; allowed for flex2: shared, as cells fill a canvas")
        if config.guidance != 1:
            raise ValueError(f"guidance: {config.guidance}; allowed for flex2: 1, as it is not told in training")

    def targets(self, layers: Layers) -> list[str]:
        return [name for name in super().targets(layers) if _UNUSED not in name]  # it gets no gradient

    def work(self, image: int, text: int) -> Work:
        return transformer_work(self.bare, image, text)

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        height, width = (pixels // flux.TOKEN for pixels in self.unit(rows, columns, side))
        tokens = height * width
        z = self._zeros(count, tokens, config.out_channels)
        extra = self._zeros(count, tokens, config.in_channels - config.out_channels)
        text = flux.blank_text(self.bare, count)
        return replace(LatentBatch.blank(z, self._zeros(tokens, 3), ((height, width),), text), extra=extra)

    def unit(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        return rows * side, columns * side

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        """The canvas with its holes filled, and with the truth in them."""
        canvas = " / ".join(rows)
        return [f"{canvas} without {list(holes)}", canvas]

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        rows = [floats(row) for row in grid.rows()]
        if not rows:
            return []
        if len({row.shape for row in rows}) > 1:
            raise ValueError("cells do not fill a canvas; allowed for flex2: row_sizes shared, or square cells")
        hidden = grid.holes[grid.decoded].repeat_interleave(rows[-1].shape[3] // grid.holes.shape[1], 1)
        query = rows[-1].masked_fill(hidden[:, None, None], FILLS[self.hole_fill] / 127.5 - 1)
        canvases = torch.cat([*rows[:-1], query], 2), torch.cat(rows, 2)
        return [canvas.contiguous(memory_format=torch.channels_last) for canvas in canvases]

    def words(self, prompt: str) -> dict[str, Tensor]:
        """As the pipeline has them, wherever the text encoders are."""
        where, longest = self.pipe.text_encoder.device, flux.TEXT_LENGTH
        words, pooled, _ = self.pipe.encode_prompt([prompt], None, device=where, max_sequence_length=longest)
        return {"prompt_embeds": words, "pooled": pooled}

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        grid = grid.to(self.device)
        drawn = self.drawn(grid, seed)
        shown, truth = (flux.tokens(self.pipe.vae, canvas) for canvas in drawn)
        ((height, width),) = size = flux.sizes(drawn[:1])
        query = holes_in_row(grid.holes, (height // grid.items.shape[1], width))
        generated = torch.cat([query.new_zeros(len(query), truth.shape[1] - query.shape[1]), query], 1)
        hole = generated[..., None].to(shown)
        return LatentBatch(
            z=truth,
            generated=generated,
            view=views(size).to(self.device).expand(len(grid.index), -1),
            ids=flux.positions(0, size[0]).to(self.device),
            size=size,
            extra=torch.cat([shown * (1 - hole), hole.expand(-1, -1, 4), torch.zeros_like(shown)], -1),
            text=self.text(grid.prompts),
            index=grid.index,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        return flux.velocity(self, x, level, batch)

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        grid = at_inference(task)
        batch = self.encode(grid, seed)
        noise = torch.randn(batch.z.shape[1:], generator=generator(seed, task.walk.index, "sample"))[None]
        height, width = (tokens * flux.TOKEN for tokens in batch.size[0])
        assert batch.extra is not None
        with _widened(self.bare, batch.extra):
            (canvas,) = self.pipe(
                prompt=grid.prompts,
                height=height,
                width=width,
                latents=noise.to(self.device),
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=flux.TEXT_LENGTH,
            ).images
        top, across = height - height // grid.items.shape[1], width // grid.holes.shape[1]
        return [canvas.crop((column * across, top, (column + 1) * across, height)) for column in task.holes]


class _TimeTextEmbed(CombinedTimestepGuidanceTextProjEmbeddings):
    """Leaves guidance out where a model that has an embedding of it is called without."""

    def forward(self, timestep: Tensor, *others: Tensor) -> Tensor:
        cls: Any = (
            CombinedTimestepTextProjEmbeddings if len(others) == 1 else CombinedTimestepGuidanceTextProjEmbeddings
        )
        embedded: Tensor = cls.forward(self, timestep, *others)
        return embedded


@contextmanager
def _widened(model: nn.Module, extra: Tensor) -> Iterator[None]:
    """Let a model be called with latents alone: further channels are added to them."""

    def widen(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        latents = named["hidden_states"]
        return arguments, {**named, "hidden_states": torch.cat([latents, extra.to(latents)], -1)}

    handle = model.register_forward_pre_hook(widen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
