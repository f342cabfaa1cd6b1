"""FLUX.1-Fill as VisualCloze (arXiv 2504.07960) uses it: all rows are noised, and given with holes in extra channels.

The model's inputs equal those of diffusers' `VisualClozePipeline` bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch
from graphbuild.tasks.cells import FILLS
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.visualcloze import generate
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, check_sides, floats, holes_in_row, views
from graphbuild_train.config import TrainConfig
from graphbuild_train.forecast import Work, transformer_work
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image

_EXAMPLE = """
# Up to diffusers 0.42.1 the layout sentence is a tuple, whose brackets would be part of the prompt.
processor = pipe.generation_pipe.image_processor
layout = processor.get_layout_prompt
processor.get_layout_prompt = lambda size: "".join(layout(size))

rows = [[example_condition, example_target], [condition, None]]  # PIL images; None is the cell to fill
pipe(
    task_prompt="What the last column is made from.",
    content_prompt=None,
    image=rows,
    guidance_scale=30,
    num_inference_steps=30,
    generator=torch.Generator().manual_seed(0),
).images
"""


class FluxFill(Base):
    """Units are rows. `extra` is 64 channels of latents with the holes filled and 256 of mask, 1 inside holes.

    The pipeline fills holes with black: `hole_fill="grey"` trains for samplers of your own.
    """

    checkpoint, licence = "black-forest-labs/FLUX.1-Fill-dev", flux.NON_COMMERCIAL
    pipeline, load_options, example = "VisualClozePipeline", "resolution={resolution}", _EXAMPLE
    objectives = ("visualcloze_fill",)
    sample_guidance, editor = 30.0, "FluxFillPipeline"
    attention, feed_forward = flux.ATTENTION, flux.FEED_FORWARD
    large_encoders = ("text_encoder_2",)

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        if config.watch.sample and config.cells.decode != "exact":
            raise ValueError(
                f"cells.decode: {config.cells.decode!r}; allowed: exact, as its pipeline samples, or watch.sample: 0"
            )

    def work(self, image: int, text: int) -> Work:
        return transformer_work(self.bare, image, text)

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        size = ((side // flux.TOKEN, columns * side // flux.TOKEN),) * rows
        tokens = sum(height * width for height, width in size)
        z = self._zeros(count, tokens, config.out_channels)
        extra = self._zeros(count, tokens, config.in_channels - config.out_channels)
        text = flux.blank_text(self.bare, count)
        return replace(LatentBatch.blank(z, self._zeros(tokens, 3), size, text), extra=extra)

    def unit(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        return side, columns * side

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        """Rows with their holes filled, and the last one with the truth in its holes."""
        return [*rows[:-1], f"{rows[-1]} without {list(holes)}", rows[-1]]

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        rows = [floats(row) for row in grid.rows()]
        if not rows:
            return []
        hidden = grid.holes[grid.decoded].repeat_interleave(rows[-1].shape[3] // grid.holes.shape[1], 1)
        shown = rows[-1].masked_fill(hidden[:, None, None], FILLS[self.hole_fill] / 127.5 - 1)
        return [*rows[:-1], shown.contiguous(memory_format=torch.channels_last), rows[-1]]

    def words(self, prompt: str) -> dict[str, Tensor]:
        return flux.encoded_text(self.pipe, prompt, self.device)

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        grid = grid.to(self.device)
        found = self.posteriors(grid)
        *rows, truth = self.samples(found, grid, seed, "vae")
        size = flux.sizes(rows)
        shown = [flux.tokens(self.pipe.vae, row) for row in rows]
        noised = shown[:-1]
        if self.draws == "separate":
            again = self.samples([own[: len(noised)] for own in found], grid, seed, "vae of noised rows")
            noised = [flux.tokens(self.pipe.vae, row) for row in again]
        query = holes_in_row(grid.holes, size[-1])
        before = query.new_zeros(len(query), sum(row.shape[1] for row in shown[:-1]))
        generated = torch.cat([before, query], 1)
        mask = generated.float()[..., None].expand(-1, -1, flux.TOKEN**2)
        return LatentBatch(
            z=torch.cat([*noised, flux.tokens(self.pipe.vae, truth)], 1),
            generated=generated,
            view=views(size).to(self.device).expand(len(grid.index), -1),
            ids=torch.cat([flux.positions(row, unit) for row, unit in enumerate(size, start=1)]).to(self.device),
            size=size,
            extra=torch.cat([torch.cat(shown, 1), mask], -1),
            text=self.text(grid.prompts),
            index=grid.index,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        return flux.velocity(self, x, level, batch, guidance=flux.guidance_of(self.bare, self.guidance, len(x)))

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        stage = self.pipe.generation_pipe
        stage.set_progress_bar_config(disable=True)
        stage.image_processor.resolution = task.resolution
        draws = generator(seed, task.walk.index, "sample")
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "max_sequence_length": 512}
        return generate(stage, task.pipeline_kwargs(), generator=draws, **options)
