"""The walks of an evaluation: fixed once, the same for every method and every number of context rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from graphbuild.config.strict_yaml import build
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.store.pins import keep_snapshot
from graphbuild.tasks.config import SamplerConfig, Split
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import PathSet
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Frozen, Walk
from graphbuild_train.config import TrainConfig

_SIDES: dict[Split | None, Split | None] = {"train": "validation", "validation": "train", None: None}


@dataclass(frozen=True)
class Questions:
    """Walks with as many rows as any method is given; with fewer context rows the first ones are left out, so that the
    query row stays the same.

    Attributes:
        sampler: of the items that were not trained on, at the snapshot of the walks.
    """

    sampler: PathSampler
    walks: Sequence[Walk]
    config: TrainConfig

    def task(self, walk: Walk, context: int) -> GridTask | None:
        """The grid task of a walk with so many context rows; None if the walk has fewer."""
        shorter = shortened(walk, context + 1)
        if shorter is None:
            return None
        return self.sampler.task(shorter, self.config.resolution, cells=self.config.cells)

    def unseen(self, walk: Walk) -> bool:
        """Whether the task was held out of the training."""
        holes = {walk.kinds[hole] for hole in walk.holes}
        given = [kind for column, kind in enumerate(walk.kinds) if column not in walk.holes]
        return any(task.matches(given, holes) for task in self.config.sampler.held_out)

    @cached_property
    def trained(self) -> PathSampler | None:
        """A sampler over the other side of the split; None if it serves nothing."""
        config = replace(self.sampler.config, split=_SIDES[self.sampler.config.split], rows=(1.0,))
        try:
            return PathSampler(self.sampler.graph, self.sampler.listed, on_missing="drop", config=config)
        except GraphError:
            return None


def shortened(walk: Walk, rows: int) -> Walk | None:
    """The last rows of a walk; None if it has fewer."""
    if len(walk.rows) < rows:
        return None
    return replace(walk, rows=walk.rows[-rows:], variants=walk.variants[-rows:], seeds=walk.seeds[-rows:])


def drawn(graph: str, listed: PathSet, config: TrainConfig, *, count: int, context: int, seed: int) -> Frozen:
    """So many walks of each task, of items that were not trained on, each with `context` rows beside the query. Tasks
    that were held out of the training are drawn, too.

    Raises:
        GraphError: nothing is served.
    """
    opened = Graph.open(graph)
    rows = (*(0.0,) * context, 1.0)
    asked = replace(config.sampler, split=_SIDES[config.sampler.split], rows=rows, mask="target", held_out=())
    sampler = PathSampler(opened, listed, seed=seed, on_missing="drop", config=asked)
    if error := keep_snapshot(opened):
        raise GraphError(
            f"{graph}: its snapshot cannot be kept there, so that later commands would see others: {error}"
        )
    return sampler.frozen(count, per_path=True)


def questions(graph: str, listed: PathSet, config: TrainConfig, file: Path) -> Questions:
    """The walks of a file at their snapshot.

    Raises:
        GraphError: the file was changed, its snapshot is not there, or it is of another list.
    """
    frozen = Frozen.read(file)
    switches = {name: frozen.header[name] for name in SamplerConfig.__dataclass_fields__ if name in frozen.header}
    sampler = PathSampler(
        Graph.open(graph, snapshot=frozen.header["snapshot"]), listed, on_missing="drop",
        config=build(SamplerConfig, switches), seed=frozen.header["seed"], path_repeat=frozen.header["path_repeat"],
    )  # fmt: skip
    walks = frozen.walks(listed)
    if len({walk.index for walk in walks}) < len(walks):
        raise GraphError(f"{file}: two walks of one index; noise and pictures are named by it")
    return Questions(sampler, walks, config)
