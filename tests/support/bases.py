"""What the tests of bases have in common: tasks, and what holds for each base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphbuild.data import GridBatch, at_inference
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases.base import Base
from graphbuild_train.batch import LatentBatch
from graphbuild_train.config import Layers
from graphbuild_train.export.lora_file import Lora, save_diffusers
from graphbuild_train.lora import adapter_config, lora_state
from tests.support.annotators import build, complete
from tests.support.numerics import error
from tests.support.tiny_models_other import Calls, trained

PATHS = PathSet(name="one", paths=(TaskPath(name="sketch", cells=("canny", "image"), targets=(1,)),))


def sketches(photos: Path, out: Path) -> PathSampler:
    """Two rows of edges and a photograph."""
    complete(build(photos, out, ["canny"], shard_size=18))
    return PathSampler(Graph.open(out), PATHS, config=SamplerConfig(rows=(0, 1)), seed=3, path_repeat=2)


def filled(task: GridTask) -> GridBatch:
    """A task as a batch of one that shows the truth."""
    cells = [[torch.from_numpy(cell) for cell in row] for row in task.cells(filled=True)]
    return replace(
        at_inference(task), cells=torch.stack([torch.stack(row) for row in cells]).permute(0, 1, 4, 2, 3)[None]
    )


def make_perfect(base: Base, truth: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model of a flow predict the way from noise to `truth`, 1 x S x C."""

    def oracle(hidden_states: Tensor, timestep: Tensor, **_: Any) -> Tensor:
        return (hidden_states - truth) / timestep[:, None, None]

    Calls(base.bare, monkeypatch, oracle)


def given_and_made(base: Base, grid: GridBatch) -> tuple[LatentBatch, LatentBatch]:
    """What a grid is encoded to; and with other pictures in its holes, after which its given tokens are the same."""
    before, cells = base.encode(grid, seed=0), grid.cells.clone()
    cells[:, -1][grid.holes] = 255 - cells[:, -1][grid.holes]
    after = base.encode(replace(grid, cells=cells), seed=0)
    assert torch.equal(after.z[~before.generated], before.z[~before.generated])
    assert not torch.isclose(after.z[before.generated], before.z[before.generated]).all(-1).any()
    return before, after


def read_by(
    pipe: Any, base: Base, batch: LatentBatch, layers: Layers, *, folder: Path, recipe: Mapping[str, Any] | None = None
) -> Lora:  # fmt: skip
    """A LoRA of a base as a file, which a pipeline of diffusers has read: it predicts what the base predicts."""
    noisy = base.objective.corrupt(batch, seed=1)
    untrained = base.predict(noisy.x, noisy.level, batch)
    trained(base, batch, layers)
    adapter = adapter_config(base.bare)
    saved = Lora(part=base.denoiser, state=lora_state(base.bare), adapter=adapter, recipe=recipe or {})
    save_diffusers(saved, folder)
    pipe.load_lora_weights(folder)
    ours = base.predict(noisy.x, noisy.level, batch)
    base.model = getattr(pipe, base.denoiser)
    assert torch.equal(base.predict(noisy.x, noisy.level, batch), ours)
    assert error(ours, untrained) > 0.01
    return saved


def works_in_half_precision(base: Base, grid: GridBatch, tasks: Sequence[GridTask], guidance: float) -> None:
    """A base in bfloat16 encodes and predicts in float32, and makes a picture for each hole."""
    batch = base.encode(grid, seed=0)
    noisy = base.objective.corrupt(batch, seed=0)
    assert base.dtype == torch.bfloat16 and batch.z.dtype == torch.float32
    assert batch.extra is None or batch.extra.dtype == torch.float32
    assert base.predict(noisy.x, noisy.level, batch).dtype == torch.float32
    made = base.sample(tasks, steps=2, guidance=guidance, seed=0)
    assert [len(pictures) for pictures in made] == [len(task.holes) for task in tasks]
