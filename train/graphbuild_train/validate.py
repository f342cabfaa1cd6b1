"""Losses that can be compared from step to step: the same grid tasks, with the same noise, at the same levels.

A training loss mostly reflects which noise levels were drawn; this one has no random part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from graphbuild.data import GridBatch
from graphbuild_train.bases.base import Base
from graphbuild_train.objective import Objective

LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Mean losses of fixed grid tasks.

    Attributes:
        loss: over all tasks and levels.
        by_level: over tasks, at the noise levels (i + 1/2) / 8.
        by_type: over levels, of each task type.
        tasks: how many.
    """

    loss: float
    by_level: tuple[float, ...]
    by_type: dict[str, float]
    tasks: int


@torch.no_grad()
def validate(base: Base, objective: Objective, grids: Iterable[GridBatch], seed: int) -> Validation:
    """Losses of every grid task at each level; equal for any batch size, as each task has its own noise."""
    objective = objective.sampled()
    losses: list[list[float]] = []
    types: list[str] = []
    for grid in grids:
        batch = base.encode(grid, seed)
        rows = []
        for number in range(LEVELS):
            level = torch.full((len(grid.index),), (number + 0.5) / LEVELS, device=batch.z.device)
            noisy = objective.corrupt(batch, seed, level)
            rows.append(objective.loss_of(base.predict(noisy.x, noisy.level, batch), noisy))
        losses += torch.stack(rows, 1).double().tolist()
        types += grid.types
    by_type: dict[str, list[float]] = defaultdict(list)
    for name, row in zip(types, losses, strict=True):
        by_type[name] += row
    return Validation(
        loss=_mean([value for row in losses for value in row]),
        by_level=tuple(_mean(column) for column in zip(*losses, strict=True)),
        by_type={name: _mean(values) for name, values in sorted(by_type.items())},
        tasks=len(losses),
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
