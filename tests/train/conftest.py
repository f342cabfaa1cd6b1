"""Fixtures that the tests of several bases share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from graphbuild.tasks.sampler import PathSampler
from tests.support.bases import sketches
from tests.support.training import Ground, grounded


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The number of threads changes last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sampler(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PathSampler:
    """Two rows of edges and a photograph, two tasks of a shape."""
    return sketches(photos, tmp_path_factory.mktemp("sketches") / "g")


@pytest.fixture(scope="module")
def ground(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(tmp_path_factory.mktemp("ground"), photos) as made:
        yield made
