"""Flex.2: its channels are those of the model's own pipeline, and what a LoRA learns is sampled by diffusers' FLUX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch.nn.functional import interpolate

from graphbuild.data import GridBatch, GridTaskList, at_inference, collate
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import flux, load_base
from graphbuild_train.bases.flex2 import Flex2
from graphbuild_train.config import Layers
from graphbuild_train.objective import OBJECTIVES, generator
from tests.support.bases import read_by, works_in_half_precision
from tests.support.numerics import assert_close, error
from tests.support.tiny_models import save_flex2
from tests.support.tiny_models_other import Calls

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
FILL = OBJECTIVES["visualcloze_fill"]
SIDE = 32
FORWARD = 1000
"""Roundings of a pass through a small model: about ten layers with sums of about a hundred terms."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flex2(tmp_path_factory.mktemp("models") / "flex2")


@pytest.fixture
def base(model: Path) -> Flex2:
    made = load_base("flex2", str(model), FILL, dtype=torch.float32)
    assert isinstance(made, Flex2)
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


def as_picture(grid: GridBatch, at: int) -> tuple[Image.Image, Image.Image]:
    """A sample as one picture with black holes, and its mask, white inside holes."""
    cells = grid.cells[at].clone()
    mask = torch.zeros_like(cells)
    cells[-1][grid.holes[at]], mask[-1][grid.holes[at]] = 0, 255
    pixels = [each.permute(0, 3, 1, 4, 2).reshape(2 * SIDE, 2 * SIDE, 3).numpy() for each in (cells, mask)]
    return Image.fromarray(pixels[0]), Image.fromarray(pixels[1])


@pytest.mark.parametrize("at", [0, 1])
def test_the_further_channels_are_those_of_the_models_own_pipeline(at: int, base: Flex2, grid: GridBatch) -> None:
    """Guards against channels in another order, a mask the wrong way round or smaller than the hole, and latents that
    are masked as pixels. The reference follows `pipeline.py` of the checkpoint, with diffusers' own parts."""
    batch, pipe = base.encode(grid, seed=7), base.pipe
    picture, mask = (pipe.image_processor.preprocess(each, 2 * SIDE, 2 * SIDE) for each in as_picture(grid, at))
    with torch.no_grad():
        latents = pipe.vae.encode(picture).latent_dist.sample(generator(7, int(grid.index[at]), "vae"))
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    high, wide = latents.shape[2:]
    inside = interpolate(mask[:, :1] * 0.5 + 0.5, size=(high, wide), mode="bilinear", align_corners=False)
    channels = torch.cat([latents * (1 - inside), inside, torch.zeros_like(latents)], 1)
    wanted = FluxPipeline._pack_latents(channels, 1, 33, high, wide)[0]
    assert batch.extra is not None and batch.extra.shape == (2, 16, 64 + 4 + 64)
    swapped = torch.cat([wanted[:, 64:68], wanted[:, :64], wanted[:, 68:]], 1)
    assert_close(batch.extra[at], wanted, terms=FORWARD, mutant=swapped)
    assert torch.equal(batch.extra[at, :, 64:68], wanted[:, 64:68])
    assert torch.equal(batch.generated[at], wanted[:, 64] == 1)
    assert torch.equal(batch.ids, FluxPipeline._prepare_latent_image_ids(1, high // 2, wide // 2, "cpu", torch.float32))


def test_conditions_do_not_show_the_target(base: Flex2, grid: GridBatch) -> None:
    """Guards against latents of the truth, masked afterwards: the VAE sees far, and a model finds what leaks."""
    before, cells = base.encode(grid, seed=0), grid.cells.clone()
    cells[:, -1][grid.holes] = 255 - cells[:, -1][grid.holes]
    after = base.encode(replace(grid, cells=cells), seed=0)
    assert before.extra is not None and after.extra is not None
    assert torch.equal(after.extra, before.extra) and not torch.equal(after.z, before.z)


def test_guidance_is_told_in_sampling_only(base: Flex2, grid: GridBatch, task: GridTask) -> None:
    """Guards against a LoRA trained at a guidance that nobody uses, and an embedding left out in sampling, too."""
    batch = base.encode(grid, seed=0)
    noisy = FILL.corrupt(batch, seed=1)

    def shown() -> tuple[torch.Tensor, bytes]:
        (made,) = base.sample([task], steps=2, guidance=3.5, seed=0)
        return base.predict(noisy.x, noisy.level, batch), made[0].tobytes()

    predicted, picture = shown()
    base.bare.time_text_embed.guidance_embedder.linear_2.bias.add_(1.0)  # type: ignore[union-attr, operator]
    changed, other = shown()
    assert torch.equal(changed, predicted) and other != picture
    base.bare.time_text_embed.text_embedder.linear_2.bias.add_(1.0)  # type: ignore[union-attr, operator]
    assert error(shown()[0], predicted) > 0.01
    assert base.targets("all") and not [name for name in base.targets("all") if "guidance" in name]


def test_pictures_are_those_of_the_objectives_own_steps(
    base: Flex2, task: GridTask, grid: GridBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the hole cut out elsewhere, channels lost on the way, and times that training does not have."""
    base.bare.time_text_embed.guidance_embedder.linear_2.weight.zero_()  # type: ignore[union-attr, operator]
    base.bare.time_text_embed.guidance_embedder.linear_2.bias.zero_()  # type: ignore[union-attr, operator]
    calls = Calls(base.bare, monkeypatch)
    ((picture,),) = base.sample([task], steps=3, guidance=3.5, seed=0)
    batch = base.encode(at_inference(task), 0)
    assert batch.extra is not None and len(calls) == 3
    assert all(torch.equal(call["hidden_states"][..., 64:], batch.extra) for call in calls)
    with torch.no_grad():
        z = FILL.sample(base.predict, batch, steps=3, seed=0)
        pixels = flux.decoded(base.pipe.vae, z, batch.size[0])
    canvas = base.pipe.image_processor.postprocess(pixels)[0]
    assert [float(call["timestep"]) for call in calls[:3]] == pytest.approx(
        [float(call["timestep"][0]) for call in calls[3:]]
    )
    wanted = np.asarray(canvas, int)[SIDE:, SIDE:]
    assert np.abs(np.asarray(picture, int) - wanted).max() <= 1 and picture.size == (SIDE, SIDE)
    assert np.abs(np.asarray(canvas, int)[:SIDE, :SIDE] - wanted).max() > 1


@pytest.mark.parametrize("layers", ["attn", "all"])
def test_a_lora_loads_into_the_stock_pipeline(
    layers: Layers, base: Flex2, grid: GridBatch, model: Path, tmp_path: Path
) -> None:
    """Guards against keys or an alpha that diffusers reads otherwise."""
    fresh = load_base("flex2", str(model), FILL, dtype=torch.float32)
    assert type(fresh.pipe) is FluxPipeline
    read_by(fresh.pipe, base, base.encode(grid, seed=0), layers, folder=tmp_path)


def test_rows_of_two_sizes_are_no_canvas(base: Flex2, grid: GridBatch) -> None:
    sizes = torch.tensor([[[32, 16], [16, 32]]] * 2)
    with pytest.raises(ValueError, match="cells do not fill a canvas; allowed for flex2: row_sizes shared, or square"):
        base.encode(replace(grid, sizes=sizes), seed=0)


def test_a_base_in_half_precision(model: Path, grid: GridBatch, sampler: PathSampler, task: GridTask) -> None:
    """Guards against dtypes that do not meet at a door."""
    two = sampler.task(sampler.walk(0, hole=(0, 1)), SIDE)
    works_in_half_precision(load_base("flex2", str(model), FILL), grid, [task, two], guidance=3.5)
