"""Grid tasks to look at: the list that is drawn from, how often each path comes, and single tasks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from graphbuild.store.graph import Graph
from graphbuild.tasks import explain
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.export import open_sampler
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.masks import masks
from graphbuild.tasks.paths import TaskPath
from graphbuild.tasks.sampler import PathSampler

COUNTED = 2000
"""Tasks whose paths are counted."""

_CONFIG = SamplerConfig()


class PathFacts(NamedTuple):
    """A path of the list.

    Attributes:
        items: that serve it.
        chance: its probability; 0 if it is never drawn.
        drawn: how often it comes among the first `COUNTED` tasks.
        held_out: whether its own targets are held out.
    """

    path: TaskPath
    items: int
    chance: float
    drawn: int
    held_out: bool


class Draws:
    """Samplers of a graph, one a seed, made on first use.

    Args:
        paths: a task list; None for every shipped path that the graph serves.
        config: switches of the sampler, held-out tasks among them.
    """

    def __init__(self, graph: Graph, paths: str | None, config: SamplerConfig) -> None:
        self.graph, self.config = graph, config
        self.sampler = lru_cache(maxsize=4)(
            lambda seed: open_sampler(graph, paths, seed=seed, on_missing="drop", config=config)
        )

    def paths(self, seed: int) -> list[PathFacts]:
        """Every path of the list, those that are drawn first."""
        sampler: PathSampler = self.sampler(seed)
        chances, items = sampler.probabilities(), sampler.coverage()
        drawn = np.bincount(sampler.walks(0, COUNTED).path, minlength=len(sampler.listed.paths))
        found = [
            PathFacts(
                path, items[path.name]["all"], chances.get(path.name, 0.0), int(drawn[at]), self.is_held_out(path)
            )
            for at, path in enumerate(sampler.listed.paths)
        ]
        return sorted(found, key=lambda facts: (not facts.chance, not facts.items, -facts.chance, facts.path.name))

    def is_held_out(self, path: TaskPath) -> bool:
        """Whether a path is never drawn because its targets are held out."""
        return bool(self.config.held_out) and not masks(path, self.config)

    def task(self, seed: int, index: int, path: str | None, resolution: int) -> GridTask:
        """A grid task, of one path if it is named.

        Raises:
            ValueError: no such path, or it cannot be served.
        """
        sampler: PathSampler = self.sampler(seed)
        return sampler.task(sampler.walk(index, path=path or None), resolution)

    def explained(self, seed: int, task: GridTask) -> dict[str, Any]:
        """What a task is made of, and why."""
        return explain.sample(self.sampler(seed), task.walk)
