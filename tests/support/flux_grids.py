"""Grids that FLUX.1 is given: two to four columns, one or two holes, cells of one size or of several."""

from __future__ import annotations

from dataclasses import replace

from graphbuild.data import GridBatch, collate
from graphbuild.data.sample import GridSample, TaskSource
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.instruction import KEEP_ALL
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler

CELLS = ("canny", "rotate_90", "foreground", "image")
CAPTION = Content(source="caption", of="image")
PATHS = PathSet(
    name="some",
    paths=(
        *(TaskPath(name=f"l{n}", cells=CELLS[-n:], targets=(n - 1,), content=CAPTION) for n in (2, 3, 4)),
        TaskPath(name="joint", cells=("canny", "foreground", "image"), targets=(1, 2), content=CAPTION),
    ),
)
SQUARES = CellConfig()
SHARED = CellConfig(cell_fit="aspect")
OWN = CellConfig(cell_fit="aspect", row_sizes="own")


def sampler_of(graph: Graph, path_repeat: int = 1) -> PathSampler:
    """A sampler that leaves no words out, as at inference."""
    return PathSampler(graph, PATHS, config=SamplerConfig(keep=KEEP_ALL), seed=1, path_repeat=path_repeat)


def grid(sampler: PathSampler, *indices: int, resolution: int = 32, cells: CellConfig = SQUARES) -> GridBatch:
    source = TaskSource(sampler, resolution, 0, None, cells)
    return collate([GridSample(source, index) for index in indices])


def with_target(batch: GridBatch, value: int) -> GridBatch:
    """The same grids, the truth in their holes replaced."""
    cells = batch.cells.clone()
    cells[:, -1][batch.holes] = value
    return replace(batch, cells=cells)
