"""Qwen-Image-Edit with given cells as references: the pipeline's inputs, its pictures, and a LoRA that it loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from graphbuild.data import GridBatch, GridTaskList, at_inference, collate
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train import preflight
from graphbuild_train.bases import load_base, plan_base
from graphbuild_train.bases.qwen_edit import QwenEdit
from graphbuild_train.config import Layers, config_from
from graphbuild_train.export.kohya import save_kohya
from graphbuild_train.objective import OBJECTIVES, generator
from tests.support.bases import filled, given_and_made, make_perfect, read_by, works_in_half_precision
from tests.support.numerics import assert_close
from tests.support.tiny_models_other import Calls, save_qwen_edit

pytestmark = pytest.mark.numeric
QWEN = OBJECTIVES["qwen_edit"]
SIDE, TOKENS = 32, 4
FORWARD = 1000
"""Roundings of a pass through a small model: about ten layers with sums of about a hundred terms."""


@pytest.fixture(scope="module", autouse=True)
def _small(one_thread: None) -> Iterator[None]:
    """References of 64 x 64 pixels and not of a megapixel, for the pipeline and so for the base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
        patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 96 * 96)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen_edit(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture
def base(model: Path) -> QwenEdit:
    made = load_base("qwen_edit", str(model), QWEN, dtype=torch.float32)
    assert isinstance(made, QwenEdit)
    return made


@pytest.fixture(scope="module")
def grid(sampler: PathSampler) -> GridBatch:
    """Two tasks of 2 x 2 cells, one with its hole on the left, and words of two lengths."""
    grid = collate([sample.load() for sample in GridTaskList(sampler, 2, resolution=SIDE)])
    prompts = [grid.prompts[0], f"{grid.prompts[1]} A little more."]
    return replace(grid, holes=torch.tensor([[True, False], [False, True]]), prompts=prompts)


@pytest.fixture
def task(sampler: PathSampler) -> GridTask:
    """2 x 2 cells, the last to be generated."""
    return sampler.task(sampler.walk(4, hole=1), SIDE)


def references(grid: GridBatch, at: int) -> list[Image.Image]:
    """The given cells of a sample in reading order."""
    cells = [Image.fromarray(cell.permute(1, 2, 0).numpy()) for cell in grid.cells[at].flatten(0, 1)]
    return [cell for place, cell in enumerate(cells) if place != 2 + int(grid.holes[at].int().argmax())]


@pytest.mark.parametrize("at", [0, 1])
def test_the_model_is_called_as_by_the_pipeline(
    at: int, base: QwenEdit, grid: GridBatch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against references of another size, order or scale, words without pictures, and padding that is read."""
    pipe, batch = QwenImageEditPlusPipeline.from_pretrained(model), base.encode(grid, seed=0)
    theirs, ours = Calls(pipe.transformer, monkeypatch), Calls(base.bare, monkeypatch)
    made = pipe(
        prompt=grid.prompts[at], image=references(grid, at), height=SIDE, width=SIDE, num_inference_steps=2,
        true_cfg_scale=1.0, output_type="latent",
    ).images  # fmt: skip
    assert len(theirs) == 2 and made.shape == (1, TOKENS, 16)
    for their in theirs:
        level = their["timestep"].item()
        noisy = QWEN.corrupt(batch, seed=0, level=torch.full((2,), level))
        noisy.x[at][batch.generated[at]] = their["hidden_states"][0, :TOKENS]
        base.predict(noisy.x, noisy.level, batch)
        our, wanted = ours[-1], their["hidden_states"][0]
        assert_close(our["hidden_states"][at], wanted, terms=FORWARD, mutant=wanted.roll(1, 0))
        assert our["timestep"][at].item() == level
        assert our["img_shapes"][at] == their["img_shapes"][0] == [(1, 2, 2), *[(1, 4, 4)] * 3]
        words = their["encoder_hidden_states"][0]
        mask = our["encoder_hidden_states_mask"][at]
        assert their["encoder_hidden_states_mask"] is None and mask.sum() == len(words)
        assert_close(our["encoder_hidden_states"][at][mask], words, terms=FORWARD, mutant=words.roll(1, 0))


def test_a_batch_is_its_samples(base: QwenEdit, grid: GridBatch) -> None:
    """Guards against padding that changes what is predicted."""
    batch = base.encode(grid, seed=0)
    noisy = QWEN.corrupt(batch, seed=1)
    together = base.predict(noisy.x, noisy.level, batch)
    mask = batch.text["mask"]
    for at in range(2):
        alone = replace(batch, text={"prompt_embeds": batch.text["prompt_embeds"][at : at + 1][:, mask[at]]})
        found = base.predict(noisy.x[at : at + 1], noisy.level[at : at + 1], alone)
        assert_close(together[at], found[0], terms=FORWARD, mutant=together[1 - at])


def test_given_cells_know_nothing_of_the_target(base: QwenEdit, grid: GridBatch) -> None:
    """Guards against a text encoder or a VAE that is shown the answer."""
    before, after = given_and_made(base, grid)
    assert torch.equal(after.text["prompt_embeds"], before.text["prompt_embeds"])
    cells = grid.cells.clone()
    cells[:, 0] = 255 - cells[:, 0]
    other = base.encode(replace(grid, cells=cells), seed=0)
    assert not torch.equal(other.text["prompt_embeds"], before.text["prompt_embeds"])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_picture_is_the_pipelines(guidance: float, base: QwenEdit, task: GridTask, model: Path) -> None:
    """Guards against cells in another order, guidance that is not told, and noise of another seed."""
    ((picture,),) = base.sample([task], steps=2, guidance=guidance, seed=5)
    grid, pipe = at_inference(task), QwenImageEditPlusPipeline.from_pretrained(model)
    noise = torch.randn(TOKENS, 16, generator=generator(5, task.walk.index, "sample"))[None]
    (wanted,) = pipe(
        prompt=grid.prompts, image=references(grid, 0), height=SIDE, width=SIDE, num_inference_steps=2, latents=noise,
        true_cfg_scale=guidance, negative_prompt=" " if guidance > 1 else None,
    ).images  # fmt: skip
    assert picture.tobytes() == wanted.tobytes() and picture.size == (SIDE, SIDE)
    ((other,),) = base.sample([task], steps=2, guidance=guidance + 2, seed=5)
    assert other.tobytes() != wanted.tobytes()


def test_a_perfect_model_gives_the_truth_back(base: QwenEdit, task: GridTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against latents of training that are not those which the pipeline decodes."""
    make_perfect(base, base.encode(filled(task), 0).z, monkeypatch)
    decoded = Calls(base.pipe.vae.decoder, monkeypatch)
    base.sample([task], steps=4, guidance=1.0, seed=0)
    pixels = base.pipe.image_processor.preprocess(Image.fromarray(task.cells(filled=True)[-1][1]))
    with torch.no_grad():
        base.pipe.vae.decode(base.pipe.vae.encode(pixels.unsqueeze(2)).latent_dist.mode())
    sampled, wanted = (call["x"] for call in decoded)
    assert_close(sampled, wanted, terms=5 * FORWARD, mutant=wanted * 1.01)


@pytest.mark.parametrize("layers", ["attn", "all"])
def test_a_lora_loads_into_the_stock_pipeline(
    layers: Layers, base: QwenEdit, grid: GridBatch, model: Path, tmp_path: Path
) -> None:
    """Guards against keys or an alpha that diffusers reads otherwise, and layers without a gradient."""
    pipe, batch = QwenImageEditPlusPipeline.from_pretrained(model), base.encode(grid, seed=0)
    saved = read_by(pipe, base, batch, layers, folder=tmp_path, recipe={"base": "qwen_edit"})
    with pytest.raises(ValueError, match="qwen_edit: the kohya format has no names for its layers here; use --format"):
        save_kohya(saved, tmp_path / "kohya.safetensors")


def test_presets_grow(base: QwenEdit) -> None:
    attention, both, every = (set(base.targets(layers)) for layers in ("attn", "attn_ff", "all"))
    assert attention < both < every and len(attention) == 2 * 8 - 1 and len(both) == len(attention) + 4 + 2


def test_what_it_cannot_make_is_refused(base: QwenEdit, grid: GridBatch, sampler: PathSampler) -> None:
    recipe = {"base": "qwen_edit", "objective": "qwen_edit", "paths": "pipelines/train/paths/tiny.yaml"}
    preflight.check(config_from(recipe))
    with pytest.raises(ValueError, match=r"sampler\.mask 'paper': allowed for qwen_edit: one hole"):
        preflight.check(config_from({**recipe, "sampler": {"mask": "paper"}}))
    with pytest.raises(ValueError, match=r"cache_gb: 1\.0; allowed for qwen_edit: 0"):
        preflight.check(config_from({**recipe, "cache_gb": 1.0, "walks": 64}))
    with pytest.raises(ValueError, match=r"watch\.sample_steps: 1; allowed for qwen_edit: 2 or more"):
        preflight.check(config_from({**recipe, "watch": {"sample_steps": 1}}))
    with pytest.raises(ValueError, match="2 holes; allowed for qwen_edit: one hole"):
        base.encode(replace(grid, holes=torch.tensor([[True, True]] * 2)), seed=0)
    with pytest.raises(ValueError, match="2 holes; allowed for qwen_edit: one hole"):
        base.sample([sampler.task(sampler.walk(0, hole=(0, 1)), SIDE)], steps=1, guidance=1.0, seed=0)


def test_a_pass_is_forecast(model: Path, base: QwenEdit, grid: GridBatch) -> None:
    """Guards against a base whose size is said without its references."""
    config = config_from({"base": "qwen_edit", "objective": "qwen_edit", "resolution": SIDE, "dtype": "float32"})
    planned, count = preflight.planned(config, str(model))
    batch, blank = base.encode(grid, seed=0), planned.blank(2, 2, SIDE, 2)
    assert blank is not None and blank.size == batch.size and blank.z.shape == batch.z.shape
    made = preflight.pass_of(config, planned, 2, 2)
    assert made is not None and made.activations > 0 and count.parameters > 0
    assert made.base == sum(weight.nbytes for weight in base.bare.parameters())
    assert plan_base("qwen_edit", str(model), QWEN).work(52, 300) is not None


def test_a_base_in_half_precision(model: Path, grid: GridBatch, task: GridTask) -> None:
    """Guards against dtypes that do not meet at a door."""
    works_in_half_precision(load_base("qwen_edit", str(model), QWEN), grid, [task], guidance=4.0)
