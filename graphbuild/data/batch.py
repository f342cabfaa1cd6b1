"""Batches: grid tasks of one geometry as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.data.sample import GridSample, joined
from graphbuild.images.codecs import Pixels
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import Layout, Places
from graphbuild.tasks.rays import LATENT, ray_column, rays_of


@dataclass(frozen=True)
class GridBatch:
    """B grid tasks of R rows and L columns. Strings come in lists of B; tensors share a device.

    Attributes:
        index: int64 B, the walks; `items`: int64 B x R, their items.
        decoded: int64 D, indices of the samples that have pixels: all but those that `known` returned True for.
        cells: uint8 D x R x L x 3 x height x width, RGB 0..255, targets included, black beside cells smaller than the
            largest; channels last in memory, which the samples share.
        sizes: int64 D x R x 2, height and width of the cells of each row.
        holes: bool B x L, columns of the last row that are to be generated.
        layout: of all samples; `places`: what is shown where, see `GridTask`.
        kinds: the kind of each shown column.
        keys, row_keys, cell_keys: cache keys of the pixels, see `GridSample`; empty for tasks at inference.
        snapshot: digest of the graph's state, of several joined by `+`; `next`: the position to resume at after this
            batch.
        ray_column: the column that shows rays; None if none does.
        rays: float32 B x R x 6 x h x w, the rays in it at an eighth of the size of cells, see `graphbuild.tasks.rays`;
            zeros for holes at inference. Empty without that column.
    """

    index: Tensor
    items: Tensor
    decoded: Tensor
    cells: Tensor
    sizes: Tensor
    holes: Tensor
    layout: Layout
    places: Places
    paths: list[str]
    types: list[str]
    kinds: list[tuple[str, ...]]
    prompts: list[str]
    keys: list[str]
    row_keys: list[list[str]]
    cell_keys: list[list[list[str]]]
    snapshot: str
    next: int
    ray_column: int | None
    rays: Tensor

    def rows(self) -> list[Tensor]:
        """Each row as pictures, uint8 D x 3 x height x (L width), RGB 0..255: its cells side by side.

        Raises:
            ValueError: the samples' cells differ in size.
        """
        if not len(self.sizes):
            return []
        if not bool((self.sizes == self.sizes[0]).all()):
            raise ValueError("the cells of a batch differ in size; allowed: batches of 1, or cell_fit crop_square")
        rows = zip(self.cells.unbind(1), self.sizes[0].tolist(), strict=True)
        return [_side_by_side(cells[..., :height, :width]) for cells, (height, width) in rows]

    def alike(self) -> list[GridBatch]:
        """The batch split by the sizes of its cells, each part in the order of its samples. A sample without pixels,
        whose sizes nobody knows, is a part of its own."""
        sizes = {sample: str(self.sizes[at].tolist()) for at, sample in enumerate(self.decoded.tolist())}
        parts: dict[str, list[int]] = {}
        for sample in range(len(self.index)):
            parts.setdefault(sizes.get(sample, f"sample {sample}"), []).append(sample)
        return [self] if len(parts) == 1 else [self._of(samples) for samples in parts.values()]

    def _of(self, samples: list[int]) -> GridBatch:
        """The batch of some of its samples."""
        places = {sample: at for at, sample in enumerate(self.decoded.tolist())}
        chosen = [places[sample] for sample in samples if sample in places]
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.type.startswith("list[")}
        lists: dict[str, Any] = {name: values and [values[at] for at in samples] for name, values in named.items()}
        return replace(
            self, index=self.index[samples], items=self.items[samples], holes=self.holes[samples],
            decoded=_integers([at for at, sample in enumerate(samples) if sample in places]),
            cells=self.cells[chosen], sizes=self.sizes[chosen], rays=self.rays[samples if len(self.rays) else []],
            **lists,
        )  # fmt: skip

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> GridBatch:
        """The same with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GridBatch:
        """The same in page-locked memory; a DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> GridBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.type == "Tensor"}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(samples: Sequence[GridSample]) -> GridBatch:
    """A batch of samples; decodes pixels that are needed and not decoded yet.

    Raises:
        ValueError: they differ in rows or columns, or are not one batch of `GridTasks`.
    """
    _check_batch(samples)
    wanted, last = [sample for sample in samples if sample.wanted], samples[-1]
    batch = _batch(
        samples,
        joined(samples),
        [[frame.size[::-1] for frame in sample.frames] for sample in wanted],
        [sample.prompt for sample in samples],
        snapshot=last.source.sampler.snapshot,
        following=last.block.next if last.block else last.index + 1,
    )
    return replace(
        batch,
        decoded=_integers([at for at, sample in enumerate(samples) if sample.wanted]),
        keys=[sample.key for sample in samples],
        row_keys=[sample.row_keys for sample in samples],
        cell_keys=[sample.cell_keys for sample in samples],
    )


def at_inference(task: GridTask) -> GridBatch:
    """A task as a batch of one to sample from: holes not shown, no words left out."""
    rows = task.cells()
    sizes = [row[0].shape[:2] for row in rows]
    height, width = map(max, zip(*sizes, strict=True))
    cells = np.zeros((1, len(rows), len(rows[0]), height, width, 3), np.uint8)
    for row, column in np.ndindex(cells.shape[1:3]):
        high, wide = sizes[row]
        cells[0, row, column, :high, :wide] = rows[row][column]
    words, snapshot = task.evaluation.text, task.drawing.graph.digest
    return _batch([task], cells, [sizes], [words], snapshot=snapshot, following=task.walk.index + 1, known=False)


def _batch(
    tasks: Sequence[GridTask], cells: Pixels, sizes: Sequence[Any], prompts: list[str], *, snapshot: str,
    following: int, known: bool = True,
) -> GridBatch:  # fmt: skip
    """A batch of decoded samples without keys; `known` is whether holes have their truth."""
    walks = [task.walk for task in tasks]
    holes = np.zeros((len(walks), len(walks[0].columns)), bool)
    for row, walk in zip(holes, walks, strict=True):
        row[list(walk.holes)] = True
    return GridBatch(
        index=_integers([walk.index for walk in walks]),
        items=_integers([walk.rows for walk in walks]),
        decoded=torch.arange(len(walks)),
        cells=torch.from_numpy(cells).permute(0, 1, 2, 5, 3, 4),
        sizes=_integers(sizes).reshape(len(sizes), len(walks[0].rows), 2),
        holes=torch.from_numpy(holes),
        layout=walks[0].path.layout or "rows",
        places=tasks[0].places,
        paths=[walk.path.name for walk in walks],
        types=[walk.path.type for walk in walks],
        kinds=[walk.kinds for walk in walks],
        prompts=prompts,
        keys=[],
        row_keys=[],
        cell_keys=[],
        snapshot=snapshot,
        next=following,
        ray_column=ray_column(tasks[0]),
        rays=_rays(tasks, known=known),
    )


def _rays(tasks: Sequence[GridTask], *, known: bool) -> Tensor:
    """See `GridBatch.rays`.

    Raises:
        ValueError: cells differ in size, or columns in what they show.
    """
    columns = {ray_column(task) for task in tasks}
    if columns == {None}:
        return torch.zeros(0)
    (column,) = columns if len(columns) == 1 else (None,)
    sizes = {frame.size for task in tasks for frame in task.frames}
    if column is None or len(sizes) > 1:
        raise ValueError("samples with rays differ in columns or cell sizes; allowed: one path a batch, crop_square")
    (width, height) = sizes.pop()
    nothing = np.zeros((6, height // LATENT, width // LATENT), np.float32)

    def of(task: GridTask, row: int) -> NDArray[np.float32]:
        hole = row == len(task.walk.rows) - 1 and column in task.holes
        return rays_of(task, row, column) if known or not hole else nothing

    return torch.from_numpy(np.array([[of(task, row) for row in range(len(task.walk.rows))] for task in tasks]))


def _side_by_side(cells: Tensor) -> Tensor:
    """D x L x 3 x h x w as D x 3 x h x (L w); channels last in memory."""
    count, columns, _, height, width = cells.shape
    return cells.permute(0, 3, 1, 4, 2).reshape(count, height, columns * width, 3).permute(0, 3, 1, 2)


def _integers(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64))  # a third of the time of torch.tensor


def _check_batch(samples: Sequence[GridSample]) -> None:
    indices, block = [sample.index for sample in samples], samples[0].block
    if block and indices != list(range(block.first, block.stop)):
        raise ValueError(
            f"samples {indices} are not the batch {block.first}..{block.stop - 1}; allowed: a DataLoader whose "
            f"batch_size is the batch of its GridTasks"
        )
    if len({(sample.shape, sample.places) for sample in samples}) > 1:
        raise ValueError(f"samples {indices} differ in rows, columns or layout; give the PathSampler path_repeat=batch")
