"""FLUX.1 bases: what they give the model is what diffusers' pipeline gives it, and conditions never show the target."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graphbuild.data import at_inference
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.visualcloze import mend
from graphbuild_train.bases import flux, load_base
from graphbuild_train.bases.flux_dev import FluxDev
from graphbuild_train.bases.flux_fill import FluxFill
from graphbuild_train.batch import LatentBatch
from graphbuild_train.export.lora_file import Lora, save_diffusers
from graphbuild_train.objective import Noisy, generator, objective_of
from tests.support.annotators import Halves, build, complete
from tests.support.flux_grids import OWN, SHARED, SQUARES, grid, sampler_of, with_target
from tests.support.numerics import assert_close, error, rounding
from tests.support.tiny_models import PixelVae, components, save_flux_dev, save_flux_fill
from tests.tasks.test_layouts import picture, task_of

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

FORWARD = 1000
"""Roundings of a pass through a small model or VAE: about ten layers with sums of about a hundred terms."""
SEED = 11


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("flux")
    (folder / "photos").mkdir()
    for number, photo in enumerate(sorted(photos.iterdir())[:9]):
        copy = folder / "photos" / photo.name
        copy.write_bytes(photo.read_bytes())
        if number % 2:
            copy.with_suffix(".txt").write_text(f"This is {photo.stem}.")
    complete(build(folder / "photos", folder / "g", ["canny", Halves(), "source_caption"]))
    return Graph.open(folder / "g")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_flux_fill(folder / "flux_fill")
    save_flux_dev(folder / "flux_dev")
    return folder


def loaded(models: Path, name: str, objective: str, **options: Any) -> Any:
    return load_base(name, str(models / name), objective_of(objective), dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def fill(models: Path) -> FluxFill:
    return loaded(models, "flux_fill", "visualcloze_fill")


@pytest.fixture(scope="module")
def dev(models: Path) -> FluxDev:
    return loaded(models, "flux_dev", "visualcloze_dev")


@pytest.fixture(params=["flux_fill", "visualcloze_dev", "onediffusion"])
def each(request: pytest.FixtureRequest, fill: FluxFill, dev: FluxDev, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both bases, for all objectives."""
    if request.param == "flux_fill":
        return fill
    monkeypatch.setattr(dev, "objective", objective_of(request.param))
    return dev


both_of_dev = pytest.mark.parametrize("each", ["visualcloze_dev", "onediffusion"], indirect=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """base -> the arguments of every later call of its model, as a list that grows."""

    def watch(base: Any) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        forward = base.bare.forward

        def spy(**arguments: Any) -> Any:
            seen.append({**arguments, "made": (made := forward(**arguments))})
            return made

        monkeypatch.setattr(base.bare, "forward", spy)
        return seen

    return watch


# ---- FLUX.1-Fill is diffusers' VisualClozePipeline -----------------------------------------------------------------


@pytest.mark.parametrize("cells", [SQUARES, SHARED, OWN], ids=["squares", "shared", "own"])
def test_the_model_gets_what_the_pipeline_gives_it(graph: Graph, fill: FluxFill, cells: CellConfig, calls: Any) -> None:
    """Latents with holes, mask, positions, words, guidance and time in every bit, for any grid, shape and hole: else a
    LoRA is trained for another model than the one it is used in."""
    sampler, seen, shapes = sampler_of(graph), calls(fill), set()
    stage = mend(fill.pipe.generation_pipe)
    stage.set_progress_bar_config(disable=True)
    for index in range(9):
        task = sampler.task(index, 48, cells=cells)
        stage.image_processor.resolution = 48
        del seen[:]
        draws = generator(SEED, index, "vae")
        stage(
            **task.pipeline_kwargs(), generator=draws, guidance_scale=1.0, num_inference_steps=1, output_type="latent"
        )
        batch = fill.encode(grid(sampler, index, resolution=48, cells=cells), SEED)
        theirs = seen[0]
        velocity = fill.predict(theirs["hidden_states"][..., :64], torch.ones(batch.generated.shape), batch)
        ours = seen[1]
        for name in theirs.keys() - {"made", "joint_attention_kwargs", "return_dict"}:
            assert torch.equal(ours[name], theirs[name]), name
        assert torch.equal(velocity, theirs["made"][0])
        assert batch.extra is not None and torch.equal(batch.extra, theirs["hidden_states"][..., 64:])
        shapes.add((len(task.walk.rows), len(task.walk.kinds), len(task.holes), task.holes[0] > 0, batch.size))
    assert len(shapes) > 5


def test_the_sampler_takes_the_times_of_the_pipeline(graph: Graph, fill: FluxFill, calls: Any) -> None:
    """Guards against a shift in training that is not the one at inference."""
    sampler, seen = sampler_of(graph), calls(fill)
    fill.sample([sampler.task(0, 48)], steps=5, guidance=30.0, seed=SEED)
    theirs = [float(call["timestep"]) for call in seen]
    assert {float(call["guidance"]) for call in seen} == {30.0} and len(theirs) == 5
    del seen[:]
    fill.objective.sample(fill.predict, fill.encode(grid(sampler, 0, resolution=48), SEED), steps=5, seed=SEED)
    ours, unshifted = [float(call["timestep"]) for call in seen], [1.0, 0.8, 0.6, 0.4, 0.2]
    assert_close(ours, theirs, terms=10, mutant=unshifted)
    assert theirs[0] == 1.0 and theirs[2] > 0.6  # a shift of its own: without, it would be .6


def test_clean_latents_are_those_of_whole_rows(graph: Graph, fill: FluxFill) -> None:
    """Of the query with its target, drawn after the rows that the pipeline draws; context rows are not drawn twice."""
    sampler = sampler_of(graph)
    index = next(i for i in range(50) if len(sampler.walk(i).rows) == 3)
    batch, task, vae = fill.encode(grid(sampler, index), SEED), sampler.task(index, 32), fill.pipe.vae
    draws, expected = generator(SEED, index, "vae"), []
    hidden, shown = task.cells(), task.cells(filled=True)
    for row in [*hidden, shown[-1]]:
        pixels = torch.from_numpy(np.concatenate(row, 1))[None].permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample(draws)
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        height, width = latents.shape[2] // 2, latents.shape[3] // 2
        expected.append(latents.reshape(16, height, 2, width, 2).permute(1, 3, 0, 2, 4).reshape(1, height * width, 64))
    del expected[2]
    assert torch.equal(batch.z, torch.cat(expected, 1))
    assert batch.view[0].unique_consecutive().tolist() == [0, 1, 2]


def test_a_checkpoint_of_another_class_in_half_precision(graph: Graph, tmp_path: Path) -> None:
    """FLUX.1-Fill itself is published as a `FluxFillPipeline`; what is noised and compared stays float32."""
    from diffusers import FluxFillPipeline

    FluxFillPipeline(**components(in_channels=384, guidance=True)).save_pretrained(tmp_path)
    base = FluxFill.load(str(tmp_path), objective_of("visualcloze_fill"))
    assert base.dtype == torch.bfloat16 and not any(weight.requires_grad for weight in base.bare.parameters())
    batch = base.encode(grid(sampler_of(graph), 0), SEED)
    velocity = base.predict(torch.randn(batch.z.shape), torch.full(batch.generated.shape, 0.5), batch)
    assert {velocity.dtype, batch.z.dtype, batch.extra.dtype} == {torch.float32} and velocity.isfinite().all()


# ---- conditions do not show the target ---------------------------------------------------------------------------


def test_conditions_of_fill_do_not_show_the_target(graph: Graph, fill: FluxFill) -> None:
    for index in range(6):
        batch = grid(sampler_of(graph), index)
        one, other = (fill.encode(with_target(batch, value), SEED) for value in (0, 255))
        assert one.extra is not None and other.extra is not None
        assert torch.equal(one.extra, other.extra) and not torch.equal(one.z, other.z)
        assert not one.extra[..., :64].isnan().any() and one.extra[..., 64:].unique().tolist() == [0, 1]


@both_of_dev
def test_given_tokens_of_dev_do_not_show_the_target(graph: Graph, each: FluxDev) -> None:
    """Bit for bit, noised or not: the VAE sees far, and a model would find what leaks."""
    objective = each.objective
    for index in range(6):
        batch = grid(sampler_of(graph), index)
        one, other = (each.encode(with_target(batch, value), SEED) for value in (0, 255))
        given = ~one.generated
        assert given.any() and torch.equal(one.generated, other.generated)
        assert torch.equal(one.z[given], other.z[given]) and not torch.equal(one.z, other.z)
        for way in (objective, objective.sampled()):
            noisy = [way.corrupt(batch, SEED) for batch in (one, other)]
            assert torch.equal(noisy[0].x[given], noisy[1].x[given])
        assert torch.equal(noisy[0].x[given], one.z[given]) and not noisy[0].level[given].any()


@both_of_dev
def test_sampling_does_not_see_the_target(each: FluxDev) -> None:
    rng = np.random.default_rng(0)
    rows = [[picture(rng, 40, 40) for _ in range(3)] for _ in range(2)]
    other = [rows[0], [*rows[1][:2], picture(rng, 40, 40)]]
    changed = [rows[0], [picture(rng, 40, 40), *rows[1][1:]]]
    made = []
    for given in (rows, other, changed):
        task = task_of(given, (2,), 32)
        task.drawing.graph.digest = ""
        made += each.sample([task], steps=2, guidance=2.0, seed=SEED)
    assert made[0] == made[1] != made[2]


# ---- tokens are where their pixels are ---------------------------------------------------------------------------


def pictures(tokens: torch.Tensor, batch: LatentBatch) -> list[np.ndarray[Any, Any]]:
    """Every unit of the first sample, H x W x 3 uint8."""
    units = [
        flux.decoded(PixelVae(), unit, size)
        for unit, size in zip(torch.split(tokens, batch.lengths, 1), batch.size, strict=True)
    ]
    return [((unit[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for unit in units]


@pytest.mark.parametrize("cells", [SQUARES, SHARED, OWN], ids=["squares", "shared", "own"])
def test_cells_come_out_where_they_went_in(
    graph: Graph, each: Any, cells: CellConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against rows, cells or pixels of a token in another order, and a mask on other tokens than the holes."""
    stand_in = SimpleNamespace(**{**each.pipe.components, "vae": PixelVae()})
    monkeypatch.setattr(each, "pipe", stand_in)
    sampler = sampler_of(graph)
    for index in range(8):
        task = sampler.task(index, 48, cells=cells)
        batch = each.encode(grid(sampler, index, resolution=48, cells=cells), SEED)
        alone = each.encode(at_inference(task), SEED)
        if isinstance(each, FluxFill):
            truth, shown = ([np.concatenate(row, 1) for row in task.cells(filled=filled)] for filled in (True, False))
            assert batch.extra is not None and same(pictures(batch.extra[..., :768], batch), shown)
        else:
            truth, shown = (list(chain(*task.cells(filled=filled))) for filled in (True, False))
        assert same(pictures(batch.z, batch), truth) and same(pictures(alone.z, alone), shown)
        assert torch.equal(alone.ids, batch.ids) and torch.equal(alone.generated, batch.generated)
        painted = batch.z.masked_fill(batch.generated[..., None], (-1 - 0.25) * 2)
        assert same(pictures(painted, batch), shown)  # holes are black there


def test_grey_holes(graph: Graph, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = loaded(models, "flux_fill", "visualcloze_fill", hole_fill="grey")
    monkeypatch.setattr(grey, "pipe", SimpleNamespace(**{**grey.pipe.components, "vae": PixelVae()}))
    batch, task = grey.encode(grid(sampler_of(graph), 0), SEED), sampler_of(graph).task(0, 32)
    cells = [np.full_like(cell, 128) if at in task.holes else cell for at, cell in enumerate(task.cells()[-1])]
    assert np.array_equal(pictures(batch.extra[..., :768], batch)[-1], np.concatenate(cells, 1))


def same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(np.array_equal(*pair) for pair in zip(some, others, strict=True))


@both_of_dev
def test_positions_of_dev(graph: Graph, each: FluxDev) -> None:
    """Rows on the first axis, or views; columns go on across a row, or begin again."""
    sampler = sampler_of(graph)
    index = next(i for i in range(50) if len(sampler.walk(i).rows) == 2 and len(sampler.walk(i).kinds) == 3)
    batch = each.encode(grid(sampler, index), SEED)
    first, down, across = batch.ids.reshape(2, 3, 2, 2, 3).unbind(-1)
    views = each.objective.name == "onediffusion"
    assert first[:, :, 0, 0].tolist() == ([[0, 1, 2], [3, 4, 5]] if views else [[1, 1, 1], [2, 2, 2]])
    assert across[0, :, 0].tolist() == ([[0, 1]] * 3 if views else [[0, 1], [2, 3], [4, 5]])
    assert (down == torch.tensor([[0], [1]])).all()
    assert batch.view[0].reshape(6, 4).tolist() == [[unit] * 4 for unit in range(6)]


@pytest.mark.parametrize("guided", [True, False])
def test_what_dev_tells_its_model(graph: Graph, tmp_path: Path, calls: Any, guided: bool) -> None:
    """Level 0 is clean and level 1 is noise, untouched on its way; text is told the noisiest."""
    save_flux_dev(tmp_path, guidance=guided)
    base = FluxDev.load(str(tmp_path), objective_of("onediffusion"), dtype=torch.float32, guidance=3.5)
    batch = base.encode(grid(sampler_of(graph), 0), SEED)
    seen = calls(base)
    by_view = torch.linspace(0, 1, len(batch.size))
    base.predict(batch.z, by_view[batch.view], batch)
    assert seen[0]["timestep"].tolist() == [1.0, *by_view.tolist()]
    assert torch.equal(seen[0]["hidden_states"], batch.z)
    guidance = seen[0]["guidance"]
    assert set(guidance.tolist()) == {3.5} if guided else guidance is None


# ---- both --------------------------------------------------------------------------------------------------------


def losses(base: Any, batch: LatentBatch) -> torch.Tensor:
    noisy: Noisy = base.objective.corrupt(batch, SEED)
    with torch.no_grad():
        return base.objective.loss_of(base.predict(noisy.x, noisy.level, batch), noisy)


def test_a_batch_is_its_samples(graph: Graph, each: Any) -> None:
    """Draws and losses do not depend on how samples are batched."""
    sampler = sampler_of(graph, path_repeat=4)
    together = each.encode(grid(sampler, 4, 5, 6, 7), SEED)
    alone = [each.encode(grid(sampler, index), SEED) for index in (4, 5, 6, 7)]
    other = each.encode(grid(sampler, 4, 5, 6, 7), SEED + 1)
    assert_close(together.z, torch.cat([batch.z for batch in alone]), terms=FORWARD, mutant=other.z)
    made, wanted = losses(each, together), torch.cat([losses(each, batch) for batch in alone])
    assert_close(made, wanted, terms=FORWARD, mutant=losses(each, other))
    assert len(set(made.tolist())) == 4


def test_samples_are_pictures_of_the_holes(graph: Graph, each: Any) -> None:
    """One for each hole, of its size; the same for the same seed."""
    sampler = sampler_of(graph)
    tasks = [sampler.task(index, 32) for index in range(3)]
    tasks.append(sampler.task(sampler.walk(3, path="joint", hole=(1, 2)), 32))
    made = each.sample(tasks, steps=2, guidance=3.0, seed=0)
    assert [len(images) for images in made] == [len(task.holes) for task in tasks] and len(made[3]) == 2
    assert {image.size for images in made for image in images} == {(32, 32)}
    assert each.sample(tasks[:1], steps=2, guidance=3.0, seed=0) == made[:1]
    assert each.sample(tasks[:1], steps=2, guidance=3.0, seed=1) != made[:1]
    assert each.sample(tasks[:1], steps=2, guidance=30.0, seed=0) != made[:1]


def test_lora_targets_and_files(graph: Graph, models: Path, tmp_path: Path) -> None:
    """The layers of a preset, and a file that the pipeline loads again."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = loaded(models, "flux_fill", "visualcloze_fill")
    counts = {layers: len(base.targets(layers)) for layers in ("attn", "attn_ff", "all")}
    assert counts == {"attn": 8 + 3, "attn_ff": 8 + 3 + 4, "all": 30}
    sampler = sampler_of(graph)
    batch = base.encode(grid(sampler, 0), SEED)
    x, level = torch.randn(batch.z.shape), torch.full(batch.generated.shape, 0.5)
    plain = base.predict(x, level, batch)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=base.targets("attn_ff"), init_lora_weights=False)
    base.bare.add_adapter(config)
    adapted = base.predict(x, level, batch)
    assert error(adapted, plain) > rounding(FORWARD) and base.dtype == torch.float32
    adapter = {"r": 4, "lora_alpha": 2, "target_modules": sorted(config.target_modules)}
    save_diffusers(
        Lora(part="transformer", state=get_peft_model_state_dict(base.bare), adapter=adapter), tmp_path / "lora"
    )
    again = loaded(models, "flux_fill", "visualcloze_fill")
    again.pipe.load_lora_weights(tmp_path / "lora")
    assert torch.equal(again.predict(x, level, batch), adapted)


def test_what_cannot_be_encoded_is_said(graph: Graph, fill: FluxFill) -> None:
    with pytest.raises(ValueError, match="resolution: cells of 40 x 40 pixels; allowed: multiples of 16"):
        fill.encode(grid(sampler_of(graph), 0, resolution=40), SEED)
    sampler = sampler_of(graph, path_repeat=8)
    sizes = [grid(sampler, index, resolution=64, cells=SHARED).sizes for index in range(8)]
    others = [at for at, found in enumerate(sizes) if not torch.equal(found, sizes[0])]
    with pytest.raises(ValueError, match="allowed: micro_batch 1, or cell_fit crop_square"):
        fill.encode(grid(sampler, 0, others[0], resolution=64, cells=SHARED), SEED)
