"""FLUX.2 klein with given cells as references: the pipeline's inputs, its pictures, and a LoRA that it loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from graphbuild.data import GridBatch, GridTaskList, at_inference, collate
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import load_base
from graphbuild_train.bases.flux2_klein import Flux2Klein
from graphbuild_train.batch import LatentBatch
from graphbuild_train.config import Layers
from graphbuild_train.objective import OBJECTIVES
from tests.support.bases import filled, given_and_made, make_perfect, read_by, works_in_half_precision
from tests.support.numerics import assert_close
from tests.support.tiny_models_other import Calls, save_flux2_klein

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
KLEIN = OBJECTIVES["flux2_klein"]
SIDE, TOKENS = 64, 16
FORWARD = 1000
"""Roundings of a pass through a small model: about ten layers with sums of about a hundred terms."""
LATENTS = 100 * FORWARD
"""The same for latents of a flat cell, whose standard deviation is about a tenth of their mean before it is scaled."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux2_klein(tmp_path_factory.mktemp("models") / "klein")


@pytest.fixture
def base(model: Path) -> Flux2Klein:
    made = load_base("flux2_klein", str(model), KLEIN, dtype=torch.float32)
    assert isinstance(made, Flux2Klein)
    return made


@pytest.fixture(scope="module")
def grid(sampler: PathSampler) -> GridBatch:
    """Two tasks of 2 x 2 cells, one with its hole on the left and one with both cells of its query as holes."""
    grid = collate([sample.load() for sample in GridTaskList(sampler, 2, resolution=SIDE)])
    return replace(grid, holes=torch.tensor([[True, False], [True, True]]))


@pytest.fixture
def task(sampler: PathSampler) -> GridTask:
    """2 x 2 cells, the last to be generated."""
    return sampler.task(sampler.walk(4, hole=1), SIDE)


def pictures(grid: GridBatch, at: int) -> list[Image.Image]:
    """The cells of a sample in reading order."""
    return [Image.fromarray(cell.permute(1, 2, 0).numpy()) for cell in grid.cells[at].flatten(0, 1)]


def cells_of(batch: LatentBatch, at: int) -> list[torch.Tensor]:
    return list(batch.z[at].split(batch.lengths))


# ---- what the model is shown and told ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1])
def test_the_model_is_called_as_by_the_pipeline(
    at: int, base: Flux2Klein, grid: GridBatch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against latents without their statistics, other times of references, words of another layer."""
    column = (0, 1)[at]
    grid = replace(grid, holes=torch.tensor([[True, False], [False, True]]))
    pipe, batch = Flux2KleinPipeline.from_pretrained(model), base.encode(grid, seed=0)
    theirs, ours = Calls(pipe.transformer, monkeypatch), Calls(base.bare, monkeypatch)
    given = [picture for cell, picture in enumerate(pictures(grid, at)) if cell != 2 + column]
    pipe(prompt=grid.prompts[at], image=given, height=SIDE, width=SIDE, num_inference_steps=3, guidance_scale=1.0,
         output_type="latent")  # fmt: skip
    assert len(theirs) == 3
    for their in theirs:
        level = their["timestep"].item()
        noisy = KLEIN.corrupt(batch, seed=0, level=torch.full((2,), level))
        noisy.x[at][batch.generated[at]] = their["hidden_states"][0, :TOKENS]
        base.predict(noisy.x, noisy.level, batch)
        our = ours[-1]
        shown, wanted = our["hidden_states"][at], their["hidden_states"][0]
        assert_close(shown, wanted, terms=LATENTS, mutant=wanted.roll(1, 0))
        assert torch.equal(our["hidden_states"][at, :TOKENS], their["hidden_states"][0, :TOKENS])
        assert our["timestep"][at].item() == level
        assert torch.equal(our["img_ids"], their["img_ids"][0].float())
        assert torch.equal(our["txt_ids"][at], their["txt_ids"][0])
        words = their["encoder_hidden_states"][0]
        assert_close(our["encoder_hidden_states"][at], words, terms=FORWARD, mutant=words.roll(1, 0))
        assert their["guidance"] is None and our.get("guidance") is None


def test_a_hole_comes_first_and_further_holes_last(base: Flux2Klein, grid: GridBatch) -> None:
    """Guards against the times of references moving with the number of holes, and cells in each other's place."""
    batch = base.encode(grid, seed=0)
    assert batch.size == ((4, 4),) * 4 and batch.view[0].tolist() == [cell for cell in range(4) for _ in range(16)]
    assert batch.ids[:, 0].reshape(4, TOKENS).unique(dim=1).flatten().tolist() == [0, 10, 20, 30]
    assert batch.ids[TOKENS + 6].tolist() == [10, 1, 2, 0]
    whole = [base.encode(replace(grid, holes=torch.tensor([[hole, not hole]] * 2)), seed=0) for hole in (True, False)]
    (left, first, second, right), (_, _, _, other) = (cells_of(each, 1) for each in whole)
    for ours, expected in zip(cells_of(batch, 1), (left, first, second, right), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(other, left) and not torch.equal(left, right)
    assert batch.generated.reshape(2, 4, TOKENS).all(2).tolist() == [[True, *[False] * 3], [True, False, False, True]]


def test_given_cells_know_nothing_of_the_target(base: Flux2Klein, grid: GridBatch) -> None:
    """Guards against a VAE that sees several cells at once: a model would learn to read the answer."""
    given_and_made(base, grid)


def test_rows_of_two_sizes(base: Flux2Klein, grid: GridBatch) -> None:
    """Guards against a hole of the size of another row, and positions counted in another row's width."""
    sizes = torch.tensor([[[64, 48], [48, 64]]] * 2)
    assert base.encode(replace(grid, sizes=sizes), seed=0).size == ((3, 4), (4, 3), (4, 3), (3, 4))


# ---- noise and time ----------------------------------------------------------------------------------------------


def test_only_holes_are_noised_and_clean_is_zero(base: Flux2Klein, grid: GridBatch) -> None:
    """Guards against a mask the wrong way round, time running backwards, and a target of the other sign."""
    batch = base.encode(grid, seed=0)
    low, high, clean = (KLEIN.corrupt(batch, 1, torch.full((2,), level)) for level in (0.5, 0.625, 0.0))
    assert torch.equal(low.x[~batch.generated], batch.z[~batch.generated]) and torch.equal(clean.x, batch.z)
    slope = (high.x - low.x) / 0.125
    target = low.target[batch.generated]
    assert_close(slope[batch.generated], target, terms=FORWARD, mutant=-target)
    assert torch.equal(low.weight, batch.generated.float())


# ---- sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_several_holes_are_sampled_as_the_pipeline_samples_one(
    guidance: float, base: Flux2Klein, task: GridTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against noise levels, guidance or a decoding of our own."""
    calls = Calls(base.pipe.vae.decoder, monkeypatch)
    ((theirs,),) = base.sample([task], steps=4, guidance=guidance, seed=0)
    (ours,) = base._euler(task, 4, guidance, 0)
    base._euler(task, 4, guidance + 0.01 if guidance > 1 else guidance, int(guidance == 1))
    found, wanted, mutant = (calls[number]["sample"] for number in (1, 0, 2))
    assert_close(found, wanted, terms=4 * FORWARD, mutant=mutant)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1 and theirs.size == (SIDE, SIDE)


@pytest.mark.parametrize("holes", [(1,), (0, 1)])
def test_given_cells_stay_clean_at_every_step(
    holes: tuple[int, ...], base: Flux2Klein, sampler: PathSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against conditions that are noised or drift while the holes are made."""
    task = sampler.task(sampler.walk(4, hole=holes), SIDE)
    calls, batch = Calls(base.bare, monkeypatch), base.encode(at_inference(task), 0)
    (made,) = base.sample([task], steps=3, guidance=4.0, seed=0)
    given = ~batch.generated[0]
    assert len(made) == len(holes) and len(calls) == 6
    for call in calls:
        shown, clean = call["hidden_states"][0][given], batch.z[0][given]
        assert_close(shown, clean, terms=LATENTS, mutant=clean.roll(1, 0))
        assert torch.equal(call["hidden_states"][0][given], calls[0]["hidden_states"][0][given])
        assert torch.equal(call["img_ids"].float().reshape(-1, 4), batch.ids)


@pytest.mark.parametrize("holes", [(1,), (0, 1)])
def test_a_perfect_model_gives_the_truth_back(
    holes: tuple[int, ...], base: Flux2Klein, sampler: PathSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a step of the wrong sign, statistics left out of the decoding, and holes in each other's place."""
    shown = sampler.task(sampler.walk(4, hole=holes), SIDE)
    make_perfect(base, base.encode(filled(shown), 0).z, monkeypatch)
    decoded = Calls(base.pipe.vae.decoder, monkeypatch)
    base.sample([shown], steps=5, guidance=3.0, seed=0)
    sampled = [call["sample"] for call in decoded]
    for hole in holes:
        base.pipe.vae.decode(base.pipe.vae.encode(_pixels(base, shown, hole)).latent_dist.mode())
    expected = [call["sample"] for call in decoded[len(holes) :]]
    assert len(sampled) == len(expected) == len(holes)
    for ours, theirs in zip(sampled, expected, strict=True):
        assert_close(ours, theirs, terms=5 * FORWARD, mutant=theirs * 1.01)


def _pixels(base: Flux2Klein, task: GridTask, column: int) -> Any:
    return base.pipe.image_processor.preprocess(Image.fromarray(task.cells(filled=True)[-1][column]))


# ---- the LoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["attn", "all"])
def test_a_lora_loads_into_the_stock_pipeline(
    layers: Layers, base: Flux2Klein, grid: GridBatch, model: Path, tmp_path: Path
) -> None:
    """Guards against keys or an alpha that diffusers reads otherwise."""
    read_by(Flux2KleinPipeline.from_pretrained(model), base, base.encode(grid, seed=0), layers, folder=tmp_path)


def test_presets_grow(base: Flux2Klein) -> None:
    """Guards against single blocks left out, whose attention goes by other names."""
    attention, both, every = (set(base.targets(layers)) for layers in ("attn", "attn_ff", "all"))
    assert attention < both < every and len(attention) == 8 + 2 and len(both) == len(attention) + 4
    assert both == {name for name in every if "transformer_blocks." in name}


def test_a_base_in_half_precision(model: Path, sampler: PathSampler, task: GridTask, grid: GridBatch) -> None:
    """Guards against dtypes that do not meet at a door."""
    two = sampler.task(sampler.walk(0, hole=(0, 1)), SIDE)
    works_in_half_precision(load_base("flux2_klein", str(model), KLEIN), grid, [task, two], guidance=4.0)
