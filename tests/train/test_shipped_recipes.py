"""Each shipped recipe, on a miniature of its own data set: it trains, and what its first batch shows and says is known.

`python -m tests.train.test_shipped_recipes` writes what is known anew, into shipped_recipes.json.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from graphbuild.data import GridBatch, GridTasks, collate
from graphbuild.images.codecs import Pixels
from graphbuild.pipeline import load_pipeline
from graphbuild_train.bases import tiny
from graphbuild_train.config import TrainConfig
from graphbuild_train.recipes import configured, read_recipe, recipe_file, recipe_names
from graphbuild_train.trainer import Trainer
from tests.support.annotators import build, complete
from tests.support.published_sets import SETS
from tests.support.tiny_models import save_flex2, save_flux_dev
from tests.support.tiny_models_other import save_flux2_klein, save_sdxl

# diffusers' DPM-Solver makes an array of a tensor in the way of NumPy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

KNOWN = Path(__file__).with_name("shipped_recipes.json")
OWN_SET = {
    "onepic_colorization": "coco", "onepic_conditional": "graph200k", "onepic_dreambooth": "dreambooth",
    "onepic_editing": "magicbrush", "onepic_fashion_extraction": "viton_hd", "onepic_portraits": "dreambooth",
    "onepic_segmentation": "coco", "onepic_tryon": "viton_hd", "onediffusion": "dreambooth",
}  # fmt: skip
"""Recipe -> the pipeline that its comment names; `graph200k` serves all others."""
MODELS: Mapping[str, Callable[[Path], Path]] = {
    "flux_fill": tiny.save, "flux_dev": save_flux_dev, "sdxl": save_sdxl, "flux2_klein": save_flux2_klein,
    "flex2": save_flex2,
}  # fmt: skip
SIDE = 64
SMALL = (
    f"resolution={SIDE}", "dtype=float32", "steps=3", "batch=2", "micro_batch=1", "lora.rank=4", "lora.alpha=4",
    "watch={checkpoint: 0, validate: 0, sample: 0}", "sampler.split=null", "checkpointing=0",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Miniatures:
    """Graphs of data sets, and tiny models of bases, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def graph(self, recipe: str) -> Path:
        name = OWN_SET.get(recipe, "graph200k")
        if not (out := self.folder / name).exists():
            SETS[name](self.folder / f"{name}-data")
            pipeline = load_pipeline(name, path=str(self.folder / f"{name}-data"))
            complete(build(pipeline.source, out, pipeline.annotators))
        return out

    def model(self, base: str) -> Path:
        out = self.folder / f"{base}-model"
        return out if out.exists() else MODELS[base](out)

    def config(self, recipe: str) -> TrainConfig:
        said = read_recipe(recipe_file(recipe))
        return configured(said, [*SMALL, f"model={json.dumps(str(self.model(said['base'])))}"])


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Miniatures:
    return Miniatures(tmp_path_factory.mktemp("recipes"))


def shown(grid: GridBatch, sample: int) -> list[list[Pixels]]:
    """The cells of a batch where the layout has them, the truth in its holes."""
    cells = grid.cells[sample].permute(0, 1, 3, 4, 2).numpy()
    high = grid.sizes[sample].tolist()
    return [[cells[row, column, : high[row][0], : high[row][1]] for row, column in line] for line in grid.places]


def described(trainer: Trainer, count: int = 4) -> list[dict[str, Any]]:
    """What the first samples show: kinds where they are shown, what is made in capitals; mean colours; all words."""
    config = trainer.config
    tasks = GridTasks(trainer.sampler, resolution=config.resolution, cells=config.cells, rank=0, world=1)
    found = []
    for sample, _ in zip(tasks, range(count), strict=False):
        grid = collate([sample])
        last = sample.shape[0] - 1
        lines = [
            [sample.kinds[c].name.upper() if r == last and c in sample.holes else sample.kinds[c].name for r, c in line]
            for line in grid.places
        ]
        colours = [[np.round(cell.mean((0, 1))).astype(int).tolist() for cell in line] for line in shown(grid, 0)]
        found.append({"cells": lines, "colours": colours, "words": sample.instruction_full.text})
    return found


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name != "tiny"])
def test_a_recipe_trains_on_its_own_set_and_its_first_batch_is_known(
    recipe: str, miniatures: Miniatures, tmp_path: Path
) -> None:
    """Guards against a recipe that trains another picture, or other words, than its paper says."""
    trainer = Trainer(
        miniatures.config(recipe), miniatures.graph(recipe), tmp_path, console=Console(file=io.StringIO())
    )
    known, found = json.loads(KNOWN.read_text())[recipe], described(trainer)
    for ours, theirs in zip(found, known, strict=True):
        assert (ours["cells"], ours["words"]) == (theirs["cells"], theirs["words"])
        assert np.abs(np.array(ours["colours"]) - np.array(theirs["colours"])).max() <= 3  # another JPEG decoder
    trainer.fit()
    assert trainer.step == 3


def test_a_try_on_batch_has_the_target_in_the_middle(miniatures: Miniatures, tmp_path: Path) -> None:
    """Guards against noise, loss and a sampled picture in another place than the list draws."""
    trainer = Trainer(
        miniatures.config("onepic_tryon"), miniatures.graph("onepic_tryon"), tmp_path,
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    task = trainer.sampler.task(0, SIDE, cells=trainer.config.cells)
    assert [kind.name for kind in task.kinds] == ["garment", "image", "agnostic"] and task.holes == (1,)
    tasks = GridTasks(trainer.sampler, resolution=SIDE, cells=trainer.config.cells, rank=0, world=1)
    grid = collate([next(iter(tasks))])
    batch = trainer.base.encode(grid, 0)
    ((down, across),) = batch.size
    third = across // 3
    made = batch.generated[0].reshape(down, across)
    assert made[:, third : 2 * third].all() and not made[:, :third].any() and not made[:, 2 * third :].any()
    noisy = trainer.objective.corrupt(batch, 0)
    changed = (noisy.x != batch.z).any(-1)[0].reshape(down, across)
    assert (changed == made).all() and (noisy.weight[0].reshape(down, across) == made).all()
    (picture,) = trainer.base.sample([task], steps=1, guidance=1.0, seed=0)[0]
    assert picture.size == (task.cell(-1, 1).shape[1], task.cell(-1, 1).shape[0])


def main() -> None:
    """Write what is known, and pictures to look at."""
    folder = Path(tempfile.mkdtemp(prefix="shipped-recipes-"))
    miniatures, known = Miniatures(folder), {}
    for recipe in (name for name in recipe_names() if name != "tiny"):
        trainer = Trainer(miniatures.config(recipe), miniatures.graph(recipe), folder / f"{recipe}-run",
                          console=Console(file=io.StringIO()))  # fmt: skip
        known[recipe] = described(trainer)
        pictures = [trainer.sampler.task(index, 96, cells=trainer.config.cells).image() for index in range(2)]
        sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (0, index * pictures[0].height))
        sheet.save(folder / f"{recipe}.png")
    KNOWN.write_text(json.dumps(known, indent=1) + "\n")
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
