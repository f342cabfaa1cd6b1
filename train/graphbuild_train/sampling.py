"""Generating with a finished LoRA: from your own pictures, the tasks of a graph, or a frozen list of walks."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image
from safetensors import SafetensorError

from graphbuild.config.strict_yaml import build
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig, Split
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.mixture import Sampler
from graphbuild.tasks.paths import OwnTask, PathSet, TaskPath, load_task, path_set
from graphbuild.tasks.pictures import Picture, PictureRows
from graphbuild.tasks.row_folder import read_rows
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Frozen
from graphbuild_train.bases import base_class, load_base
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig, config_from
from graphbuild_train.export.lora_file import read_diffusers
from graphbuild_train.objective import objective_of
from graphbuild_train.preflight import sampler_of
from graphbuild_train.task_list import lists_of

_SIDES: dict[str, Split | None] = {"validation": "validation", "train": "train", "all": None}
_SWITCHES = tuple(field.name for field in fields(SamplerConfig))
_HELD_OUT: dict[Split | None, Split | None] = {"train": "validation", "validation": "train", None: None}


# ---- what a file says of itself ----------------------------------------------------------------------------------


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


def tasks_in(lora: Path) -> list[PathSet]:
    """The task lists in a LoRA file's header, with the kinds that they declare, one for each graph that it was trained
    on; none in a file of an earlier version.

    Raises:
        GraphError: it is damaged.
    """
    try:
        return [
            path_set(said["name"], {name: value for name, value in said.items() if name != "name"})
            for said in read_diffusers(lora).recipe.get("tasks", [])
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GraphError(f"{lora}: tasks in its header: {error}") from error


# ---- one model, many pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A task with the pictures that were generated for its holes, left to right."""

    task: GridTask
    pictures: list[Image.Image]
    seed: int

    def strip(self) -> Image.Image:
        """All cells where they are shown, named, with the generated pictures in their places and the words below."""
        own = [self.task.frames[-1].cell(np.asarray(picture.convert("RGB"))) for picture in self.pictures]
        return self.task.sheet([self.task.evaluation.text or "(no words)"], own)


class LoraSampler:
    """A base with a LoRA, loaded once, that fills the holes of any number of grid tasks.

    Args:
        lora: a run's folder, one of its checkpoints, or a .safetensors in diffusers' form.
        config: by default the recipe in the file.
        tasks: task lists instead of those in the file.

    Attributes:
        tasks: the lists that it was trained on, in the layout of its objective.
        file: its weights.

    Raises:
        GraphError: the file has no recipe, or does not fit the base.
    """

    def __init__(self, lora: Path, config: TrainConfig | None = None, *, tasks: Sequence[PathSet] = ()) -> None:
        self.config = config or config_from(recipe_in(lora))
        layout = objective_of(self.config.objective).layout
        self.tasks = list(tasks or [listed.arranged(layout) for listed in tasks_in(lora)]) or lists_of(self.config)
        self.file = weights_file(lora)
        self._lora = lora

    @cached_property
    def base(self) -> Base:
        """The base with the LoRA; loaded when it is first wanted, so that a wrong task is refused before."""
        return loaded(self.config, self._lora)

    def make(self, task: GridTask, *, seed: int = 0, upscale: int = 0, strength: float = 0.4) -> Made:
        """Generate the holes of a task.

        Args:
            upscale: side of a square with the area of an enlarged picture, in pixels; 0 leaves pictures as they are.
                What is enlarged gets its details by SDEdit (arXiv 2108.01073): noised to a part, and denoised again.
            strength: that part, in (0, 1].

        Raises:
            ValueError: the base cannot make such a task, or cannot upscale.
        """
        base_class(self.config.base).check_upscale(upscale)
        options = self.base.sampling(self.config.watch)
        (pictures,) = self.base.sample([task], seed=seed, **options)
        if upscale:
            pictures = [self.base.upscaled(picture, task.caption, side=upscale, strength=strength, seed=seed, **options)
                        for picture in pictures]  # fmt: skip
        return Made(task, pictures, seed)

    # ---- tasks -------------------------------------------------------------------------------------------------

    def path(self, name: str | None = None) -> TaskPath:
        """A task of the list that the LoRA was trained on; without a name its only one.

        Raises:
            GraphError: there is no list, no such task, or several without a name.
        """
        paths = [path for listed in self.tasks for path in listed.paths]
        found = [path for path in paths if name in (None, path.name)]
        if len(found) != 1:
            names = ", ".join(path.name for path in paths[:6]) + (", ..." if paths[6:] else "")
            raise GraphError(
                f"{'which task' if name is None else f'no task {name!r}'}? The LoRA was trained on {names}"
            )
        return found[0]

    def path_of(self, kinds: Sequence[str]) -> TaskPath:
        """A task with these kinds as columns, own kinds of the LoRA's list among them; the last is its target.

        Raises:
            ValueError: an unknown kind, or one that is no picture.
        """
        own = {kind.name: kind for listed in self.tasks for path in listed.paths for kind in path.own}
        return PictureRows([[None] * len(kinds)], [own.get(kind, kind) for kind in kinds]).path

    def from_rows(
        self, rows: Sequence[Sequence[Picture | None]], path: TaskPath, *, holes: Sequence[str] = (), caption: str = "",
        seed: int = 0,
    ) -> GridTask:  # fmt: skip
        """A task of your own pictures.

        Args:
            rows: of pictures, one for each cell of `path`, the query last; None for those that are not there.
            holes: cells of the query row to be made, by default those without a picture, or else the targets.
            caption: what the target shows.
            seed: chooses among phrases.

        Raises:
            ValueError: pictures are missing, cannot be read, or do not fit.
        """
        arranged = path.arranged(objective_of(self.config.objective).layout)
        columns = columns_of(arranged, holes) if holes else None
        own = PictureRows(rows, arranged, caption=caption)
        return own.task(self.config.resolution, holes=columns, seed=seed, cells=self.config.cells)

    def from_folders(
        self, folders: Sequence[Path], wanted: OwnTask, *, holes: Sequence[str] = (), caption: str = "", seed: int = 0
    ) -> list[GridTask]:
        """The same of folders, see `graphbuild.tasks.row_folder`; without one, a task of words alone."""
        path, chosen = wanted.path, tuple(holes) or wanted.holes
        columns = columns_of(path, chosen) if chosen else None
        pictures: list[Any] = [read_rows(folder, path.cells, columns) for folder in folders]
        options: dict[str, Any] = {"holes": chosen, "caption": caption or wanted.caption, "seed": seed}
        return [self.from_rows(rows, path, **options) for rows in pictures or [[[None] * len(path.cells)]]]

    def from_graph(self, graph: str, *, count: int, seed: int = 0, split: str | None = None) -> Iterator[GridTask]:
        """The first tasks that a sampler draws.

        Args:
            split: the items that are drawn from: `validation`, `train` or `all`; by default those that were not trained
                on, or all if all were.

        Raises:
            GraphError: the graph serves no task.
            ValueError: another split.
        """
        if split is not None and split not in _SIDES:
            raise ValueError(f"split: {split!r}; allowed: {', '.join(_SIDES)}")
        side = _HELD_OUT[self.config.sampler.split] if split is None else _SIDES[split]
        try:
            sampler = self._sampler(Graph.open(graph), split=side, seed=seed)
        except GraphError as error:
            hint = "" if side is None else f"; --split all draws from all items, this is the {side} side"
            raise GraphError(f"{error}{hint}") from error
        return (sampler.task(index, self.config.resolution, cells=self.config.cells) for index in range(count))

    def from_walks(self, graph: str, file: Path) -> Iterator[GridTask]:
        """The tasks of a frozen list of walks (`PathSampler.frozen`), at the snapshot that it was drawn from.

        Raises:
            GraphError: the list was changed, or its snapshot is not there.
            ValueError: a walk's task is not in the LoRA's list.
        """
        frozen = Frozen.read(file)
        drawn = {name: frozen.header[name] for name in _SWITCHES if name in frozen.header}
        options: dict[str, Any] = {"seed": frozen.header["seed"], "path_repeat": frozen.header["path_repeat"]}
        pinned = Graph.open(graph, snapshot=frozen.header["snapshot"])
        config = build(SamplerConfig, drawn)
        listed = next((each for each in self.tasks if each.name == frozen.header["paths"]), self.tasks[0])
        sampler = PathSampler(pinned, listed, on_missing="drop", config=config, **options)
        walks = frozen.walks(listed)
        return (sampler.task(walk, self.config.resolution, cells=self.config.cells) for walk in walks)

    def _sampler(self, graph: Graph, *, split: Split | None, seed: int) -> PathSampler:
        """The tasks of a graph: with the list that it was trained with, where the recipe has several graphs."""
        if len(self.tasks) == 1:
            drawn: Sampler = sampler_of(replace(self.config, data=()), [graph], self.tasks, split=split, seed=seed)
            return drawn.parts[0]
        graphs = [Graph.open(entry.graph) for entry in self.config.data]
        drawn = sampler_of(self.config, graphs, self.tasks, split=split, seed=seed)
        for part in drawn.parts:
            if part.graph.digest == graph.digest:
                return part
        raise GraphError(f"{graph.url}: none of the recipe's data; for another graph: --set data=[] --set paths=LIST")


def weights_file(lora: Path) -> Path:
    """The file of a LoRA, or in a run's folder."""
    return lora / LORA_WEIGHT_NAME_SAFE if lora.is_dir() else lora


def columns_of(path: TaskPath, cells: Sequence[str]) -> tuple[int, ...]:
    """Positions of cells of a task.

    Raises:
        ValueError: one is no cell of it.
    """
    if wrong := [cell for cell in cells if cell not in path.cells]:
        raise ValueError(f"holes: {wrong[0]!r}; allowed: {', '.join(path.cells)}")
    return tuple(sorted(map(path.cells.index, cells)))


def loaded(config: TrainConfig, lora: Path) -> Base:
    """The base with the LoRA, loaded as any user of diffusers loads it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(
        config.base, config.model, objective_of(config.objective, config.shift), device=device,
        dtype=getattr(torch, config.dtype), revision=config.revision, hole_fill=config.cells.hole_fill,
        quantise=config.quantise, text=config.text,
    )  # fmt: skip
    file = weights_file(lora)
    try:
        if config.quantise == "none":
            base.pipe.load_lora_weights(file.parent, weight_name=file.name)
        else:  # the pipeline would look at the shapes of weights, which are packed
            bare: Any = base.bare
            bare.load_lora_adapter(str(file.parent), prefix=base.denoiser, weight_name=file.name)
    except (KeyError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())
        raise GraphError(f"{file}: does not fit base {config.base} {config.model or ''}: {words}") from error
    return base


# ---- what a command asks for -------------------------------------------------------------------------------------


def wanted(sampler: LoraSampler, task: Path | None, path: str | None, kinds: str) -> OwnTask:
    """The task of a file, of the LoRA's list, or of kinds; the LoRA's only task if none is named.

    Raises:
        GraphError, ValueError: it does not exist or cannot be, or several are named.
    """
    if sum((task is not None, path is not None, bool(kinds))) > 1:
        raise GraphError("say one of a task file, --path and --kinds")
    if task is not None:
        return load_task(task)
    if not kinds:
        return OwnTask(sampler.path(path))
    names = kinds.split(",")
    if len(names) < 2 and objective_of(sampler.config.objective).layout == "rows":
        raise GraphError(f"--kinds {kinds}: allowed: two or more, such as canny,image")
    return OwnTask(sampler.path_of(names))


def generated(
    sampler: LoraSampler, tasks: Iterable[GridTask], out: Path, *, seeds: Sequence[int], upscale: int, strength: float
) -> Iterator[Path]:
    """Generate tasks, each with all seeds, and write them; yields the pictures' files."""
    for number, task in enumerate(tasks):
        for seed in seeds:
            made = sampler.make(task, seed=seed, upscale=upscale, strength=strength)
            own = not isinstance(task.drawing.graph, Graph)
            at = number * len(seeds) + seeds.index(seed) if own else task.walk.index
            enlarged = {"upscale": upscale, "strength": strength} if upscale else {}
            yield from written(made, out, at, {**sampler.base.sampling(sampler.config.watch), **enlarged})


# ---- files -------------------------------------------------------------------------------------------------------


def written(made: Made, out: Path, number: int, options: dict[str, Any]) -> Iterator[Path]:
    """Write the pictures of a task, beside them what they were made from and, from a graph, the truth; yields the
    pictures' files."""
    out.mkdir(parents=True, exist_ok=True)
    task = made.task
    name = f"{number:07d}-{task.walk.path.name}"
    _write(out / f"{name}.json", json.dumps(_said(made, options), indent=1).encode())
    _write(out / f"{name}-strip.png", _png(made.strip()))
    for hole, picture in enumerate(made.pictures):
        if isinstance(task.drawing.graph, Graph):
            _write(out / f"{name}-{hole}-truth.png", _png(Image.fromarray(task.cell(-1, task.holes[hole]))))
        _write(file := out / f"{name}-{hole}.png", _png(picture))
        yield file


def _said(made: Made, options: dict[str, Any]) -> dict[str, Any]:
    """What a task's pictures were made from: its walk, the ids of its items, and the words."""
    task, graph = made.task, made.task.drawing.graph
    items = graph.items()["item_id"].take(task.walk.rows).to_pylist() if isinstance(graph, Graph) else []
    sampled = {"seed": made.seed, **options}
    return {**task.document().model_dump(), "items": items, "words": task.evaluation.text, "sampled": sampled}


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
