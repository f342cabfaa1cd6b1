"""Loaders over a small graph, and batches that can be compared."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from graphbuild.data import GridTasks, collate
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler

PATHS = PathSet(
    name="three",
    paths=(
        TaskPath(name="sketch", cells=("image", "canny"), targets=(1,)),
        TaskPath(name="style", cells=("canny", "style_content", "image"), targets=(2,)),
        TaskPath(name="mend", cells=("blur", "image"), targets=(1,)),
    ),
)
BATCH = 4


def tasks(sampler: PathSampler, **options: Any) -> GridTasks:
    return GridTasks(sampler, **{"resolution": 16, "batch": BATCH, "stop": 40, "rank": 0, "world": 1, **options})


def loader(dataset: Any, workers: int = 0, *, stateful: bool = False, **options: Any) -> Any:
    made = StatefulDataLoader if stateful else DataLoader
    return made(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate, **options)


def facts(batch: Any) -> tuple[Any, ...]:
    """All of a batch, comparable."""
    lists = (batch.paths, batch.types, batch.kinds, batch.prompts, batch.keys, batch.row_keys, batch.cell_keys)
    tensors = (batch.index, batch.items, batch.cells, batch.decoded, batch.sizes, batch.holes)
    return (*lists, batch.snapshot, batch.next, *(tensor.tolist() for tensor in tensors))
