"""SDXL on a canvas: what the UNet is shown and told, where there is noise, and a LoRA that stock diffusers loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from graphbuild.data import GridBatch, GridTaskList, collate
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import load_base
from graphbuild_train.bases.sdxl import Sdxl
from graphbuild_train.config import Layers, LoraConfig
from graphbuild_train.lora import add_lora
from graphbuild_train.objective import OBJECTIVES, generator
from tests.support.bases import given_and_made, read_by
from tests.support.numerics import assert_close
from tests.support.tiny_models_other import Calls, save_sdxl

FORWARD = 1000
"""Roundings of a pass through a small model: about ten layers with sums of about a hundred terms."""
ONEPIC = OBJECTIVES["onepic"]
SIDE = 64
CELL = SIDE // 8

# diffusers' DPM-Solver makes an array of a tensor in the way of NumPy 1
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.numeric,
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture
def base(model: Path) -> Sdxl:
    made = load_base("sdxl", str(model), ONEPIC, dtype=torch.float32)
    assert isinstance(made, Sdxl)
    return made


@pytest.fixture(scope="module")
def grid(sampler: PathSampler) -> GridBatch:
    """Two tasks of 2 x 2 cells, one with its hole on the right and one with it on the left."""
    grid = collate([sample.load() for sample in GridTaskList(sampler, 2, resolution=SIDE)])
    return replace(grid, holes=torch.tensor([[False, True], [True, False]]))


def stock(model: Path) -> Any:
    """A fresh pipeline of diffusers, with a sampler that leaves the scale of latents alone."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def hole_of(latents: torch.Tensor, column: int) -> torch.Tensor:
    return latents[..., CELL:, column * CELL :][..., :CELL]


def canvas(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (2 * CELL, 2 * CELL))


# ---- what the model is shown and told ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.999, 0.501])
def test_the_unet_is_called_as_by_the_pipeline(
    level: float, base: Sdxl, grid: GridBatch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against words of one encoder only, sizes of a cell instead of the canvas, times on another scale."""
    pipe, batch = stock(model), base.encode(grid, seed=0)
    theirs, ours = Calls(pipe.unet, monkeypatch), Calls(base.bare, monkeypatch)
    pipe.scheduler.set_timesteps(1)
    step = round(level * 1000)
    monkeypatch.setattr(pipe.scheduler, "set_timesteps", lambda *_, **__: None)
    pipe.scheduler.timesteps = torch.tensor([step])
    x = torch.randn(2, 4, 2 * CELL, 2 * CELL, generator=torch.Generator().manual_seed(1))
    pipe(prompt=grid.prompts, latents=x, height=2 * SIDE, width=2 * SIDE, num_inference_steps=1, guidance_scale=1.0,
         output_type="latent")  # fmt: skip
    base.predict(x.flatten(2).transpose(1, 2), torch.full((2, 4 * CELL * CELL), level), batch)
    (their,), (our,) = theirs, ours
    assert torch.equal(our["sample"], their["sample"])
    assert (
        our["timestep"].dtype == torch.int64 and our["timestep"].tolist() == [step] * 2 == [int(their["timestep"])] * 2
    )
    # Words of ours are encoded one by one, so that bits do not depend on the batch; the pipeline's together.
    assert torch.allclose(our["encoder_hidden_states"], their["encoder_hidden_states"], rtol=1e-4, atol=1e-5)
    added, wanted = our["added_cond_kwargs"], their["added_cond_kwargs"]
    assert torch.equal(added["time_ids"], wanted["time_ids"])
    assert torch.allclose(added["text_embeds"], wanted["text_embeds"], rtol=1e-4, atol=1e-5)
    assert our["added_cond_kwargs"]["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]] * 2


def test_cells_are_encoded_alone_and_put_in_their_place(base: Sdxl, grid: GridBatch, model: Path) -> None:
    """Guards against a missing scale, cells in each other's place, and draws that are not counted by walk."""
    pipe, batch = stock(model), base.encode(grid, seed=7)
    latents = canvas(batch.z)
    for at in range(2):
        draws = generator(7, int(grid.index[at]), "vae")
        for row in range(2):
            for column in range(2):
                pixels = grid.cells[at, row, column].permute(1, 2, 0)
                cell = pipe.image_processor.preprocess(Image.fromarray(pixels.numpy()))
                encoded = pipe.vae.encode(cell).latent_dist.sample(draws) * 0.13025
                placed = latents[at, :, row * CELL :, column * CELL :][:, :CELL, :CELL]
                assert_close(placed, encoded[0], terms=FORWARD, mutant=encoded[0].roll(1, 2))
    assert batch.ids[2 * CELL + 3].tolist() == [1, 3] and batch.size == ((2 * CELL, 2 * CELL),)


def test_words_that_clip_cuts_are_counted(base: Sdxl, grid: GridBatch) -> None:
    """Guards against tasks that are told apart by words that no encoder reads."""
    base.encode(replace(grid, prompts=["a red bicycle", "a wall " * 40]), seed=0)
    assert (base.texts, base.cut) == (2, 1)


def test_the_target_of_a_canvas_is_made_where_the_list_draws_it(
    sampler: PathSampler, base: Sdxl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a picture cut out of another place than was made: all but the target's place keep its latents."""
    path = TaskPath(name="one", cells=("canny", "image"), targets=(1,), canvas=(("canny", "image"), ("canny", "canny")))
    listed = PathSet(name="one", paths=(path,))
    drawn = PathSampler(sampler.graph, listed, config=SamplerConfig(rows=(1,), mask="target"))
    task = drawn.task(0, SIDE)
    decoded: list[torch.Tensor] = []
    decode = Sdxl._decode
    monkeypatch.setattr(Sdxl, "_decode", lambda self, latents: decoded.append(latents) or decode(self, latents))
    (made,) = base.sample([task], steps=1, guidance=1.0, seed=0)[0]
    batch = base.encode(collate([sample.load() for sample in GridTaskList(drawn, 1, resolution=SIDE)]), seed=0)
    hole = batch.generated[0].reshape(2 * CELL, 2 * CELL)
    assert hole[:CELL, CELL:].all() and int(hole.sum()) == CELL * CELL and made.size == (SIDE, SIDE)
    assert decoded[0].shape[-2:] == (CELL, CELL)
    given = canvas(batch.z)[0, :, CELL:]
    assert not torch.allclose(decoded[0][0].float(), given[:, :, CELL:], atol=0.1)


def test_given_cells_know_nothing_of_the_target(base: Sdxl, grid: GridBatch) -> None:
    """Guards against a VAE that sees the whole canvas: a model would learn to read the answer."""
    given_and_made(base, grid)


# ---- noise and time ----------------------------------------------------------------------------------------------


def test_only_holes_are_noised(base: Sdxl, grid: GridBatch) -> None:
    """Guards against a mask the wrong way round, or over another cell."""
    batch = base.encode(grid, seed=0)
    assert [hole_of(canvas(batch.generated[..., None])[at], 1 - at).all() for at in range(2)] == [True, True]
    assert batch.generated.sum(1).tolist() == [CELL * CELL] * 2
    noisy = ONEPIC.corrupt(batch, seed=1)
    assert torch.equal(noisy.x[~batch.generated], batch.z[~batch.generated])
    assert not (noisy.x == batch.z)[batch.generated].any()
    assert torch.equal(noisy.weight, batch.generated.float())


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_noise_is_that_of_diffusers(step: int, base: Sdxl, grid: GridBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against time running backwards and betas of another model."""
    batch, calls = base.encode(grid, seed=0), Calls(base.bare, monkeypatch)
    noisy = ONEPIC.corrupt(batch, seed=1, level=torch.full((2,), step / 1000))
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noised = schedule.add_noise(batch.z, noisy.target, torch.tensor(step))
    other = schedule.add_noise(batch.z, noisy.target, torch.tensor(abs(step - 10)))
    # Their share of the data is a product of up to 1,000 float32 factors.
    shown, wanted, mutant = (x[batch.generated] for x in (noisy.x, noised, other))
    assert_close(shown, wanted, terms=1000, mutant=mutant)
    base.predict(noisy.x, noisy.level, batch)
    assert calls[0]["timestep"].tolist() == [step, step]


# ---- sampling ----------------------------------------------------------------------------------------------------


def test_given_cells_stay_clean_at_every_step(
    base: Sdxl, sampler: PathSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against conditions that are noised again, scaled, or drift; and a guidance away from zeros."""
    task = sampler.task(sampler.walk(4, hole=1), SIDE)
    calls, encoded = Calls(base.bare, monkeypatch), []
    encode = base.encode
    monkeypatch.setattr(base, "encode", lambda *given: encoded.append(encode(*given)) or encoded[-1])
    ((picture,),) = base.sample([task], steps=4, guidance=5.0, seed=2)
    assert picture.size == (SIDE, SIDE) and len(calls) == 4
    given = ~encoded[0].generated[0]
    for call in calls:
        shown = call["sample"].flatten(2).transpose(1, 2)
        assert torch.equal(shown[0], shown[1]) and torch.equal(shown[0][given], encoded[0].z[0][given])
    assert [int(call["timestep"]) for call in calls] == [999, 749, 499, 249]
    empty = base._text([""], 2 * SIDE, 2 * SIDE)
    other = base._text(["a"], 2 * SIDE, 2 * SIDE)
    words, pooled = calls[0]["encoder_hidden_states"][:1], calls[0]["added_cond_kwargs"]["text_embeds"][:1]
    assert_close(words, empty["prompt_embeds"], terms=FORWARD, mutant=other["prompt_embeds"])
    assert_close(pooled, empty["pooled"], terms=FORWARD, mutant=other["pooled"])


@pytest.mark.parametrize(("holes", "steps"), [((1,), 5), ((0,), 6), ((0, 1), 7)])
def test_a_perfect_model_gives_the_truth_back(
    holes: tuple[int, ...], steps: int, base: Sdxl, sampler: PathSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a last step that leaves noise, clipped latents, and a picture cut from another cell."""
    truth = torch.randn(1, 4, 2 * CELL, 2 * CELL, generator=torch.Generator().manual_seed(0)) * 3
    shares = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod

    def oracle(sample: torch.Tensor, timestep: torch.Tensor, **_: Any) -> torch.Tensor:
        share = shares[int(timestep)]
        return (sample - share.sqrt() * truth) / (1 - share).sqrt()

    Calls(base.bare, monkeypatch, oracle)
    decoded: list[torch.Tensor] = []
    decode = base.pipe.vae.decode
    monkeypatch.setattr(base.pipe.vae, "decode", lambda z, **named: decoded.append(z) or decode(z, **named))
    ((*pictures,),) = base.sample([sampler.task(sampler.walk(4, hole=holes), SIDE)], steps=steps, guidance=3.0, seed=0)
    assert len(pictures) == len(decoded) == len(holes)
    for column, latents in zip(holes, decoded, strict=True):
        wanted = hole_of(truth, column)
        assert_close(latents * 0.13025, wanted, terms=1000, mutant=wanted.clamp(-9, 9) * 1.001)


# ---- the LoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["attn", "all"])
def test_a_lora_loads_into_the_stock_pipeline(
    layers: Layers, base: Sdxl, grid: GridBatch, model: Path, tmp_path: Path
) -> None:
    """Guards against keys or an alpha that diffusers reads otherwise."""
    read_by(stock(model), base, base.encode(grid, seed=0), layers, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_attention_is_as_large_as_in_the_paper() -> None:
    """Guards against layers too many or too few: .618 % of SDXL at rank 32 (ONE-PIC, section 4)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        base: Any = Sdxl(SimpleNamespace(components={}, unet=unet), ONEPIC)
        frozen = sum(weight.numel() for weight in unet.parameters())
        count = add_lora(unet, LoraConfig(rank=32, alpha=4), base.targets("attn"))
    assert (frozen, count.modules, count.parameters) == (2_567_463_684, 210, 15_974_400)
    assert count.share == pytest.approx(0.00618, abs=5e-6)


def test_presets_grow(base: Sdxl) -> None:
    """Guards against a preset that leaves out what a smaller one has, or names what is no linear layer."""
    attention, both, every = (set(base.targets(layers)) for layers in ("attn", "attn_ff", "all"))
    blocks = {name for name in every if ".transformer_blocks." in name}
    assert attention < both == blocks < every
    assert {name.rsplit(".", 2)[1] for name in attention} == {"attn1"}
    assert len(blocks) * 3 == len(attention) * 10  # q, k, v of both attentions, their outputs, two of feed-forward


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_cells_that_make_no_canvas_are_refused(base: Sdxl, sampler: PathSampler, grid: GridBatch) -> None:
    """Guards against holes that end inside a token, and latents of nothing between cells."""
    odd = collate([sample.load() for sample in GridTaskList(sampler, 1, resolution=72)])
    with pytest.raises(ValueError, match=r"72 x 72 pixels; allowed: multiples of 16"):
        base.encode(odd, seed=0)
    sizes = grid.sizes.clone()
    sizes[:, 0, 1] = 48
    with pytest.raises(ValueError, match="row_sizes shared"):
        base.encode(replace(grid, sizes=sizes), seed=0)


def test_a_model_of_velocities_is_refused(model: Path, tmp_path: Path) -> None:
    """Guards against training on a target that the checkpoint does not predict."""
    pipe = stock(model)
    pipe.register_modules(scheduler=DDIMScheduler(prediction_type="v_prediction"))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"predicts v_prediction; allowed for sdxl: .* epsilon"):
        load_base("sdxl", str(tmp_path), ONEPIC)


def test_the_vae_stays_in_float32(model: Path, sampler: PathSampler) -> None:
    """Guards against overflow in half precision, and dtypes that do not meet at a door."""
    base = load_base("sdxl", str(model), ONEPIC)
    assert base.dtype == torch.bfloat16 and base.pipe.vae.dtype == torch.float32
    ((picture,),) = base.sample([sampler.task(sampler.walk(0, hole=1), SIDE)], steps=2, guidance=5.0, seed=0)
    assert picture.size == (SIDE, SIDE)
