"""The task lists of a recipe, in the layout of its objective."""

from __future__ import annotations

from graphbuild.tasks.paths import PathSet, load
from graphbuild_train.config import TrainConfig
from graphbuild_train.objective import objective_of


def lists_of(config: TrainConfig) -> list[PathSet]:
    """The recipe's task lists, one for each entry of its data if it has some, in the layout of its objective.

    Raises:
        ValueError: no such list, or a path of it has another layout.
    """
    names = [entry.paths or config.paths for entry in config.data] or [config.paths]
    return [_arranged(name, config.objective) for name in names]


def _arranged(paths: str, objective: str) -> PathSet:
    try:
        return load(paths).arranged(objective_of(objective).layout)
    except ValueError as error:
        raise ValueError(f"paths: {paths}, objective {objective}: {error}") from None
