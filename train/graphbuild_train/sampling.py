"""Generating with a finished LoRA: from rows of one's own pictures, or from the tasks of a graph."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image
from rich.console import Console

from graphbuild.engine.run import run
from graphbuild.errors import GraphError
from graphbuild.kinds.registry import Kind
from graphbuild.sources.base import Entry, Source, SourceItem, location
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk
from graphbuild_train.bases import load_base
from graphbuild_train.bases.base import Base
from graphbuild_train.config import TrainConfig
from graphbuild_train.export.lora_file import read_diffusers
from graphbuild_train.objective import objective_of

OWN = "own"


def recipe_in(lora: Path) -> dict[str, Any]:
    """The recipe that a LoRA was trained by, from its file's header.

    Raises:
        GraphError: it was not trained here.
    """
    said = read_diffusers(lora).recipe
    known = {field.name: said[field.name] for field in fields(TrainConfig) if field.name in said}
    if not known:
        raise GraphError(f"{lora}: it does not say how it was trained; say it with --recipe")
    return known


def load(config: TrainConfig, lora: Path) -> Base:
    """The base with the LoRA in it, as any user of diffusers loads it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(
        config.base, config.checkpoint_model, objective_of(config.objective, config.shift), device=device,
        dtype=getattr(torch, config.dtype), revision=config.revision, hole_fill=config.cells.hole_fill,
    )  # fmt: skip
    file = lora / LORA_WEIGHT_NAME_SAFE if lora.is_dir() else lora
    base.pipe.load_lora_weights(file.parent, weight_name=file.name)
    return base


def from_graph(config: TrainConfig, lora: Path, graph: str, *, count: int, out: Path, seed: int) -> Iterator[Path]:
    """Make the holes of the first tasks that a sampler draws; yields each picture's file."""
    switches = replace(config.sampler, split=None)
    sampler = PathSampler(Graph.open(graph), config.paths, seed=seed, on_missing="drop", config=switches)
    yield from _made(config, lora, sampler, list(sampler.walks(0, count)), out=out, seed=seed)


def from_rows(
    config: TrainConfig, lora: Path, folder: Path, *, kinds: Sequence[str], caption: str, out: Path, seed: int
) -> Iterator[Path]:
    """Make the last picture of the last row of one's own pictures; yields its file.

    Args:
        folder: one folder a row, in the order of their names; the last one lacks the last picture.
        kinds: what the columns are; the words of the instruction follow from them.
        caption: what the missing picture shows; empty for none.

    Raises:
        GraphError: a row has another number of pictures, or a kind is unknown or named twice.
    """
    source = Rows(path=str(folder), kinds=tuple(kinds), caption=caption)
    content = Content(source="caption", of=kinds[-1]) if caption else None
    path = TaskPath(name=OWN, cells=tuple(kinds), targets=(len(kinds) - 1,), content=content)
    with tempfile.TemporaryDirectory() as temporary:
        graph = Path(temporary, "graph")
        texts = ["source_caption"] if caption else []
        run(source, texts, graph, executor="inline", console=Console(quiet=True))
        rows = len(source.entries())
        one = SamplerConfig(rows=(1.0,))  # rows are named, not drawn: they may look alike
        sampler = PathSampler(Graph.open(graph), PathSet(name=OWN, paths=(path,)), seed=seed, config=one)
        items, columns = list(range(rows)), range(len(kinds))
        walk = sampler.walk(0, path=OWN, items=items, hole=len(kinds) - 1, columns=columns)
        yield from _made(config, lora, sampler, [walk], out=out, seed=seed)


def _made(
    config: TrainConfig, lora: Path, sampler: PathSampler, walks: Sequence[Walk], *, out: Path, seed: int
) -> Iterator[Path]:
    base = load(config, lora)
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"steps": config.watch.sample_steps, "guidance": config.watch.sample_guidance}
    for walk in walks:
        task = sampler.task(walk, config.resolution, cells=config.cells)
        (pictures,) = base.sample([task], seed=seed, **options)
        for number, picture in enumerate(pictures):
            file = out / f"{walk.index:07d}-{walk.path.name}-{number}.png"
            picture.save(file)
            yield file


@dataclass(frozen=True, kw_only=True)
class Rows(Source):
    """One's own pictures: a folder a row, one picture a kind; what the last row lacks is a black picture."""

    name: ClassVar[str] = "rows"
    path: str = location()
    kinds: tuple[str, ...] = ()
    caption: str = ""

    @property
    def makes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The kinds that were named."""
        return self.kinds

    def codec(self, kind: Kind) -> str:
        return "source"

    def entries(self) -> list[Entry]:
        rows = sorted(path.name for path in Path(self.path).iterdir() if path.is_dir())
        if not rows:
            raise GraphError(f"{self.path}: no folders; allowed: one folder a row, such as rows/1, rows/2")
        if len(self.kinds) < 2:
            raise GraphError(f"--kinds {','.join(self.kinds)}: allowed: two or more")
        for row in rows:
            wanted = len(self.kinds) - (row == rows[-1])
            if len(found := self._files(row)) != wanted:
                raise GraphError(f"{Path(self.path, row)}: {len(found)} pictures; wanted: {wanted}")
        return [Entry(row, "") for row in rows]

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        for key in keys:
            pictures = [file.read_bytes() for file in self._files(key)]
            missing = [_black(pictures[0])] * (len(self.kinds) - len(pictures))
            nodes = dict(zip(self.kinds, [*pictures, *missing], strict=True))
            yield SourceItem(key=key, uri=key, original=pictures[0], nodes=nodes, group=key, caption=self.caption)

    def _files(self, row: str) -> list[Path]:
        return sorted(file for file in Path(self.path, row).iterdir() if file.is_file() and file.name[0] != ".")


def _black(picture: bytes) -> bytes:
    """A black PNG of the size of a picture."""
    with Image.open(io.BytesIO(picture)) as opened:
        size = opened.size
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()
