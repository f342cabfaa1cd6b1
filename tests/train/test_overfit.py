"""One grid, learned by heart: what is encoded, noised, told and asked for belongs together; and if it did not, one
would see it here (each control is a bug that trainers have had)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.support.tiny_models
from graphbuild.data import GridTasks, collate
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.batch import LatentBatch
from graphbuild_train.objective import OBJECTIVES, Noisy
from tests.support.training import Ground

STEPS, SAMPLES = 200, 8
LEVELS = torch.arange(1, 8) / 8 + 1 / 16
Change = Callable[[Noisy, LatentBatch], tuple[Noisy, LatentBatch]]


def new_base() -> FluxFill:
    """A Fill model wide enough for its 64 channels, all of it trained; latents large beside the noise."""
    diffusers: Any = __import__("diffusers")
    parts = tests.support.tiny_models.components(in_channels=384, guidance=False)
    parts["vae"].register_to_config(scaling_factor=4 * parts["vae"].config.scaling_factor)
    parts["transformer"] = diffusers.FluxTransformer2DModel(
        in_channels=384, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return FluxFill(diffusers.VisualClozePipeline(**parts, resolution=384), OBJECTIVES["visualcloze_fill"])


def copies(base: FluxFill, ground: Ground) -> LatentBatch:
    """A 2 x 2 grid several times, for several draws of noise; in its hole only positions tell tokens apart."""
    config = SamplerConfig(rows=(0, 1))
    sampler = PathSampler(Graph.open(ground.graph), ground.folder / "tasks.yaml", config=config)
    grid = collate(list(GridTasks(sampler, resolution=32, start=1, stop=2, rank=0, world=1)))
    batch = base.encode(grid, 0)
    assert batch.extra is not None and int(batch.generated.sum()) == 4
    batch.extra[0, batch.generated[0], :64] = 0
    several = {name: getattr(batch, name).expand(SAMPLES, -1, -1) for name in ("z", "extra")}
    several |= {name: getattr(batch, name).expand(SAMPLES, -1) for name in ("generated", "view")}
    text = {
        "prompt_embeds": batch.text["prompt_embeds"][:, :4].expand(SAMPLES, -1, -1),
        "pooled": batch.text["pooled"].expand(SAMPLES, -1),
    }
    return replace(batch, **several, text=text)


def fall(ground: Ground, change: Change | None = None) -> Tensor:
    """By which factor the loss of the hole falls at each of seven levels, with fixed noise, if training is changed."""
    torch.manual_seed(0)
    base = new_base()
    batch = copies(base, ground)
    base.bare.requires_grad_(True)
    optimiser = torch.optim.AdamW(base.bare.parameters(), lr=0.0, weight_decay=0)
    before = losses(base, batch)
    for step in range(STEPS):
        own = replace(batch, index=torch.arange(step * SAMPLES, (step + 1) * SAMPLES))
        noisy = base.objective.corrupt(own, 0)
        shown, told = (noisy, own) if change is None else change(noisy, own)
        torch.autograd.backward(base.objective.loss_of(base.predict(shown.x, shown.level, told), shown).mean())
        torch.nn.utils.clip_grad_norm_(base.bare.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / STEPS)
        optimiser.step()
        optimiser.zero_grad()
    return before / losses(base, batch)


@torch.no_grad()
def losses(base: FluxFill, batch: LatentBatch) -> Tensor:
    found = []
    for level in LEVELS:
        own = replace(batch, index=torch.arange(10**6, 10**6 + SAMPLES))
        noisy = base.objective.corrupt(own, 0, level.expand(SAMPLES))
        noisy = noisy._replace(weight=own.generated.float())
        found.append(base.objective.loss_of(base.predict(noisy.x, noisy.level, own), noisy).mean())
    return torch.stack(found)


def test_a_grid_is_learned_by_heart(ground: Ground) -> None:
    """Guards against anything in the chain from pictures to loss that does not fit together."""
    assert float(fall(ground).min()) > 10


def shuffled_positions(noisy: Noisy, batch: LatentBatch) -> tuple[Noisy, LatentBatch]:
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(int(batch.index[0])))
    return noisy, replace(batch, ids=batch.ids[order])


def wrong_polarity(noisy: Noisy, batch: LatentBatch) -> tuple[Noisy, LatentBatch]:
    assert batch.extra is not None
    return noisy, replace(batch, extra=torch.cat([batch.extra[..., :64], 1 - batch.extra[..., 64:]], -1))


def reversed_time(noisy: Noisy, batch: LatentBatch) -> tuple[Noisy, LatentBatch]:
    return noisy._replace(level=1 - noisy.level), batch


def reversed_velocity(noisy: Noisy, batch: LatentBatch) -> tuple[Noisy, LatentBatch]:
    return noisy._replace(target=-noisy.target), batch


def swapped_rows(noisy: Noisy, batch: LatentBatch) -> tuple[Noisy, LatentBatch]:
    return noisy._replace(x=noisy.x.roll(8, 1), target=noisy.target.roll(8, 1)), batch


@pytest.mark.parametrize("change", [shuffled_positions, wrong_polarity, reversed_time, reversed_velocity, swapped_rows])
def test_a_mistake_is_not_learned_by_heart(ground: Ground, change: Change) -> None:
    """Guards against a check above that would pass whatever is wrong."""
    assert float(fall(ground, change).min()) < 5
