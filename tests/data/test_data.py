"""The loader: the same samples for any number of workers and ranks, after any resume; pixels only when asked for."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from graphbuild.data import GridTaskList, GridTasks, at_inference, collate, position
from graphbuild.data.buffers import MAX_BYTES, CellCache, PixelBuffer
from graphbuild.data.prefetch import loaded
from graphbuild.data.sample import GridSample
from graphbuild.errors import CorruptNode, GraphError
from graphbuild.images.node import Node
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Styles, build, complete

PATHS = PathSet(
    name="three",
    paths=(
        TaskPath(name="sketch", cells=("image", "canny"), targets=(1,)),
        TaskPath(name="style", cells=("canny", "style_content", "image"), targets=(2,)),
        TaskPath(name="mend", cells=("blur", "image"), targets=(1,)),
    ),
)
BATCH = 4
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 7 worker")  # more than there are cores


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "g"
    complete(build(photos, out, ["canny", Styles()], shard_size=4))
    return out


@pytest.fixture(scope="module")
def sampler(folder: Path) -> PathSampler:
    return PathSampler(Graph.open(folder), PATHS, seed=3, path_repeat=BATCH)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of every stored picture that was decoded in this process."""
    seen: list[str] = []
    decoded = Node.decoded

    def counted(node: Node, *arguments: Any, **options: Any) -> Any:
        seen.append(node.kind)
        return decoded(node, *arguments, **options)

    monkeypatch.setattr(Node, "decoded", counted)
    return seen


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


@pytest.fixture(scope="module")
def straight(sampler: PathSampler) -> list[Any]:
    """Ten batches, drawn without workers or threads."""
    batches = [facts(batch) for batch in loader(tasks(sampler, prefetch=0))]
    assert [index for batch in batches for index in batch[9]] == list(range(40))
    return batches


# ---- the same samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_workers_do_not_change_what_is_drawn(workers: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against batches that come twice, not at all or in another order with more workers."""
    assert [facts(batch) for batch in loader(tasks(sampler), workers)] == straight


def test_spawned_workers_draw_the_same(sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against state that only a forked worker has."""
    spawned = loader(tasks(sampler), 1, multiprocessing_context="spawn")
    assert [facts(batch) for batch in spawned] == straight


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_the_same_global_batches(world: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against training on other data when the number of GPUs changes."""
    share = BATCH // world
    ranks = [list(tasks(sampler, rank=rank, world=world, batch=share)) for rank in range(world)]
    indices = [sample.index for step in range(10) for rank in ranks for sample in rank[step * share :][:share]]
    keys = {sample.index: sample.key for rank in ranks for sample in rank}
    assert indices == list(range(40))
    assert [keys[index] for index in indices] == [key for batch in straight for key in batch[4]]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 7)])
def test_resume_of_a_plain_loader(before: int, after: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against a resume that depends on how many workers there were: the position is one integer."""
    batches = iter(loader(tasks(sampler), before))
    done = [next(batches) for _ in range(3)]
    resumed = tasks(sampler)
    resumed.load_state_dict({"next": done[-1].next})
    assert [facts(batch) for batch in loader(resumed, after)] == straight[3:]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_resume_of_a_stateful_loader(workers: int, taken: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against torchdata resuming elsewhere than it stopped, with the same or another number of workers."""
    first = loader(tasks(sampler), workers, stateful=True)
    batches = iter(first)
    assert [facts(next(batches)) for _ in range(taken)] == straight[:taken]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = loader(tasks(sampler), workers, stateful=True)
    second.load_state_dict(state)
    assert [facts(batch) for batch in second] == straight[taken:]
    assert position(state) == taken * BATCH
    other = tasks(sampler)
    other.load_state_dict({"next": position(state)})
    assert [facts(batch) for batch in loader(other, 1 if workers != 1 else 0)] == straight[taken:]


def test_a_position_inside_a_batch(sampler: PathSampler) -> None:
    """Guards against samples lost or repeated where samples are taken one by one."""
    first = tasks(sampler)
    drawn = iter(first)
    indices = [next(drawn).index for _ in range(6)]
    assert first.state_dict() == {"next": 6}
    second = tasks(sampler)
    second.load_state_dict(first.state_dict())
    assert indices + [sample.index for sample in second] == list(range(40))


def test_a_second_iteration_begins_at_start(sampler: PathSampler) -> None:
    """Guards against an evaluation that is empty, or shorter, the second time."""
    dataset = tasks(sampler, start=8)
    dataset.load_state_dict({"next": 20})
    assert [sample.index for sample in dataset] == list(range(20, 40))
    assert [sample.index for sample in dataset] == list(range(8, 40))


def test_the_list_holds_the_same(sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against a map-style form that draws other tasks, and walks out of its range."""
    dataset = GridTaskList(sampler, 40, resolution=16)
    assert len(dataset) == 40 and [dataset[at].index for at in (0, 39, -1)] == [0, 39, 39]
    for workers in (0, 2):
        drawn = [facts(batch) for batch in loader(dataset, workers)]
        assert [batch[9:] for batch in drawn] == [batch[9:] for batch in straight]
    with pytest.raises(IndexError):
        dataset[40]


def test_what_cannot_be_shared_out_is_refused(sampler: PathSampler) -> None:
    """Guards against ranks that wait for each other for ever, and batches of mixed geometry."""
    for wrong in ({"batch": 0}, {"rank": 1}, {"threads": 0}, {"batch": 3}, {"start": 2}, {"prefetch": -1}):
        with pytest.raises(ValueError, match="allowed"):
            tasks(sampler, **wrong)
    with pytest.raises(ValueError, match="multiple of 4"):
        tasks(sampler, world=2, batch=2, stop=38)
    with pytest.raises(ValueError, match="batch_size"):
        next(iter(DataLoader(tasks(sampler), batch_size=2, collate_fn=collate)))
    single = PathSampler(sampler.graph, PATHS, seed=3)
    with pytest.raises(ValueError, match="path_repeat"):
        list(loader(tasks(single)))


def test_rank_and_world_of_a_launcher(sampler: PathSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against every process of torchrun drawing the same."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = tasks(sampler, rank=None, world=None, batch=2)
    assert [sample.index for sample in dataset][:4] == [2, 3, 6, 7]


# ---- the batch ---------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_cells_of_its_tasks(sampler: PathSampler) -> None:
    """Guards against cells at the wrong place, of another sample, and holes in the wrong column."""
    for batch in loader(tasks(sampler)):
        count, rows, columns = batch.cells.shape[:3]
        assert batch.cells.dtype == torch.uint8 and batch.cells.shape == (BATCH, rows, columns, 3, 16, 16)
        assert count == BATCH and [row.shape for row in batch.rows()] == [(BATCH, 3, 16, 16 * columns)] * rows
        for at, index in enumerate(batch.index.tolist()):
            task = sampler.task(index, resolution=16)
            assert batch.items[at].tolist() == list(task.walk.rows) and batch.prompts[at] == task.prompt
            for row, whole in enumerate(batch.rows()):
                truth = [task.cell(row, column) for column in range(columns)]
                assert np.array_equal(batch.cells[at, row].permute(0, 2, 3, 1), truth)
                assert np.array_equal(whole[at].permute(1, 2, 0), np.concatenate(truth, 1))
            assert np.flatnonzero(batch.holes[at]).tolist() == sorted(task.holes)
        assert facts(batch.to("cpu")) == facts(batch)


def test_a_batch_of_cells_that_differ_in_size(sampler: PathSampler) -> None:
    """Guards against cut cells, what was in memory before beside a smaller picture, and rows of mixed sizes."""
    switches = CellConfig(cell_fit="aspect", row_sizes="own")
    seen = set()
    for batch in loader(tasks(sampler, resolution=48, cells=switches)):
        rest = batch.cells.clone()
        for at, index in enumerate(batch.index.tolist()):
            task = sampler.task(sampler.walk(index), 48, cells=switches)
            for row, (height, width) in enumerate(batch.sizes[at].tolist()):
                for column in range(batch.cells.shape[2]):
                    place = (at, row, column, slice(None), slice(height), slice(width))
                    assert np.array_equal(batch.cells[place].permute(1, 2, 0), task.cell(row, column))
                    rest[place] = 0
                seen.add((height, width))
        assert not rest.any()
        with pytest.raises(ValueError, match=r"differ in size; allowed: batches of 1"):
            batch.rows()
    assert len(seen) > 2


@pytest.mark.parametrize("cells", [CellConfig(), CellConfig(cell_fit="aspect", row_sizes="own", hole_fill="grey")])
def test_a_task_at_inference_shows_no_hole_and_drops_no_word(sampler: PathSampler, cells: CellConfig) -> None:
    """Guards against a sampler that is shown the answer, or less than its users have."""
    for index in range(6):
        task = sampler.task(sampler.walk(index), 48, cells=cells)
        batch = at_inference(task)
        assert batch.prompts == [task.evaluation.text] and batch.index.tolist() == [index] and batch.keys == []
        for row, picture in zip(task.cells(), batch.rows(), strict=True):
            assert np.array_equal(picture[0].permute(1, 2, 0), np.concatenate(row, 1))
        assert batch.holes[0].tolist() == task.hole_mask[-1].tolist()


def test_a_batch_is_the_memory_that_its_samples_were_decoded_to(sampler: PathSampler) -> None:
    """Guards against a copy of every batch, and against a batch of samples in another order."""
    samples = list(tasks(sampler, stop=BATCH))
    batch = collate(samples)
    assert all(np.shares_memory(batch.cells.numpy(), sample.pixels()) for sample in samples)
    listed = GridTaskList(sampler, BATCH, resolution=16)
    turned = collate(listed.__getitems__([2, 0, 1, 3]))
    assert torch.equal(turned.cells, batch.cells[[2, 0, 1, 3]])
    one_by_one = collate([listed[at] for at in (3, 1)])
    assert torch.equal(one_by_one.cells, batch.cells[[3, 1]])


@pytest.mark.parametrize("fit", ["crop_square", "stretch_square", "aspect"])
def test_pictures_that_are_cells_already(fit: Any, tmp_path: Path) -> None:
    """Guards against pictures of the size of a cell, which are decoded in place, being other ones than the others."""
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(_photos_of(32, 32)):
        photo.save(tmp_path / "photos" / f"{number}.jpg", quality=90, subsampling=number % 3)
    out = tmp_path / "g"
    complete(build(tmp_path / "photos", out, ["canny", Styles()], shard_size=4))
    drawn = PathSampler(Graph.open(out), PATHS, seed=3, path_repeat=BATCH)
    switches = CellConfig(cell_fit=fit)
    for sample in tasks(drawn, resolution=32, cells=switches):
        task = drawn.task(drawn.walk(sample.index), 32, cells=switches)
        for row, cells in enumerate(sample.cells(filled=True)):
            for column, cell in enumerate(cells):
                assert np.array_equal(cell, task.cell(row, column))


def _photos_of(width: int, height: int) -> list[Image.Image]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.stack([x * 7 + 40 * number, y * 7, (x + y) * number * 9], axis=2) % 256 for number in range(8)]
    return [Image.fromarray(plane.astype(np.uint8)) for plane in planes]


# ---- lazy pixels -------------------------------------------------------------------------------------------------


def test_ids_and_keys_decode_nothing(sampler: PathSampler, decodes: list[str]) -> None:
    """Guards against paying for pixels of which the latents are there already."""
    samples = list(tasks(sampler, prefetch=0))
    keys = [(sample.key, sample.row_keys, sample.cell_keys, sample.prompt) for sample in samples]
    batches = list(loader(tasks(sampler, known=lambda sample: True)))
    assert decodes == [] and len(keys) == 40
    assert [key for batch in batches for key in batch.keys] == [key for key, *_ in keys]
    assert all(
        len(batch.cells) == len(batch.decoded) == len(batch.sizes) == 0 and not batch.rows() for batch in batches
    )
    samples[0].pixels()
    assert len(decodes) == samples[0].shape[0] * samples[0].shape[1]


def test_only_unknown_samples_are_decoded(sampler: PathSampler, straight: list[Any], decodes: list[str]) -> None:
    """Guards against pixels that belong to another sample of the batch, and hits that are decoded all the same."""
    known = {key for batch in straight for key in batch[4][::2]}
    for batch, whole in zip(loader(tasks(sampler, known=lambda sample: sample.key in known)), straight, strict=True):
        wanted = [at for at, key in enumerate(whole[4]) if key not in known]
        assert batch.decoded.tolist() == wanted and batch.keys == whole[4]
        assert batch.cells.tolist() == [whole[11][at] for at in wanted]
        assert batch.sizes.tolist() == [whole[13][at] for at in wanted]


def test_keys_are_equal_if_and_only_if_pixels_are(sampler: PathSampler) -> None:
    """Guards against latents of another picture, and a cache that never hits."""
    cells: dict[str, bytes] = {}
    hits = 0
    for sample in tasks(sampler, stop=200):
        for keys, row in zip(sample.cell_keys, sample.cells(filled=True), strict=True):
            for key, cell in zip(keys, row, strict=True):
                hits += key in cells
                assert cells.setdefault(key, cell.tobytes()) == cell.tobytes()
    assert hits > 100
    other = next(iter(tasks(sampler, resolution=32)))
    assert not {key for row in other.cell_keys for key in row} & set(cells)


def test_cells_in_the_cache_are_not_decoded_again(sampler: PathSampler, decodes: list[str]) -> None:
    """Guards against a cache that is asked with keys that never repeat, or that outgrows its bounds."""
    first = [sample.pixels() for sample in tasks(sampler, stop=8, cache_bytes=1 << 20)]
    dataset = tasks(sampler, stop=8, cache_bytes=1 << 20)
    for _ in range(2):
        before = len(decodes)
        again = [sample.pixels() for sample in dataset]
    assert len(decodes) == before
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    cache = CellCache(1000)
    for number in range(9):
        cache.put(str(number), np.zeros((10, 10, 3), np.uint8))
    assert cache.nbytes == 900 and cache.get("8") is not None and cache.get("5") is None


def test_a_batch_beyond_the_limit_is_refused_with_figures(sampler: PathSampler) -> None:
    """Guards against a worker that is killed for memory, by rows of long shapes padded to each other."""
    with pytest.raises(ValueError, match=r"batch of 64 grids of 3 x 4 cells, padded to 2336 x 2336 px, takes 11.7 GiB"):
        PixelBuffer(64).place(0, (3, 4, 2336, 2336, 3))
    assert PixelBuffer(2).place(1, (1, 1, 2, 2, 3)).shape == (1, 1, 2, 2, 3) and MAX_BYTES == 4 << 30


# ---- what goes wrong ---------------------------------------------------------------------------------------------


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


# ---- memory ------------------------------------------------------------------------------------------------------


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
