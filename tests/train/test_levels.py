"""Levels of noise: how they are drawn and shifted, and what the losses at them weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild_train.config import config_from
from graphbuild_train.objective import Ddpm, mean_logit, objective_for, objective_of, shifted
from tests.support.latents import batch_of
from tests.support.numerics import assert_close

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1152, 0.652), (4096, 1.15), (6912, 1.627), (12288, 2.537)])
def test_shift_is_that_of_the_scheduler(tokens: int, mu: float) -> None:
    """Continued above 4096 tokens, as at inference."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    found = float(mean_logit("dynamic", torch.tensor(tokens)))
    assert found == pytest.approx(mu, abs=5e-4)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    levels = np.linspace(1, 0.05, 20)
    scheduler.set_timesteps(sigmas=levels, mu=found)
    made, other = (shifted(torch.tensor(levels), mu) for mu in (found, found + 0.001))
    assert_close(made, scheduler.sigmas[:-1], terms=10, mutant=other)
    fixed = FlowMatchEulerDiscreteScheduler(shift=3.0)
    fixed.set_timesteps(sigmas=levels)
    made, other = (shifted(torch.tensor(levels), math.log(factor)) for factor in (3, 3.01))
    assert_close(made, fixed.sigmas[:-1], terms=10, mutant=other)
    assert float(mean_logit(3.0, torch.tensor(tokens))) == math.log(3)
    u = torch.randn(100, dtype=torch.float64)
    made = shifted(torch.sigmoid(u), found)
    assert_close(made, torch.sigmoid(u + found), terms=10, dtype=u.dtype, mutant=torch.sigmoid(u + found + 1e-9))


def test_only_noised_tokens_count_for_the_shift() -> None:
    """A sampler that makes one cell of twelve must find the levels that it was trained at."""
    for name, tokens in (("visualcloze_fill", 18), ("visualcloze_dev", 3), ("flux2_klein", 3)):
        drawn = objective_of(name)._levels(batch_of(*range(1, 8001, 2)), 0)
        assert float(torch.logit(drawn).mean()) == pytest.approx(0.5 + 0.65 * (tokens - 256) / 3840, abs=0.05)


@pytest.mark.parametrize(
    ("name", "shift", "mean"),
    [("visualcloze_fill", "none", 0.0), ("visualcloze_fill", 2.0, math.log(2)), ("onediffusion", None, math.log(3))],
)
def test_levels_are_logit_normal(name: str, shift: Any, mean: float) -> None:
    level = objective_of(name, shift).corrupt(batch_of(*range(3000)), 0).level
    logits = torch.logit(level[:, [0, -1]].double())
    assert logits.mean(0) == pytest.approx([mean, mean], abs=0.06) and logits.std(0) == pytest.approx([1, 1], abs=0.05)


def test_a_recipe_says_how_levels_are_drawn() -> None:
    """Guards against fields that are read and not used, and against sampling at levels moved for training."""
    config = config_from({"shift": 2.0, "logit_mean": -0.5, "logit_std": 0.5})
    objective = objective_for(config)
    batch = batch_of(*range(3000))
    logits = torch.logit(objective.corrupt(batch, 0).level[:, 0].double())
    assert logits.mean() == pytest.approx(math.log(2) - 0.5, abs=0.03) and logits.std() == pytest.approx(0.5, abs=0.03)
    plain = objective_for(config_from({"shift": 2.0}))
    assert plain == objective_of("visualcloze_fill", 2.0)
    told: list[list[float]] = [[], []]
    for levels, each in zip(told, (objective, plain), strict=True):
        each.sample(lambda x, level, _, levels=levels: levels.append(float(level[0, 0])) or x, batch_of(1), steps=3,
                    seed=0)  # fmt: skip
    assert told[0] == told[1]


def test_min_snr_weighs_the_losses_of_little_noise() -> None:
    """Guards against a weight that the mean over a sample takes out again, and against weighed validation losses."""
    batch = batch_of(*range(200))
    weighed, plain = (objective_for(config_from({"base": "sdxl", "objective": "onepic", "min_snr": cap}))
                      for cap in (5.0, 0.0))  # fmt: skip
    noisy, same = weighed.corrupt(batch, 0), plain.corrupt(batch, 0)
    ours, theirs = (each.loss_of(torch.zeros_like(made.x), made) for each, made in ((weighed, noisy), (plain, same)))
    step = Ddpm().step(noisy.level.amax(1))
    share = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)[step]
    snr = share / (1 - share)
    wanted = snr.clamp(max=5) / snr
    assert_close((ours / theirs).double(), wanted, terms=100, dtype=torch.float32, mutant=wanted.sqrt())
    assert (wanted < 0.5).any() and (wanted == 1).any()
    level = torch.full((200,), 0.1)
    assert torch.equal(weighed.corrupt(batch, 0, level).importance, torch.ones_like(noisy.level))


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"base": "sdxl", "objective": "onepic", "logit_std": 2}, "logit_std: 2.0; allowed for onepic"),
        ({"min_snr": 5}, "min_snr: 5.0; allowed for visualcloze_fill, whose path is a flow: 0"),
    ],
)
def test_weights_that_a_path_does_not_have_are_refused(document: dict[str, Any], why: str) -> None:
    """Guards against a recipe that says one thing and trains another."""
    with pytest.raises(ValueError, match=why):
        objective_for(config_from(document))


def test_steps_are_uniform() -> None:
    level = objective_of("onepic").corrupt(batch_of(*range(4000)), 0).level
    assert (level == level[:, :1]).all()
    counts = torch.bincount(Ddpm().step(level[:, 0]) // 100, minlength=10)
    assert len(counts) == 10 and (counts - 400).abs().max() < 80
