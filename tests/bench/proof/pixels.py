"""A small transformer of FLUX.1-Fill's shape from scratch, with pixels as latents, and the tasks that it learns.

Cells are pictures of 16 x 16 colours, enlarged eight times: a latent pixel is a colour, a token 2 x 2 of them, a cell
64 tokens. There are no words: the embeddings of all instructions are zero, so that only the example rows can tell the
task. Every linear layer gets an update of full rank, which is training it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from graphbuild.annotators.base import Annotator, Derived, Request
from graphbuild.data import at_inference
from graphbuild.kinds.registry import Kind
from graphbuild.tasks.grid import GridTask
from graphbuild_train.bases import flux
from graphbuild_train.bases.base import Base
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.objective import Objective

SIDE, SCALE = 16, 8
WIDTH, DEPTH, HEADS = 128, 4, 4
_SPREAD = 2.0  # brings pixels of [-1, 1] to about unit variance

Colours = NDArray[np.uint8]


class PixelVae(nn.Module):
    """Latents that are the colours: 3 channels, an eighth of the side."""

    config = SimpleNamespace(shift_factor=0.0, scaling_factor=_SPREAD, latent_channels=3)
    dtype = torch.float32

    def encode(self, pixels: Tensor) -> Any:
        mean = avg_pool2d(pixels.float(), SCALE)
        parameters = torch.cat([mean, torch.full_like(mean, -30.0)], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=parameters))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (interpolate(latents, scale_factor=SCALE, mode="nearest"),)


class Pixels(FluxFill):
    """FLUX.1-Fill's inputs and objective on pixels; see above. Its checkpoint is its seed."""

    checkpoint, objectives = "pixels", ("visualcloze_fill",)
    sample_steps, sample_guidance, editor = 20, 1.0, ""

    @classmethod
    def load(cls, model: str, objective: Objective, *, device: torch.device | str = "cpu", **_: Any) -> Base:
        return cls(_pipe(torch.device(device)), objective)

    @classmethod
    def planned(cls, model: str, objective: Objective, **_: Any) -> Base:
        return cls(_pipe(torch.device("meta")), objective)

    def words(self, prompt: str) -> dict[str, Tensor]:
        config: Any = self.bare.config
        return {"prompt_embeds": torch.zeros(1, 1, config.joint_attention_dim),
                "pooled": torch.zeros(1, config.pooled_projection_dim)}  # fmt: skip

    @torch.no_grad()
    def sample(self, tasks: Sequence[GridTask], *, steps: int, guidance: float, seed: int) -> list[list[Image.Image]]:
        return [self.paint(task, steps, guidance, seed) for task in tasks]

    @torch.no_grad()
    def paint(self, task: GridTask, steps: int, guidance: float, seed: int) -> list[Image.Image]:
        batch = self.encode(at_inference(task), seed)
        made = self.objective.sample(self.predict, batch, steps=steps, seed=seed)
        (query,) = flux.decoded(self.pipe.vae, torch.split(made, batch.lengths, 1)[-1], batch.size[-1])
        pixels = ((query.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        side = SIDE * SCALE
        return [Image.fromarray(pixels[:, hole * side : (hole + 1) * side]) for hole in task.holes]


def _pipe(device: torch.device) -> Any:
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=12 + 12 + flux.TOKEN**2, out_channels=12, num_layers=DEPTH,
            num_single_layers=DEPTH, attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(8, 12, 12), guidance_embeds=False,
        )  # fmt: skip
    parts = {"transformer": transformer, "vae": PixelVae()}
    return SimpleNamespace(components=parts, **parts)


# ---- tasks ---------------------------------------------------------------------------------------------------------


def _turned(turns: int, mirrored: bool, order: tuple[int, ...]) -> Callable[[Colours], Colours]:
    def made(picture: Colours) -> Colours:
        turned = np.rot90(picture[:, ::-1] if mirrored else picture, turns)
        return np.ascontiguousarray(turned[:, :, list(order)])

    return made


def _tinted(hue: int) -> Callable[[Colours], Colours]:
    """Towards one of twelve hues."""
    angle = 2 * np.pi * (hue / 12 + np.array([0, 1, 2]) / 3)
    tint = 127.5 * (1 + np.cos(angle))

    def made(picture: Colours) -> Colours:
        return np.rint(0.5 * picture + 0.5 * tint).astype(np.uint8)

    return made


TASKS: Mapping[str, Callable[[Colours], Colours]] = {
    **{f"turn{turns}{'m' if mirrored else ''}_{''.join(map(str, order))}": _turned(turns, mirrored, order)
       for order in permutations(range(3)) for mirrored in (False, True) for turns in range(4)},
    **{f"tint{hue}": _tinted(hue) for hue in range(12)},
}  # fmt: skip
"""48 orders of the colour channels, turns and mirror images, and 12 tints."""

HELD_OUT = (*[name for at, name in enumerate(TASKS) if not name.startswith("tint") and at % 4 == 1],
            "tint7", "tint8", "tint9")  # fmt: skip
"""A quarter of the former, and a range of the latter."""

KINDS = tuple(
    Kind(name=f"task_{name}", family="condition", codec="png", description="a picture changed", phrases=("a picture",))
    for name in TASKS
)


@dataclass(frozen=True, kw_only=True)
class Changes(Annotator):
    """The picture changed by every task."""

    makes: ClassVar[tuple[Kind, ...]] = KINDS
    item_facts: ClassVar[tuple[str, ...]] = ()

    def annotate(self, batch: Sequence[Request], model: Any) -> list[Derived]:
        small = [request.inputs["image"].array()[::SCALE, ::SCALE] for request in batch]
        return [Derived({f"task_{name}": enlarged(change(each)) for name, change in TASKS.items()}) for each in small]


def enlarged(picture: Colours) -> Colours:
    """Every colour as a square of eight pixels."""
    return np.kron(picture, np.ones((SCALE, SCALE, 1), np.uint8))


def task_list() -> dict[str, Any]:
    """The contents of a task list: each task makes the changed picture from the picture."""
    kinds = {kind.name: {"codec": kind.codec, "phrases": [*kind.phrases]} for kind in KINDS}
    paths = [
        {"name": name, "type": "in context", "cells": ["image", f"task_{name}"], "order": "fixed"} for name in TASKS
    ]
    return {"kinds": kinds, "paths": paths}


def write_scenes(folder: Path, count: int) -> Path:
    """Pictures of three shapes on a ground, in drawn colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(enlarged(scene(number))).save(folder / f"{number:05d}.png")
    return folder


def scene(number: int) -> Colours:
    """16 x 16 x 3; a function of its number."""
    draws = np.random.default_rng(number)
    picture = np.broadcast_to(draws.integers(0, 256, 3), (SIDE, SIDE, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(3):
        (top, left), (height, width) = draws.integers(0, 12, 2), draws.integers(3, 9, 2)
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        if draws.random() < 0.5:
            inside = np.hypot((rows - top - height / 2) / height, (columns - left - width / 2) / width) < 0.5
        picture = np.where(inside[..., None], draws.integers(0, 256, 3), picture).astype(np.uint8)
    return picture
