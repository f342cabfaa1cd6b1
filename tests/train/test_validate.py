"""Validation: one number that only the LoRA can change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from graphbuild.data import GridTasks, collate
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.objective import OBJECTIVES
from graphbuild_train.trainer import Trainer
from graphbuild_train.validate import LEVELS, Validation, validate
from tests.support.numerics import assert_close
from tests.support.tiny_models import save_flux_dev
from tests.support.training import Ground, metrics, said

FORWARD = 1000
"""Roundings of a forward pass of the small model: about ten layers with sums of about a hundred terms."""


@pytest.fixture(scope="module")
def trainer(ground: Ground) -> Trainer:
    return ground.trainer("run", watch={"tasks": 6})


def found(trainer: Trainer) -> Validation:
    with trainer.finished():
        result = trainer.validation()
    assert result is not None
    return result


@pytest.mark.numeric
def test_it_is_the_same_number_twice_and_for_every_batch(ground: Ground, trainer: Trainer) -> None:
    """Guards against draws from a global state, and against tasks that depend on how a run is cut up."""
    first = found(trainer)
    torch.manual_seed(7)
    assert found(trainer) == first and first.tasks == 6
    assert found(ground.trainer("other", batch=6, micro_batch=3, watch={"tasks": 6})) == first
    assert trainer.spared is not None
    tasks = GridTasks(grouped(trainer, 3), resolution=32, batch=3, stop=6, rank=0, world=1)
    together = validate(trainer.base, trainer.objective, DataLoader(tasks, batch_size=3, collate_fn=collate), 0)
    single = [GridTasks(tasks.source.sampler, resolution=32, stop=6, rank=0, world=1)]
    alone = validate(trainer.base, trainer.objective, DataLoader(single[0], collate_fn=collate), 0)
    other = validate(trainer.base, trainer.objective, DataLoader(single[0], collate_fn=collate), 1)
    assert_close(together.by_level, alone.by_level, terms=FORWARD, mutant=other.by_level)


def grouped(trainer: Trainer, repeat: int) -> PathSampler:
    return trainer.sampler_of("validation", path_repeat=repeat)


def test_it_is_by_noise_level_and_by_task_type(trainer: Trainer) -> None:
    """Guards against a mean over levels that hides which of them got worse."""
    result = found(trainer)
    assert len(result.by_level) == LEVELS == 8
    assert set(result.by_type) <= {"conditional generation", "dense prediction", "restoration"}
    assert len(result.by_type) > 1
    assert result.loss == pytest.approx(sum(result.by_level) / 8)


def test_its_levels_are_the_middles_of_eighths(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against levels that are drawn, or that leave out an end."""
    told: list[float] = []
    predict = type(trainer.base).predict

    def noted(self: object, x: torch.Tensor, level: torch.Tensor, batch: object) -> torch.Tensor:
        told.extend(level[:, 0].tolist())
        return predict(self, x, level, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(type(trainer.base), "predict", noted)
    found(trainer)
    assert told[:8] == [(number + 0.5) / 8 for number in range(8)] == told[8:16]


def test_it_is_of_items_that_are_not_trained_on(trainer: Trainer) -> None:
    """Guards against a validation loss that falls because the model has seen the answers."""
    assert trainer.spared is not None
    trained, held = (
        {item for walk in sampler.walks(0, 200) for item in walk.rows} for sampler in (trainer.sampler, trainer.spared)
    )
    assert trained and held and not trained & held


@pytest.mark.numeric
def test_views_are_validated_as_they_are_sampled(ground: Ground, tmp_path: Path) -> None:
    """Guards against a loss of OneDiffusion over given views, which no sampler makes."""
    model = str(save_flux_dev(tmp_path / "dev"))
    trainer = ground.trainer("views", base="flux_dev", model=model, objective="onediffusion", watch={"tasks": 1})
    assert trainer.spared is not None
    grids = GridTasks(trainer.spared, resolution=32, stop=1, rank=0, world=1)
    (grid,) = DataLoader(grids, collate_fn=collate)
    batch = trainer.base.encode(grid, 0)
    level = torch.tensor([0.5 / 8])
    trained = OBJECTIVES["onediffusion"]
    sampled = replace(trained, noise="generated", time="clean", loss="generated")
    losses = []
    for objective in (sampled, trained):
        noisy = objective.corrupt(batch, 0, level)
        with torch.no_grad():
            losses.append(trainer.objective.loss_of(trainer.base.predict(noisy.x, noisy.level, batch), noisy)[0])
    assert_close(found(trainer).by_level[0], losses[0], terms=FORWARD, mutant=losses[1])


def test_a_graph_without_items_to_spare_trains_and_says_so(ground: Ground) -> None:
    """Guards against a small graph that cannot be trained on at all."""
    trainer = ground.trained(
        "few", steps=1, sampler={"validation": 0.0}, watch={"checkpoint": 0, "validate": 1, "sample": 0, "tasks": 1}
    )
    assert "no validation: " in said(trainer)
    assert [line["step"] for line in metrics(trainer.out)] == [1]
