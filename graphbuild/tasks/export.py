"""Grid tasks as files: labelled pictures, JSON lines of ids, one Parquet file, or one WebDataset archive."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.config.lookup import find
from graphbuild.contracts import WalkDocument
from graphbuild.hashing import canonical_json
from graphbuild.images.codecs import Pixels
from graphbuild.store.files import replacing
from graphbuild.store.graph import Graph
from graphbuild.store.locations import local_path
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.mixture import Sampler
from graphbuild.tasks.sampler import PathSampler

TASKS = pa.schema(
    [
        ("index", pa.int64()),
        ("path", pa.string()),
        ("walk", pa.string()),
        ("instruction", pa.string()),
        ("instruction_full", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("holes", pa.list_(pa.int32())),
        ("cells", pa.list_(pa.binary())),
    ]
)
"""One row per task. `walk` is its document as JSON; `instruction` the words in training, some left out by chance,
`instruction_full` all of them; `cells` are PNG files, row by row, holes filled with the truth; `holes` are columns of
the last row."""

_AT_ONCE = 16  # tasks in memory while a Parquet file is written
_CELLS = CellConfig()
_CONFIG = SamplerConfig()
_MOST_LETTERS = 60  # of a path's name in a file name, which holds 255 bytes: four for each

Indices = Sequence[int]
Tasks = Iterator[GridTask]


def open_sampler(
    graph: Graph, paths: str | None, *, seed: int = 0, path_repeat: int = 1, on_missing: str = "error",
    config: SamplerConfig = _CONFIG,
) -> PathSampler:  # fmt: skip
    """A sampler of the paths asked for, or of all in `graph200k` that the graph serves.

    Raises:
        GraphError: a path that was asked for cannot be served, or none can.
        ValueError: no such list, or a value that is not allowed.
    """
    missing: Any = "drop" if paths is None and on_missing == "error" else on_missing
    return PathSampler(
        graph, paths or "graph200k", seed=seed, path_repeat=path_repeat, on_missing=missing, config=config
    )


def write_tasks(
    sampler: Sampler,
    indices: Indices,
    resolution: int,
    out: Path,
    *,
    form: str = "png",
    cells: CellConfig = _CELLS,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Path]:
    """Write tasks into the folder `out`; yields the files as they are done.

    Args:
        resolution: side of a cell in pixels.
        form: `png`, a labelled picture of each and `walks.jsonl` with their ids. It replaces what an earlier call drew
            there, but keeps pictures of the same snapshot and settings; stopped, it lists what is drawn. `jsonl`, the
            ids alone: no picture is opened, but for label maps whose names are in the words. `parquet`,
            `tasks.parquet` with the columns of `TASKS`. `webdataset`, `tasks.tar` with KEY.json and KEY.cellRC.png for
            row R and column C.
        progress: called with the index of each task that is done.

    Raises:
        ValueError: no such form, or the resolution is out of range.
    """
    writer = writer_of(form)
    if len(indices):
        sampler.task(indices[0], resolution, cells=cells)  # is refused before there is a folder
    out = local_path(out)
    out.mkdir(parents=True, exist_ok=True)

    def tasks() -> Tasks:
        for index in indices:
            yield sampler.task(index, resolution, cells=cells)
            if progress is not None:
                progress(index)

    return writer(tasks(), out)


def writer_of(form: str) -> Callable[[Tasks, Path], Iterator[Path]]:
    """The writer of a task format: built in, an entry point of `graphbuild.task_exporters`, or `module:function`.

    Raises:
        ValueError: no such format.
    """
    found: Callable[[Tasks, Path], Iterator[Path]]
    found = _WRITERS.get(form) or find("task format", form, {}, "graphbuild.task_exporters", also=_WRITERS)
    return found


# ---- labelled pictures and ids ---------------------------------------------------------------------------------


def _pictures(tasks: Tasks, out: Path) -> Iterator[Path]:
    walks = out / "walks.jsonl"
    before, lines, names = _drawn(walks), list[str](), set[str]()
    try:
        for task in tasks:
            asked, picture = _settings(task), out / _name(task.walk.index, task.walk.path.name)
            if asked not in before or not picture.exists():
                image = task.image()
                with replacing(picture) as file:
                    walks.unlink(missing_ok=True)  # its pictures are being replaced
                    image.save(file, "PNG")
            lines.append(before[asked] if asked in before else task.document().model_dump_json())
            names.add(picture.name)
            yield picture
    finally:
        if lines:
            for index, path, *_ in before:
                if (name := _name(int(str(index)), str(path))) not in names:
                    (out / name).unlink(missing_ok=True)
            _written(walks, lines)
    yield walks


def _name(index: int, path: str) -> str:
    """A picture's file; a path may be called anything."""
    safe = re.sub(r"[^\w.+-]", "_", path)[:_MOST_LETTERS]
    return f"{index:07d}-{safe}.png"


def _lines(tasks: Tasks, out: Path) -> Iterator[Path]:
    yield _written(out / "walks.jsonl", (task.document().model_dump_json() for task in tasks))


def _written(walks: Path, lines: Iterable[str]) -> Path:
    with replacing(walks) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
    return walks


def _settings(task: GridTask) -> tuple[object, ...]:
    """Task and settings: what a picture depends on."""
    drawing, walk = task.drawing, task.walk
    switches = {**drawing.switches, **vars(task.cell_config)}
    drawn = (drawing.seed, drawing.path_repeat, drawing.graph.digest, drawing.paths.digest, task.resolution)
    return walk.index, walk.path.name, *drawn, canonical_json(switches)


def _drawn(walks: Path) -> dict[tuple[object, ...], str]:
    """Task and settings -> line of an existing walks file; a file of another release counts for nothing."""
    try:
        lines = walks.read_text().splitlines()
        found = [WalkDocument.model_validate_json(line) for line in lines]
    except (OSError, ValueError):
        return {}
    keys = [
        (d.index, d.path, d.seed, d.path_repeat, d.snapshot, d.paths_digest, d.resolution, canonical_json(d.switches))
        for d in found
    ]
    return dict(zip(keys, lines, strict=True))


# ---- pictures in one file --------------------------------------------------------------------------------------


def _parquet(tasks: Tasks, out: Path) -> Iterator[Path]:
    with (
        replacing(out / "tasks.parquet") as file,
        pq.ParquetWriter(file, TASKS, use_dictionary=False, write_statistics=["index"]) as writer,
    ):
        rows: list[dict[str, Any]] = []
        for task in tasks:
            rows.append(_row(task))
            if len(rows) == _AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, TASKS))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, TASKS))
    yield out / "tasks.parquet"


def _row(task: GridTask) -> dict[str, Any]:
    document, cells = task.document(), task.cells(filled=True)
    return {
        "index": document.index,
        "path": document.path,
        "walk": document.model_dump_json(),
        "instruction": document.instruction,
        "instruction_full": document.instruction_full,
        "rows": len(cells),
        "columns": len(cells[0]),
        "holes": document.holes,
        "cells": [_png(cell) for row in cells for cell in row],
    }


def _webdataset(tasks: Tasks, out: Path) -> Iterator[Path]:
    with replacing(out / "tasks.tar") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for task in tasks:
            for name, data in _members(task).items():
                member = tarfile.TarInfo(f"{task.walk.index:07d}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    yield out / "tasks.tar"


def _members(task: GridTask) -> Mapping[str, bytes]:
    cells = {
        f"cell{row}{column}.png": _png(cell)
        for row, shown in enumerate(task.cells(filled=True))
        for column, cell in enumerate(shown)
    }
    return {"json": task.document().model_dump_json().encode(), **cells}


def _png(cell: Pixels) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(cell).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


_WRITERS: Mapping[str, Callable[[Tasks, Path], Iterator[Path]]] = {
    "png": _pictures,
    "jsonl": _lines,
    "parquet": _parquet,
    "webdataset": _webdataset,
}
