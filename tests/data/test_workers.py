"""Workers: errors that name the item, samples that travel, threads and files that end, memory that does not grow."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader

from graphbuild.data import GridTasks, collate
from graphbuild.data.prefetch import loaded
from graphbuild.data.sample import GridSample
from graphbuild.errors import CorruptNode, GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.paths import PathSet
from graphbuild.tasks.sampler import PathSampler
from tests.support.loading import BATCH, PATHS, loader, tasks


def _broken(folder: Path, tmp_path: Path, kind: str) -> PathSampler:
    """A copy of the graph with the stored bytes of a kind overwritten."""
    out = Path(shutil.copytree(folder, tmp_path / "broken"))
    graph = Graph.open(out)
    for item_ix in range(graph.num_items):
        spot = graph.offsets(kind).spot(item_ix, 0)
        assert spot is not None
        with open(graph.fs.path(graph.offsets(kind).parts[spot.part]), "r+b") as file:
            file.seek(spot.offset)
            file.write(b"\0" * 8)
    return PathSampler(Graph.open(out), PATHS, seed=3, path_repeat=BATCH)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_item(workers: int, folder: Path, tmp_path: Path) -> None:
    """Guards against a traceback of a worker that does not tell which picture to look at."""
    damaged = _broken(folder, tmp_path, "canny")
    with pytest.raises(
        CorruptNode, match=r"grid task \d+ \(\w+\), row \d, column \d: item \d+, .*shard.* row \d+, item"
    ):
        list(loader(tasks(damaged), workers))


def test_a_sample_of_a_closed_dataset_says_so(sampler: PathSampler) -> None:
    """Guards against a KeyError far from its cause."""
    dataset = tasks(sampler)
    data = pickle.dumps(next(iter(dataset)))
    assert pickle.loads(data).index == 0
    del dataset
    gc.collect()
    with pytest.raises(GraphError, match="alive"):
        pickle.loads(data)


def test_samples_travel_with_their_pixels(sampler: PathSampler, decodes: list[str]) -> None:
    """Guards against shipping the graph with every sample, and decoding again what a worker decoded."""
    dataset = tasks(sampler, prefetch=0)
    sample = next(iter(dataset))
    assert len(pickle.dumps(sample)) < 2000
    cells = sample.cells(filled=True)
    before = len(decodes)
    data = pickle.dumps(sample)
    copy: GridSample = pickle.loads(data)
    assert len(data) < 5000 + sum(cell.nbytes for row in cells for cell in row)
    assert np.array_equal(np.array(copy.cells(filled=True)), np.array(cells)) and len(decodes) == before
    for batch in DataLoader(tasks(sampler, stop=8), batch_size=BATCH, num_workers=1, collate_fn=list):
        assert all(isinstance(sample, GridSample) and sample.pixels().any() for sample in batch)


def _threads() -> list[str]:
    """Those that decode ahead; a store that an earlier test read from keeps its own."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("graphbuild-decode")]


def test_no_threads_in_a_process_that_forks(sampler: PathSampler) -> None:
    """Guards against a worker that hangs for ever: forked while a thread decodes, it inherits a lock that nobody will
    open."""
    seen = []
    for sample in tasks(sampler, prefetch=4, threads=2):
        seen.append(sample._pixels is None and _threads() == [])
    assert seen == [True] * 40


def _decoded_ahead(samples: list[GridSample]) -> tuple[list[str], int]:
    """In a worker: its threads, and how many pixels are there before anyone asks."""
    return _threads(), sum(sample._pixels is not None for sample in samples)


def test_threads_of_a_worker_decode_ahead(sampler: PathSampler) -> None:
    """Guards against a worker that decodes nothing until its batch is put together."""
    dataset = tasks(sampler, prefetch=4, threads=2)
    seen = list(DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=_decoded_ahead))
    assert all(0 < len(names) <= 2 for names, _ in seen[:-2]) and all(count == BATCH for _, count in seen)


def test_closing_ends_threads_and_files(sampler: PathSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against threads and open files that pile up over many epochs."""
    monkeypatch.setattr("graphbuild.data.prefetch.get_worker_info", lambda: "a worker")
    samples = list(tasks(sampler, prefetch=0))
    for _ in range(3):
        drawn = loaded(samples, 4, 2)
        next(drawn)
        assert _threads()
        drawn.close()
        assert _threads() == []
    monkeypatch.undo()
    before = psutil.Process().num_fds()
    for _ in range(20):
        next(iter(tasks(sampler)))
    gc.collect()
    assert psutil.Process().num_fds() <= before + 2


def test_a_worker_loads_after_opencv_ran_in_this_process(sampler: PathSampler) -> None:
    """Guards against a training run that waits for ever: a worker cannot end the threads of OpenCV that it inherits
    from a process which looked at a picture, or validated, before."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.remap(np.zeros((2000, 2000, 3), np.uint8), *np.zeros((2, 2000, 2000), np.float32), cv2.INTER_CUBIC)
        loader = DataLoader(
            tasks(sampler, stop=2 * BATCH), batch_size=BATCH, num_workers=1, collate_fn=collate, timeout=60
        )
        assert len(list(loader)) == 2 and cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)


def _resident(samples: list[GridSample]) -> tuple[int, int]:
    """The last index of a batch and what its worker holds; pixels were decoded and are dropped."""
    collate(samples)
    return samples[-1].index, psutil.Process(os.getpid()).memory_info().rss


@pytest.mark.slow
def test_memory_of_a_worker_does_not_grow(sampler: PathSampler) -> None:
    """Guards against tables, walks or pictures that a worker keeps."""
    small = PathSampler(sampler.graph, PathSet(name="one", paths=PATHS.paths[:1]), path_repeat=BATCH)
    dataset = GridTasks(small, resolution=8, batch=BATCH, stop=8_000, rank=0, world=1)
    held: dict[int, int] = dict(DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=_resident))
    early = max(rss for index, rss in held.items() if 2_000 < index < 3_000)
    late = max(rss for index, rss in held.items() if index > 7_000)
    assert late - early < 2 << 20, (early, late)
