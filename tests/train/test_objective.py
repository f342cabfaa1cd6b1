"""Objectives against formulas written out by hand: noise, targets, losses, gradients, draws and the sampler."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from graphbuild_train.bases import base_class, load_base
from graphbuild_train.batch import LatentBatch
from graphbuild_train.objective import OBJECTIVES, Ddpm, Flow, Noisy, Objective, generator, objective_of
from tests.support.latents import LENGTHS, SIZE, batch_of
from tests.support.numerics import assert_close, error

pytestmark = pytest.mark.numeric
PRESETS = list(OBJECTIVES)
FLOWS = [name for name in PRESETS if name != "onepic"]


# ---- a reference, of plain torch and the papers' formulas --------------------------------------------------------


def draws(seed: int, index: int, stream: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}|{index}|{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") // 2)


def reference(name: str, batch: LatentBatch, seed: int, weights: list[Tensor]) -> Tensor:
    """The loss of a model `x @ W + (x A) B + level b`, sample by sample and token by token."""
    losses = []
    for z, generated, view, index in zip(batch.z, batch.generated, batch.view, batch.index.tolist(), strict=True):
        noise = torch.randn(z.shape, generator=draws(seed, index, "noise")).to(z.dtype)
        holes = int(generated.sum())
        mu = {
            "visualcloze_fill": 0.5 + 0.65 * (len(z) - 256) / 3840,
            "visualcloze_dev": 0.5 + 0.65 * (holes - 256) / 3840,
            "flux2_klein": 0.5 + 0.65 * (holes - 256) / 3840,
            "qwen_edit": 0.5 + 0.65 * (holes - 256) / 3840,
            "onediffusion": math.log(3),
            "onepic": None,
        }[name]
        dice = draws(seed, index, "level")
        total, count = torch.zeros((), dtype=z.dtype), 0
        if mu is None:
            step = int(torch.randint(1000, (1,), generator=dice))
            bar = 1.0
            for at in range(step + 1):
                bar *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * at / 999) ** 2
        else:
            u = torch.randn(len(SIZE) if name == "onediffusion" else 1, generator=dice, dtype=torch.float64)
        for token in range(len(z)):
            hole = bool(generated[token])
            if mu is None:
                told = step / 1000
                x = math.sqrt(bar) * z[token] + math.sqrt(1 - bar) * noise[token] if hole else z[token]
                target, counts = noise[token], hole
            else:
                drawn = float(u[view[token]] if name == "onediffusion" else u[0]) + mu
                sigma = math.exp(drawn) / (1 + math.exp(drawn))
                noised = hole or name in ("visualcloze_fill", "onediffusion")
                x = (1 - sigma) * z[token] + sigma * noise[token] if noised else z[token]
                told = 0.0 if name == "visualcloze_dev" and not hole else sigma
                target, counts = noise[token] - z[token], noised
            if counts:
                total, count = total + (model(x, told, weights) - target).pow(2).sum(), count + z.shape[1]
        losses.append(total / count)
    return torch.stack(losses)


def model(x: Tensor, level: Any, weights: list[Tensor]) -> Tensor:
    frozen, down, up, slope = weights
    return x @ frozen + x @ down @ up + level * slope


def layers(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    frozen, down, up, slope = (torch.randn(4, 4), torch.randn(4, 2), torch.randn(2, 4), torch.randn(4))
    return [frozen.to(dtype), *(weight.to(dtype).requires_grad_() for weight in (down, up, slope))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRESETS)
def test_losses_and_gradients_are_the_formulas(name: str, dtype: torch.dtype) -> None:
    batch, objective, weights = batch_of(3, 4, 9, dtype=dtype), objective_of(name), layers(dtype)
    noisy = objective.corrupt(batch, 7)
    losses = objective.loss_of(model(noisy.x, noisy.level[..., None], weights), noisy)
    exact, larger = layers(torch.float64), replace(batch, z=batch.z.double() * 1.001)
    expected, mutant = (reference(name, own, 7, exact) for own in (replace(batch, z=batch.z.double()), larger))
    assert_close(losses, expected, terms=100, dtype=dtype, mutant=mutant)
    ours = torch.autograd.grad(losses.mean(), weights[1:])
    theirs, others = (torch.autograd.grad(loss.mean(), exact[1:]) for loss in (expected, mutant))
    for found, wanted, wrong in zip(ours, theirs, others, strict=True):
        assert_close(found, wanted, terms=100, dtype=dtype, mutant=wrong)


# ---- what is noised, told and asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_where_there_is_no_loss_there_is_no_gradient(name: str) -> None:
    batch, objective = batch_of(1, 2), objective_of(name)
    noisy = objective.corrupt(batch, 0)
    predicted = torch.zeros_like(batch.z, requires_grad=True)
    objective.loss_of(predicted, noisy).sum().backward()
    felt = predicted.grad.abs().amin(-1) > 0
    assert torch.equal(felt, batch.generated if objective.loss == "generated" else torch.ones_like(felt))
    assert not predicted.grad[~felt].any()


@pytest.mark.parametrize("name", ["visualcloze_dev", "onepic", "flux2_klein"])
def test_given_tokens_are_clean_bit_for_bit(name: str) -> None:
    batch = batch_of(1, 2, 3)
    noisy = objective_of(name).corrupt(batch, 0)
    assert torch.equal(noisy.x[~batch.generated], batch.z[~batch.generated])
    assert (noisy.x != batch.z).all(-1)[batch.generated].all()
    told = [set(level.tolist()) for level in noisy.level]
    assert {len(levels) for levels in told} == ({2} if name == "visualcloze_dev" else {1})
    if name == "visualcloze_dev":
        assert not noisy.level[~batch.generated].any() and noisy.level[batch.generated].all()


def test_every_view_has_a_level_of_its_own() -> None:
    batch = batch_of(*range(4000))
    noisy = objective_of("onediffusion").corrupt(batch, 0)
    per_view = torch.stack([part.mean(1) for part in torch.split(noisy.level, LENGTHS, 1)])
    assert all(bool((part == part[:, :1]).all()) for part in torch.split(noisy.level, LENGTHS, 1))
    assert (torch.corrcoef(per_view) - torch.eye(4)).abs().max() < 0.06
    clean = objective_of("onediffusion").sampled().corrupt(batch, 0, torch.full((4000,), 0.4))
    assert torch.equal(clean.x[~batch.generated], batch.z[~batch.generated])
    assert torch.equal(clean.level, 0.4 * batch.generated) and torch.equal(clean.weight, batch.generated.float())


@pytest.mark.parametrize("name", PRESETS)
def test_level_0_is_clean_and_level_1_is_noise(name: str) -> None:
    """The sign convention, and that the target is the slope of the path: guards against time that runs backwards."""
    batch, objective = batch_of(1, 2, dtype=torch.float64), objective_of(name).sampled()

    def at(level: float) -> Noisy:
        return objective.corrupt(batch, 0, torch.full((2,), level, dtype=torch.float64))

    holes = batch.generated
    noise = objective_of("onepic").corrupt(batch, 0).target  # the same draws
    assert at(0.25).level[holes].unique().tolist() == [0.25]
    if name == "onepic":
        assert (at(0.0).x - batch.z).abs().max() < 0.2 and (at(0.999).x - noise)[holes].abs().max() < 0.7
        return
    assert torch.equal(at(0.0).x, batch.z) and torch.equal(at(1.0).x[holes], noise[holes])
    slope, target = (at(0.75).x - at(0.25).x) * 2, at(0.6).target
    assert_close(slope[holes], target[holes], terms=10, dtype=torch.float64, mutant=-target[holes])


def test_ddpm_is_the_schedule_of_sdxl() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    z, noise = torch.randn(1000, 3), torch.randn(1000, 3)
    steps = torch.arange(1000)
    made = Ddpm().mix(z, noise, (steps / 1000)[:, None])
    # Their share of the data is a product of up to 1,000 float32 factors.
    early = Ddpm().mix(z, noise, ((steps - 1).clamp(0) / 1000)[:, None])
    assert_close(made, scheduler.add_noise(z, noise, steps), terms=1000, mutant=early)
    assert torch.equal(Ddpm().step(steps / 1000), steps) and int(Ddpm().step(torch.ones(()))) == 999


# ---- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_draws_are_those_of_the_walk(name: str) -> None:
    """However a batch is split, whatever came before; other walks, seeds and uses have other draws."""
    objective = objective_of(name)
    together = objective.corrupt(batch_of(5, 6, 7, 8), 3)
    split = [objective.corrupt(batch_of(*indices), 3) for indices in ((8,), (5, 6), (7,))]
    for field, whole in zip(Noisy._fields, together, strict=True):
        parts = torch.cat([getattr(split[1], field), getattr(split[2], field), getattr(split[0], field)])
        assert torch.equal(whole, parts), field
    losses = objective.loss_of(together.x, together)
    parts = torch.cat([objective.loss_of(noisy.x, noisy) for noisy in (split[1], split[2], split[0])])
    assert torch.equal(losses, parts)
    noise = together.target + (0 if name == "onepic" else batch_of(5, 6, 7, 8).z)
    assert len({tuple(row.tolist()) for row in noise.flatten(0, 1)}) == noise.shape[0] * noise.shape[1]
    assert len({float(level.max()) for level in together.level}) == 4
    other = objective.corrupt(batch_of(5, 6, 7, 8), 4)
    assert not torch.equal(other.target, together.target) and not torch.equal(other.level, together.level)


def test_uses_do_not_share_draws() -> None:
    names = [(seed, index, use) for seed in (0, 1, 10) for index in (0, 1, 11) for use in ("vae", "noise", "sample")]
    assert len({float(torch.randn((), generator=generator(*name))) for name in names}) == len(names)


# ---- the sampler -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_the_sampler_walks_the_levels_of_training(name: str) -> None:
    """Shifted by the tokens that are noised in training, those of given views among them."""
    batch, objective, told = batch_of(2), objective_of(name, "dynamic"), []
    objective.sample(lambda x, level, _: told.append(float(level.max())) or x, batch, steps=4, seed=0)
    mu = 0.5 + 0.65 * ((18 if objective.noise == "all" else 8) - 256) / 3840
    expected, mutant = (
        [math.exp(by) / (math.exp(by) + 1 / level - 1) for level in (1, 0.75, 0.5, 0.25)] for by in (mu, mu + 0.001)
    )
    assert_close(told, expected, terms=10, mutant=mutant)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_sampler_with_the_best_velocity_returns_the_data(name: str, spread: float) -> None:
    """For latents z + spread * normal the expected velocity is known, and so is where the path of each noise ends."""
    batch, objective, told = batch_of(1, 2, dtype=torch.float64), objective_of(name), []

    def best(x: Tensor, level: Tensor, given: LatentBatch) -> Tensor:
        told.append(level)
        time = level.amax(1)[:, None, None]
        error = (x - (1 - time) * batch.z) / ((1 - time) ** 2 * spread**2 + time**2)
        return time * error - (batch.z + (1 - time) * spread**2 * error)

    steps = 400 if spread else 20
    made = objective.sample(best, batch, steps=steps, seed=5)
    noised = objective.sampled().noised(batch)
    assert torch.equal(made[~noised], batch.z[~noised]) and bool(noised.all()) == (name == "visualcloze_fill")
    noise = torch.stack([torch.randn(batch.z.shape[1:], generator=draws(5, index, "sample")) for index in (1, 2)])
    expected = batch.z + spread * noise
    if spread:  # what 400 steps along a curved path leave
        assert error(made[noised], expected[noised]) < 0.01
    else:  # the path is straight
        mutant = batch.z + 1e-6 * noise
        assert_close(made[noised], expected[noised], terms=steps * 10, dtype=made.dtype, mutant=mutant[noised])
    assert len(told) == steps and told[0].max() == 1 and 0 < told[-1].max() < 0.2
    if name in ("visualcloze_dev", "onediffusion"):
        assert all(not level[~batch.generated].any() for level in told)
    else:
        assert all(bool((level == level[:, :1]).all()) for level in told)


def test_given_tokens_are_put_back_at_every_step() -> None:
    """Whatever the model says of them: errors would add up in what all other tokens see."""
    batch, seen = batch_of(1, 2), []

    def predict(x: Tensor, level: Tensor, given: LatentBatch) -> Tensor:
        seen.append(x)
        return torch.ones_like(x)

    made = objective_of("onediffusion").sample(predict, batch, steps=3, seed=0)
    assert all(torch.equal(x[~batch.generated], batch.z[~batch.generated]) for x in [*seen, made])


# ---- losses and presets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_perfect_prediction_has_no_loss(name: str) -> None:
    batch, objective = batch_of(1, 2), objective_of(name)
    noisy = objective.corrupt(batch, 0)
    assert objective.loss_of(noisy.target, noisy).tolist() == [0, 0]
    missed = [objective.loss_of(noisy.target + by, noisy) for by in (2, 2.001)]
    assert_close(missed[0], [4, 4], terms=100, mutant=missed[1])
    assert objective.loss_of(noisy.target.bfloat16(), noisy).dtype == torch.float32


def test_presets_are_the_table() -> None:
    table = {name: (type(made.path), made.noise, made.time, made.loss, made.shift) for name, made in OBJECTIVES.items()}
    assert table == {
        "visualcloze_fill": (Flow, "all", "sample", "all", "dynamic"),
        "visualcloze_dev": (Flow, "generated", "clean", "generated", "dynamic"),
        "onepic": (Ddpm, "generated", "sample", "generated", "none"),
        "onediffusion": (Flow, "all", "view", "all", 3.0),
        "flux2_klein": (Flow, "generated", "sample", "generated", "dynamic"),
        "qwen_edit": (Flow, "generated", "sample", "generated", "dynamic"),
    }
    assert objective_of("onediffusion", "none") == replace(OBJECTIVES["onediffusion"], shift="none")
    assert objective_of("visualcloze_fill").sampled() is objective_of("visualcloze_fill")
    with pytest.raises(ValueError, match=r"unknown objective 'visualcloze' \(did you mean.*known: flux2_klein"):
        objective_of("visualcloze")
    with pytest.raises(ValueError, match=r"objective 'math:pi': 3\.14.* is not an Objective"):
        objective_of("math:pi")
    with pytest.raises(ValueError, match="shift: 'dynamic'; allowed for onepic, whose steps are drawn evenly: none"):
        objective_of("onepic", "dynamic")
    assert isinstance(objective_of("onepic", "none"), Objective)


def test_bases_are_found_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"unknown base 'flux'.*known: flex2, flux2_klein, flux_dev, flux_fill, qwen_edit, sdxl"
    ):
        load_base("flux", "", objective_of("onepic"))
    with pytest.raises(ValueError, match="Base does not define checkpoint, pipeline, objectives, attention"):
        base_class("graphbuild_train.bases.base:Base")
    with pytest.raises(ValueError, match="'onepic'; allowed for base flux_dev: visualcloze_dev, onediffusion"):
        load_base("flux_dev", "", objective_of("onepic"))
    code = "import sys, graphbuild_train.bases; print({'torch', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
