"""What a batch holds: the cells of its tasks, and pixels only when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from graphbuild.data import GridTaskList, at_inference, collate
from graphbuild.data.buffers import MAX_BYTES, CellCache, PixelBuffer
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import Styles, build, complete
from tests.support.loading import BATCH, PATHS, facts, loader, tasks

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
