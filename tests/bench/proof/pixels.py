"""Small transformers from scratch with pixels as latents, one for each objective.

A latent pixel is a colour of `changes.py`, a token 2 x 2 of them, a cell 16 tokens. There are no words: the embeddings
of all instructions are zero, so that only the example rows can tell the task. Every linear layer gets an update of full
rank, which is training it.

Every token is told its place in its cell by 16 further channels: a network from scratch is slow to find the same place
in another cell by rotary positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from changes import SCALE, SIDE
from diffusers import DDIMScheduler, Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, one_hot

from graphbuild.data import at_inference
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.bases.flux2_klein import Flux2Klein
from graphbuild_train.bases.flux_dev import FluxDev
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.batch import LatentBatch
from graphbuild_train.objective import Ddpm, Objective, generators

HEAD, HEADS, DOUBLE, SINGLE = 16, 4, 1, 5
TOKEN = 12
"""Channels of a token: 2 x 2 colours."""
TOKENS = SIDE // 2
"""Along the side of a cell."""
_SPREAD = 2.0  # brings pixels of [-1, 1] to about unit variance


class PixelVae(nn.Module):
    """Latents that are the colours: 3 channels, an eighth of the side."""

    config = SimpleNamespace(shift_factor=0.0, scaling_factor=_SPREAD, latent_channels=3, batch_norm_eps=0.0)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(TOKEN, affine=False)  # FLUX.2's way to say the scale
        assert self.bn.running_var is not None
        self.bn.running_var.fill_(_SPREAD**-2)

    def encode(self, pixels: Tensor) -> Any:
        mean = avg_pool2d(pixels.float(), SCALE)
        parameters = torch.cat([mean, torch.full_like(mean, -30.0)], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=parameters))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (interpolate(latents, scale_factor=SCALE, mode="nearest"),)


class Pixels(Base):
    """What the models below share; each has the inputs, positions and objective of the base that it is made of."""

    checkpoint = "pixels"  # it is made, and always the same
    sample_steps, sample_guidance, editor = 20, 1.0, ""

    @classmethod
    def load(cls, model: str, objective: Objective, *, device: torch.device | str = "cpu", **_: Any) -> Any:
        return cls(_pipe(cls.transformer, torch.device(device)), objective)

    @classmethod
    def planned(cls, model: str, objective: Objective, **_: Any) -> Any:
        return cls(_pipe(cls.transformer, torch.device("meta")), objective)

    @staticmethod
    def transformer() -> nn.Module:
        return _flux(TOKEN)

    def words(self, prompt: str) -> dict[str, Tensor]:
        return {"prompt_embeds": torch.zeros(1, 1, 8), "pooled": torch.zeros(1, 8), "ids": torch.zeros(1, 1, 4)}

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        """All at once: they are of one geometry, and have one hole in one place."""
        batch = _joined([self.encode(at_inference(task), seed) for task in tasks])
        made = self.denoised(batch, steps, seed)
        (hole,) = {view for view, own in zip(batch.view[0].tolist(), batch.generated[0].tolist(), strict=True) if own}
        unit, generated = (torch.split(of, batch.lengths, 1)[hole] for of in (made, batch.generated))
        tokens = unit[generated].reshape(len(tasks), -1, TOKEN)
        side = round(tokens.shape[1] ** 0.5)
        pixels = interpolate(flux.unpacked(tokens, (side, side)) / _SPREAD, scale_factor=SCALE)
        colours = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [[Image.fromarray(picture)] for picture in colours]

    def denoised(self, batch: LatentBatch, steps: int, seed: int) -> Tensor:
        return self.objective.sample(self.predict, batch, steps=steps, seed=seed)

    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        return self.sample([task], steps=steps, guidance=guidance, seed=seed)[0]


class PixelFill(Pixels, FluxFill):
    """`visualcloze_fill`."""

    @staticmethod
    def transformer() -> nn.Module:
        return _flux(2 * TOKEN + flux.TOKEN**2)


class PixelDev(Pixels, FluxDev):
    """`visualcloze_dev` and `onediffusion`."""


class PixelCanvas(Pixels, FluxDev):
    """`onepic`: all rows are one picture; noise is predicted, and taken away by DDIM (arXiv 2010.02502)."""

    objectives = ("onepic",)

    def _positions(self, size: Sequence[tuple[int, int]], columns: int) -> Tensor:
        down = torch.tensor([0, 1, 0])
        cells = [divmod(cell, columns) for cell in range(len(size))]
        return torch.cat([
            flux.positions(0, unit, column * unit[1]) + row * unit[0] * down
            for (row, column), unit in zip(cells, size, strict=True)
        ])  # fmt: skip

    def denoised(self, batch: LatentBatch, steps: int, seed: int) -> Tensor:
        scheduler: Any = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
            clip_sample=False,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        hole = batch.generated[..., None]
        draws = generators(seed, batch.index, "sample")
        x = torch.where(hole, torch.stack([torch.randn(batch.z.shape[1:], generator=own) for own in draws]), batch.z)
        for time in scheduler.timesteps:
            level = torch.full(batch.generated.shape, float(time) / Ddpm().steps)
            made = scheduler.step(self.predict(x, level, batch), time, x).prev_sample
            x = torch.where(hole, made, batch.z)
        return x


class PixelKlein(Pixels, Flux2Klein):
    """`flux2_klein`."""

    @staticmethod
    def transformer() -> nn.Module:
        return Flux2Transformer2DModel(
            in_channels=TOKEN, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=HEAD,
            num_attention_heads=HEADS, joint_attention_dim=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        )  # fmt: skip


def _flux(channels: int) -> nn.Module:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=TOKEN, num_layers=DOUBLE, num_single_layers=SINGLE,
        attention_head_dim=HEAD, num_attention_heads=HEADS, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6), guidance_embeds=False,
    )  # fmt: skip


def _pipe(transformer: Any, device: torch.device) -> Any:
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(0)
        parts = {"transformer": _placed(transformer()), "vae": PixelVae()}
    patches = {name: getattr(Flux2KleinPipeline, name) for name in ("_patchify_latents", "_unpatchify_latents")}
    return SimpleNamespace(components=parts, **parts, **patches)


def _placed(transformer: Any) -> nn.Module:
    """A transformer that gets the places of its tokens, too."""
    embed = transformer.x_embedder
    transformer.x_embedder = nn.Linear(embed.in_features + TOKENS**2, embed.out_features, bias=embed.bias is not None)
    transformer.register_forward_pre_hook(_with_places, with_kwargs=True)
    return transformer  # type: ignore[no-any-return]


def _with_places(module: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    hidden = named["hidden_states"]
    y, x = (named["img_ids"][:, 1:3].long() % TOKENS).unbind(-1)
    places = one_hot(y * TOKENS + x, TOKENS**2).to(hidden).expand(len(hidden), -1, -1)
    return given, {**named, "hidden_states": torch.cat([hidden, places], -1)}


def _joined(batches: Sequence[LatentBatch]) -> LatentBatch:
    """One batch of several with one geometry."""
    first = batches[0]
    joined = {
        field.name: torch.cat([getattr(batch, field.name) for batch in batches])
        for field in fields(LatentBatch)
        if field.name != "ids" and isinstance(getattr(first, field.name), Tensor)
    }
    text = {name: torch.cat([batch.text[name] for batch in batches]) for name in first.text}
    return replace(first, **joined, text=text)
