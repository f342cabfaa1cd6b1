"""Generating with a finished LoRA: from rows of your own pictures, or from the tasks of a graph."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image
from safetensors import SafetensorError

from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import Split
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.pictures import PictureRows
from graphbuild.tasks.sampler import PathSampler
from graphbuild_train.bases import load_base
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig
from graphbuild_train.export.lora_file import read_diffusers
from graphbuild_train.objective import objective_of
from graphbuild_train.preflight import lists_of, sampler_of

_SIDES: dict[str, Split | None] = {"validation": "validation", "train": "train", "all": None}
_HELD_OUT: dict[Split | None, Split | None] = {"train": "validation", "validation": "train", None: None}


def recipe_in(lora: Path, named: Collection[str] = ()) -> dict[str, Any]:
    """The recipe in a LoRA file's header. A file may come from anybody, so that no module that it names is imported.

    Args:
        named: fields that the user names instead.

    Raises:
        GraphError: the file has no recipe, or one with a base or objective by `module:name` that is not in `named`.
    """
    said = read_diffusers(lora).recipe
    known = {field.name: said[field.name] for field in fields(TrainConfig) if field.name in said}
    if not known:
        raise GraphError(f"{lora}: its header has no recipe; name one with --recipe")
    for field in ("base", "objective"):
        if ":" in str(known.get(field)) and field not in named:
            raise GraphError(
                f"{lora}: {field} {known[field]!r}; no code is loaded because a file names it, name it yourself: "
                f"--set {field}={known[field]}"
            )
    return known


def load(config: TrainConfig, lora: Path) -> Base:
    """The base with the LoRA, loaded as any user of diffusers loads it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(
        config.base, config.model, objective_of(config.objective, config.shift), device=device,
        dtype=getattr(torch, config.dtype), revision=config.revision, hole_fill=config.cells.hole_fill,
    )  # fmt: skip
    file = lora / LORA_WEIGHT_NAME_SAFE if lora.is_dir() else lora
    try:
        base.pipe.load_lora_weights(file.parent, weight_name=file.name)
    except (KeyError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())
        raise GraphError(f"{file}: does not fit base {config.base} {config.model or ''}: {words}") from error
    return base


def from_graph(
    config: TrainConfig, lora: Path, graph: str, *, count: int, out: Path, seed: int, split: str | None = None
) -> Iterator[Path]:
    """Generate the holes of the first tasks that a sampler draws; yields each picture's file.

    Args:
        split: the items that are drawn from: `validation`, `train` or `all`; by default those that were not trained
            on, or all if all were.

    Raises:
        GraphError: these items serve no path.
        ValueError: another split.
    """
    if split is not None and split not in _SIDES:
        raise ValueError(f"split: {split!r}; allowed: {', '.join(_SIDES)}")
    side = _HELD_OUT[config.sampler.split] if split is None else _SIDES[split]
    try:
        sampler = _sampler(config, Graph.open(graph), split=side, seed=seed)
    except GraphError as error:
        hint = "" if side is None else f"; --split all draws from all items, this is the {side} side"
        raise GraphError(f"{error}{hint}") from error
    tasks = (sampler.task(index, config.resolution, cells=config.cells) for index in range(count))
    yield from _made(config, lora, tasks, out=out, seed=seed)


def _sampler(config: TrainConfig, graph: Graph, *, split: Split | None, seed: int) -> PathSampler:
    """The tasks of a graph: with the list that it was trained with, where the recipe has several graphs."""
    graphs = [Graph.open(entry.graph) for entry in config.data] or [graph]
    drawn = sampler_of(config, graphs, lists_of(config), split=split, seed=seed)
    for part in drawn.parts:
        if part.graph.digest == graph.digest:
            return part
    raise GraphError(f"{graph.url}: none of the recipe's data; for another graph: --set data=[] --set paths=LIST")


def from_rows(
    config: TrainConfig, lora: Path, folder: Path, *, kinds: Sequence[str], caption: str, out: Path, seed: int
) -> Iterator[Path]:
    """Generate the last picture of the last row; yields its file.

    Args:
        folder: one folder per row; rows, and the pictures in each, are sorted by name, 2 before 10. The last row lacks
            its last picture.
        kinds: of the columns; the instruction is composed from them.
        caption: of the missing picture; empty for none.

    Raises:
        GraphError: a row has another number of pictures than there are kinds.
        ValueError: a picture cannot be read, or a kind is unknown.
    """
    rows = PictureRows(_pictures(folder, kinds), kinds, caption=caption)
    task = rows.task(config.resolution, seed=seed, cells=config.cells)
    yield from _made(config, lora, [task], out=out, seed=seed)


def _pictures(folder: Path, kinds: Sequence[str]) -> list[list[Path | None]]:
    """The files of each row, None for the one that is to be made."""
    if len(kinds) < 2:
        raise GraphError(f"--kinds {','.join(kinds)}: allowed: two or more, such as canny,image")
    folders = _in_order(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise GraphError(f"{folder}: no folders; allowed: one folder per row, such as rows/1, rows/2")
    rows: list[list[Path | None]] = []
    for row in folders:
        files = _in_order(path for path in row.iterdir() if path.is_file())
        wanted = len(kinds) - (row == folders[-1])
        if len(files) != wanted:
            raise GraphError(f"{row}: {len(files)} pictures; wanted: {wanted}")
        rows.append([*files, *[None] * (len(kinds) - wanted)])
    return rows


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers in it by value, without hidden ones."""
    shown = [path for path in paths if not path.name.startswith(".")]
    return sorted(shown, key=lambda path: [int(part) if part.isdigit() else part
                                           for part in re.split(r"([0-9]+)", path.name)])  # fmt: skip


def _made(config: TrainConfig, lora: Path, tasks: Iterable[GridTask], *, out: Path, seed: int) -> Iterator[Path]:
    base = load(config, lora)
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"steps": config.watch.sample_steps, "guidance": config.watch.sample_guidance}
    for task in tasks:
        (pictures,) = base.sample([task], seed=seed, **options)
        name = f"{task.walk.index:07d}-{task.walk.path.name}"
        _write(out / f"{name}.json", json.dumps(_said(task, config, seed), indent=1).encode())
        for number, picture in enumerate(pictures):
            if isinstance(task.drawing.graph, Graph):
                _write(out / f"{name}-{number}-truth.png", _png(Image.fromarray(task.cell(-1, task.holes[number]))))
            _write(file := out / f"{name}-{number}.png", _png(picture))
            yield file


def _said(task: GridTask, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What a task's pictures were made from: its walk, the ids of its items, and the words."""
    graph = task.drawing.graph
    items = graph.items()["item_id"].take(task.walk.rows).to_pylist() if isinstance(graph, Graph) else []
    options = {"seed": seed, "steps": config.watch.sample_steps, "guidance": config.watch.sample_guidance}
    return {**task.document().model_dump(), "items": items, "words": task.evaluation.text, "sampled": options}


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write(file: Path, data: bytes) -> None:
    """A file appears whole or not at all."""
    partial = file.with_name(f".{file.name}")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
