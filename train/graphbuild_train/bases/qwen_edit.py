"""Qwen-Image-Edit: the given cells as reference pictures, which the text encoder sees, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphbuild.data import GridBatch, at_inference
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import load
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch, cells_of, check_sides, floats, stacked, views
from graphbuild_train.config import Layers, TrainConfig
from graphbuild_train.forecast import Work
from graphbuild_train.objective import generator

if TYPE_CHECKING:
    from PIL import Image

_WORDS = 512
"""Tokens of text that a forecast counts beside those of the pictures in it."""
_SEEN = 28
"""Pixels along the side of a token of the text encoder's pictures."""
_ONE_HOLE = "allowed for qwen_edit: one hole, as its pipeline makes one picture"


class QwenEdit(Base):
    """Qwen-Image-Edit-2511 (2509 too). Units are the hole, at its own size, and the given cells, row by row.

    As in the pipeline, each given cell is scaled to a megapixel for the VAE, 4096 tokens, and to 384 x 384 for the text
    encoder. In 2511 the model itself gives them timestep 0. As the text encoder sees pictures, latents are not cached.
    """

    checkpoint, licence = "Qwen/Qwen-Image-Edit-2511", {"license": "apache-2.0"}
    pipeline = "QwenImageEditPlusPipeline"
    objectives = ("qwen_edit",)
    sample_steps, sample_guidance = 40, 4.0
    large_encoders = ("text_encoder",)
    attention = flux.ATTENTION
    feed_forward = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        for name in ("cache_gb", "cache_disk_gb", "text_cache_gb"):
            if value := getattr(config, name):
                raise ValueError(f"{name}: {value}; allowed for qwen_edit: 0, as its text encoder sees pictures")
        if config.watch.sample and config.watch.sample_steps == 1:
            raise ValueError(
                "watch.sample_steps: 1; allowed for qwen_edit: 2 or more, as its scheduler divides by them"
            )
        named = [each.paths or config.paths for each in config.data] or [config.paths]
        for path in chain.from_iterable(load(name).paths for name in named):
            if any(len(holes) > 1 for holes, _ in masks(path, config.sampler)):
                raise ValueError(f"path {path.name!r} with sampler.mask {config.sampler.mask!r}: {_ONE_HOLE}")

    @property
    def latent_channels(self) -> int:
        return int(self.pipe.vae.config.z_dim)

    def encoding(self, picture: Tensor) -> Tensor:
        return super().encoding(picture.unsqueeze(2)).squeeze(2)  # a video of one picture

    def targets(self, layers: Layers) -> list[str]:
        """Without what the last block does to the text, which nothing reads."""
        last = f"transformer_blocks.{len(self.bare.transformer_blocks) - 1}."  # type: ignore[arg-type]
        unread = (f"{last}attn.to_add_out", f"{last}txt_mlp.")
        return [name for name in super().targets(layers) if not name.startswith(unread)]

    def work(self, image: int, text: int) -> Work:
        config: Any = self.bare.config
        width, both = config.num_attention_heads * config.attention_head_dim, image + text
        return Work([(width, both, both)] * config.num_layers, partial(_rows, image=image, text=text))

    def blank(self, rows: int, columns: int, side: int, count: int) -> LatentBatch:
        config: Any = self.bare.config
        given = rows * columns - 1
        size = tuple(_tokens(*pixels) for pixels in ((side, side), *[_scaled(side, side)] * given))
        tokens = sum(height * width for height, width in size)
        seen_width, seen_height = _scaled(side, side, seen=True)
        said = _WORDS + given * (seen_width // _SEEN + 1) * (seen_height // _SEEN + 1)
        text = {"prompt_embeds": self._zeros(count, said, config.joint_attention_dim)}
        return LatentBatch.blank(self._zeros(count, tokens, config.in_channels), self._zeros(tokens, 3), size, text)

    def unit(self, rows: int, columns: int, side: int) -> tuple[int, int]:
        return _scaled(side, side)

    @staticmethod
    def units(rows: Sequence[str], cells: Sequence[Sequence[str]], holes: Sequence[int]) -> list[str]:
        keys, first = list(chain(*cells)), len(cells) * len(cells[-1]) - len(cells[-1])
        (hole,) = (first + column for column in holes)
        return [keys[hole], *(f"{key} as a reference" for cell, key in enumerate(keys) if cell != hole)]

    def pictures(self, grid: GridBatch) -> list[Tensor]:
        check_sides(grid, self.multiple)
        cells, given = [floats(cell).contiguous() for cell in cells_of(grid)], self._given(grid)
        made = []
        for sample, pictures in enumerate(given):
            hole = cells[_hole(grid, int(grid.decoded[sample]))][sample : sample + 1]
            scaled = (self._preprocessed(picture).to(hole) for picture in pictures)
            made.append([hole, *scaled])
        return stacked(made)

    @torch.no_grad()
    def encode(self, grid: GridBatch, seed: int) -> LatentBatch:
        if bool((grid.holes.sum(1) != 1).any()):
            raise ValueError(f"{int(grid.holes.sum(1).max())} holes; {_ONE_HOLE}")
        grid = grid.to(self.device)
        cells = stacked([[self._normal(unit.mode()) for unit in own] for own in self.posteriors(grid)])
        size = flux.sizes(cells)
        view = views(size).to(self.device).expand(len(grid.index), -1)
        return LatentBatch(
            z=torch.cat([flux.packed(cell) for cell in cells], 1).float(),
            generated=view == 0,
            view=view,
            ids=torch.cat([flux.positions(frame, unit) for frame, unit in enumerate(size)]).to(self.device),
            size=size,
            text=self._text(grid),
            index=grid.index,
        )

    def predict(self, x: Tensor, level: Tensor, batch: LatentBatch) -> Tensor:
        velocity: Tensor = self.model(
            hidden_states=x.to(self.dtype),
            timestep=level[:, 0],
            encoder_hidden_states=batch.text["prompt_embeds"],
            encoder_hidden_states_mask=batch.text.get("mask"),
            img_shapes=[[(1, *unit) for unit in batch.size]] * len(x),
            return_dict=False,
        )[0]
        return velocity.float()

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        if len(task.holes) != 1:
            raise ValueError(f"{len(task.holes)} holes; {_ONE_HOLE}")
        grid = at_inference(task)
        height, width = grid.sizes[0, -1].tolist()
        tokens, channels = height * width // flux.TOKEN**2, 4 * self.latent_channels
        noise = torch.randn(tokens, channels, generator=generator(seed, task.walk.index, "sample"))[None]
        made: list[Image.Image] = self.pipe(
            image=self._given(grid)[0],
            prompt=grid.prompts[0],
            negative_prompt=" " if guidance > 1 else None,
            true_cfg_scale=guidance,
            height=height,
            width=width,
            latents=noise,
            num_inference_steps=steps,
        ).images
        return made

    def _given(self, grid: GridBatch) -> list[list[Image.Image]]:
        """The given cells of each decoded sample, row by row."""
        from PIL import Image

        cells = [cell.permute(0, 2, 3, 1).cpu().numpy() for cell in cells_of(grid)]
        return [
            [Image.fromarray(cell[at]) for place, cell in enumerate(cells) if place != _hole(grid, int(sample))]
            for at, sample in enumerate(grid.decoded)
        ]

    def _preprocessed(self, picture: Image.Image) -> Tensor:
        """A reference as the pipeline gives it to the VAE."""
        width, height = _scaled(*picture.size)
        pixels: Tensor = self.pipe.image_processor.preprocess(picture, height, width)
        return pixels

    def _normal(self, latents: Tensor) -> Tensor:
        """Latents of the VAE as the model has them, each channel at mean 0 and variance 1."""
        config = self.pipe.vae.config
        mean, spread = (
            torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / spread

    def _text(self, grid: GridBatch) -> dict[str, Tensor]:
        """What the text encoder says to words and pictures, padded; `mask` is there if it had to be."""
        said = [self._embedded(*of) for of in zip(grid.prompts, self._given(grid), strict=True)]
        lengths = torch.tensor([len(own) for own in said], device=self.device)
        padded = torch.nn.utils.rnn.pad_sequence(said, batch_first=True)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        return {"prompt_embeds": padded, **({"mask": mask} if len(set(map(len, said))) > 1 else {})}

    def _embedded(self, prompt: str, pictures: Sequence[Image.Image]) -> Tensor:
        seen = []
        for picture in pictures:
            width, height = _scaled(*picture.size, seen=True)
            seen.append(self.pipe.image_processor.resize(picture, height, width))
        hidden: Tensor = self.pipe.encode_prompt([prompt], image=seen, device=self.pipe.text_encoder.device)[0]
        return hidden[0].to(self.device)


def _hole(grid: GridBatch, sample: int) -> int:
    """The one cell that is to be made, counted row by row."""
    columns = grid.holes.shape[1]
    return (grid.items.shape[1] - 1) * columns + int(grid.holes[sample].int().argmax())


def _scaled(width: int, height: int, *, seen: bool = False) -> tuple[int, int]:
    """Width and height that the pipeline gives a picture for the VAE, or for the text encoder."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as theirs

    area = theirs.CONDITION_IMAGE_SIZE if seen else theirs.VAE_IMAGE_SIZE
    scaled: tuple[int, int] = theirs.calculate_dimensions(area, width / height)  # type: ignore[no-untyped-call]
    return scaled


def _tokens(width: int, height: int) -> tuple[int, int]:
    return height // flux.TOKEN, width // flux.TOKEN


def _rows(name: str, *, image: int, text: int) -> float:
    if "norm" in name or "_mod." in name or name.startswith("time_"):
        return 1
    return text if "txt_" in name or ".add_" in name or "to_add_out" in name else image
