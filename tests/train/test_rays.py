"""Viewing rays as a view (OneDiffusion): from a published set's cameras to latents, a training step, and back."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from graphbuild.data import GridBatch, GridTaskList, at_inference, collate
from graphbuild.pipeline import load_pipeline
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.paths import load
from graphbuild.tasks.pictures import PictureRows
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import load_base
from graphbuild_train.bases.flux_dev import FluxDev
from graphbuild_train.objective import OBJECTIVES
from graphbuild_train.recipes import configured, read_recipe, recipe_file
from graphbuild_train.trainer import Trainer
from tests.support.annotators import build, complete
from tests.support.bases import make_perfect
from tests.support.published_sets import multiview
from tests.support.tiny_models import save_flux_dev

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
SIDE, POINTS = 64, 8
LIST = "pipelines/train/paths/onediffusion.yaml"
WITH_CAMERAS = "multiview-with-cameras"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Three scenes of four pictures of 64 x 48 with their cameras, in the layout of CO3D."""
    root = tmp_path_factory.mktemp("rays")
    multiview(root / "co3d")
    pipeline = load_pipeline("multiview", path=str(root / "co3d"))
    complete(build(pipeline.source, root / "g", pipeline.annotators))
    return Graph.open(root / "g")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux_dev(tmp_path_factory.mktemp("models") / "dev")


@pytest.fixture
def base(model: Path) -> FluxDev:
    made = load_base("flux_dev", str(model), OBJECTIVES["onediffusion"], dtype=torch.float32)
    assert isinstance(made, FluxDev)
    return made


@pytest.fixture(scope="module")
def sampler(graph: Graph) -> PathSampler:
    listed = load(LIST)
    paths = tuple(path for path in listed.paths if path.name == WITH_CAMERAS)
    config = SamplerConfig(rows=(1,), mask="target")
    return PathSampler(graph, replace(listed, paths=paths), config=config, seed=1)


@pytest.fixture(scope="module")
def grid(sampler: PathSampler) -> GridBatch:
    return collate([sample.load() for sample in GridTaskList(sampler, 1, resolution=SIDE)])


def ray_at(camera: dict[str, Any], across: float, down: float) -> list[float]:
    """Moment and direction of the ray through a point of the picture, in pixels."""
    pose = np.array(camera["pose"])
    (fx, fy), (cx, cy) = camera["focal"], camera["centre"]
    direction = pose[:, :3] @ np.array([(across - cx) / fx, (down - cy) / fy, 1.0])
    direction /= np.linalg.norm(direction)
    return [*np.cross(pose[:, 3], direction), *direction]


def test_a_cell_of_rays_has_those_of_the_part_that_is_shown(graph: Graph, grid: GridBatch) -> None:
    """Guards against rays of the whole picture beside a cell cut from its middle, and of another item's camera."""
    assert [len(line) for line in grid.places] == [2 * grid.items.shape[1]] and grid.ray_column == 1
    assert grid.rays.shape == (1, grid.items.shape[1], 6, POINTS, POINTS)
    for row, item in enumerate(grid.items[0].tolist()):
        camera = graph.read(item, "rays").values()
        assert camera == graph.read(item, "camera").values() and (camera["width"], camera["height"]) == (64, 48)
        for y, x in ((0, 0), (3, 5), (7, 7)):  # a square of 48 in the middle, 8 points of 6 pixels
            wanted = ray_at(camera, 8 + (x + 0.5) * 6, (y + 0.5) * 6)
            assert grid.rays[0, row, :, y, x].tolist() == pytest.approx(wanted, abs=1e-5)


def test_rays_are_a_view_of_their_own_that_no_vae_encodes(
    base: FluxDev, grid: GridBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against rays that are squeezed through a VAE for photographs, and channels in another order."""
    asked: list[int] = []
    encoding = base.encoding
    monkeypatch.setattr(base, "encoding", lambda picture: asked.append(len(picture)) or encoding(picture))
    batch = base.encode(grid, seed=0)
    rows = grid.items.shape[1]
    assert len(asked) == rows and batch.size == ((POINTS // 2, POINTS // 2),) * (2 * rows)
    views = batch.z[0].split(batch.lengths)
    for number, (row, column) in enumerate(grid.places[0]):
        latents = torch.nn.functional.pixel_shuffle(views[number].T.reshape(1, -1, POINTS // 2, POINTS // 2), 2)[0]
        if column == grid.ray_column:
            rays = grid.rays[0, row]
            assert torch.equal(latents, torch.cat([rays, rays, rays[:4]]) * 1.658)
    assert batch.generated[0].split(batch.lengths)[0].all() and not batch.generated[0].split(batch.lengths)[1].any()
    spread = float((grid.rays * 1.658).std())
    assert 0.3 < spread < 1.5  # about that of latents


def test_the_recipe_trains_on_cameras(graph: Graph, model: Path, tmp_path: Path) -> None:
    """Guards against a task list that says rays and trains something else: every view has a level of its own."""
    small = (
        f"resolution={SIDE}", "dtype=float32", "steps=2", "batch=2", "micro_batch=1", "lora.rank=4", "lora.alpha=4",
        "watch={checkpoint: 0, validate: 0, sample: 0}", "sampler.split=null", "checkpointing=0",
        f"model={json.dumps(str(model))}",
    )  # fmt: skip
    config = configured(read_recipe(recipe_file("onediffusion")), small)
    trainer = Trainer(config, graph.url, tmp_path, console=Console(file=io.StringIO()))
    assert WITH_CAMERAS in {path.name for path in trainer.sampler.parts[0].paths}
    index = next(i for i in range(50) if trainer.sampler.walk(i).path.name == WITH_CAMERAS)
    task = trainer.sampler.task(index, SIDE, cells=config.cells)
    assert task.prompt.startswith("[[multiview]]") or not task.prompt
    trainer.fit()
    assert trainer.step == 2
    (grid, seed) = next(trainer._grids(index))
    noisy = trainer.objective.corrupt(batch := trainer.base.encode(grid, seed), seed)
    levels = [view.unique().tolist() for view in noisy.level[0].split(batch.lengths)]
    assert all(len(each) == 1 for each in levels) and len({each[0] for each in levels}) == len(levels)


def test_rays_are_made_from_pictures(
    base: FluxDev, sampler: PathSampler, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against cameras that are shown to what is to guess them, and a picture decoded by the VAE."""
    known = sampler.task(walk := sampler.walk(0), SIDE)
    task = sampler.task(replace(walk, holes=(1,)), SIDE)
    grid = at_inference(task)
    assert not grid.rays[0, -1].any() and grid.rays[0, 0].any()
    truth = replace(grid, rays=collate([sample.load() for sample in GridTaskList(sampler, 1, resolution=SIDE)]).rays)
    make_perfect(base, base.encode(truth, 0).z, monkeypatch)
    # the oracle knows one level: all that is made has it
    ((picture,),) = base.sample([task], steps=4, guidance=1.0, seed=0)
    wanted = known.cell(-1, 1).astype(int)
    assert picture.size == (SIDE, SIDE) and np.abs(np.asarray(picture).astype(int) - wanted).mean() < 4
    assert np.abs(np.asarray(picture).astype(int) - known.cell(0, 1).astype(int)).mean() > 4


def test_rays_of_own_pictures_are_refused(base: FluxDev) -> None:
    """Guards against colours that are taken for rays."""
    own = next(kind for path in load(LIST).paths for kind in path.own if kind.name == "rays")
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    task = PictureRows([[grey, None]], [own, "image"]).task(SIDE)
    with pytest.raises(ValueError, match="row 0, rays: a picture; allowed: rays of a graph"):
        base.sample([task], steps=1, guidance=1.0, seed=0)
    assert math.isfinite(float(np.asarray(base.sample([PictureRows([[None, grey]], [own, "image"]).task(SIDE)],
                                                       steps=1, guidance=1.0, seed=0)[0][0]).mean()))  # fmt: skip
