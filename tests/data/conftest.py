"""A small graph, and what a loader draws from it, for all tests of loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphbuild.store.graph import Graph
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Styles, build, complete
from tests.support.loading import BATCH, PATHS, facts, loader, tasks


@pytest.fixture(scope="session")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, their edges and styles in shards of four; read only."""
    out = tmp_path_factory.mktemp("data") / "g"
    complete(build(photos, out, ["canny", Styles()], shard_size=4))
    return out


@pytest.fixture(scope="module")
def sampler(folder: Path) -> PathSampler:
    return PathSampler(Graph.open(folder), PATHS, seed=3, path_repeat=BATCH)


@pytest.fixture(scope="module")
def straight(sampler: PathSampler) -> list[Any]:
    """Ten batches, drawn without workers or threads."""
    batches = [facts(batch) for batch in loader(tasks(sampler, prefetch=0))]
    assert [index for batch in batches for index in batch[9]] == list(range(40))
    return batches
