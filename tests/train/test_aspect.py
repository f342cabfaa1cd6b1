"""Cells of the pictures' own shape: samples of a pass that differ in size, and those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphbuild.data import GridTaskList, collate
from graphbuild_train.trainer import Trainer
from tests.support.training import Ground, parts, state


def trained(ground: Ground, name: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, list[int]]:
    """A run over cells in shape, and how many samples went through the model at once."""
    sizes: list[int] = []
    losses = Trainer._losses

    def counted(self: Trainer, grid: Any, seed: int) -> Any:
        sizes.append(len(grid.index))
        return losses(self, grid, seed)

    monkeypatch.setattr(Trainer, "_losses", counted)
    trainer = ground.trained(
        name, cells={"cell_fit": "aspect"}, resolution=48, mix="step", micro_batch=micro_batch, steps=3
    )
    monkeypatch.undo()
    return trainer, sizes


def test_samples_of_a_pass_may_differ_in_size(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a refusal of upright beside wide pictures, and a step that depends on what goes together."""
    alone, ones = trained(ground, "alone", 1, monkeypatch)
    together, sizes = trained(ground, "together", 4, monkeypatch)
    assert ones == [1] * 12 and sum(sizes) == 12 and max(sizes) > 1 and len(sizes) < 12, sizes
    ours, theirs = parts(state(together.out)), parts(state(alone.out))
    for part in theirs:
        assert torch.allclose(ours[part], theirs[part], rtol=1e-3, atol=1e-5), part
    grid = collate(
        [sample.load() for sample in GridTaskList(together.sampler, 4, resolution=48, cells=together.config.cells)]
    )
    split = grid.alike()
    assert sorted(at for part in split for at in part.index.tolist()) == grid.index.tolist()
    for part in split:
        assert bool((part.sizes == part.sizes[0]).all()) and len(part.prompts) == len(part.index) == len(part.keys)
