"""Grid tasks: a walk with its pictures and words, and the labelled picture people look at."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphbuild.codecs import Node, Pixels
from graphbuild.contracts import CellDocument, MissingNode, WalkDocument
from graphbuild.instruction import Instruction, compose
from graphbuild.kinds import kind_of
from graphbuild.walk import PathSampler, Walk

if TYPE_CHECKING:
    from PIL import Image

_MARGIN = 12
_LABEL = 22
_HOLE = (214, 39, 40)
_INK = (20, 20, 20)


class GridTask:
    """(C+1) x L cells, of which the holes of the last row are to be generated, and the instruction for them.

    Attributes:
        walk: the ids behind it.
        resolution: side of a cell in pixels.
    """

    def __init__(self, sampler: PathSampler, walk: Walk, resolution: int) -> None:
        self.sampler, self.walk, self.resolution = sampler, walk, resolution

    @property
    def holes(self) -> tuple[int, ...]:
        """Columns of the last row that are to be generated."""
        return self.walk.holes

    @cached_property
    def rows(self) -> list[list[Node]]:
        """The nodes, row by row in shown order; the query row is last and holds its targets too."""
        return [self._row(row) for row in range(len(self.walk.rows))]

    @cached_property
    def instruction(self) -> Instruction:
        """Its parts; the content is the query row's caption, for paths that generate what it describes."""
        kinds, targets = self.walk.kinds, self.walk.targets
        content, at = self._content()
        return compose(
            kinds,
            targets,
            rows=len(self.walk.rows),
            pick=self.sampler.pick(self.walk.index),
            content=content,
            content_at=at,
            layout=self.sampler.layout,
        )

    @property
    def prompt(self) -> str:
        return self.instruction.text

    def cell(self, row: int, column: int) -> Pixels:
        """One cell, resolution x resolution x 3 RGB uint8: the picture's centre square, resized."""
        return centre_square(self.rows[row][column].array(), self.resolution)

    def image(self) -> Image.Image:
        """The grid as a picture to look at: kinds above, holes framed in red and shown filled, words below."""
        from PIL import Image, ImageDraw, ImageFont

        side, step = self.resolution, self.resolution + _MARGIN
        num_rows, num_columns = len(self.rows), len(self.walk.kinds)
        font = ImageFont.load_default(size=15)
        lines = textwrap.wrap(f"{self.walk.index}: {self.prompt}", max(40, (num_columns * step) // 8))
        height = _LABEL + num_rows * step + 20 * len(lines) + _MARGIN
        sheet = Image.new("RGB", (num_columns * step + _MARGIN, height), "white")
        draw = ImageDraw.Draw(sheet)
        for column, kind in enumerate(self.walk.kinds):
            draw.text((_MARGIN + column * step, 3), kind, _INK, font)
            for row in range(num_rows):
                at = (_MARGIN + column * step, _LABEL + row * step)
                sheet.paste(Image.fromarray(self.cell(row, column)), at)
                if row == num_rows - 1 and column in self.holes:
                    draw.rectangle((at[0] - 4, at[1] - 4, at[0] + side + 3, at[1] + side + 3), outline=_HOLE, width=4)
        draw.multiline_text((_MARGIN, _LABEL + num_rows * step), "\n".join(lines), _INK, font)
        return sheet

    def document(self) -> WalkDocument:
        """The walk as one JSON line: enough to find every cell again."""
        cells = [[self._cell_document(node) for node in row] for row in self.rows]
        return WalkDocument(
            index=self.walk.index,
            seed=self.sampler.seed,
            group=self.sampler.group,
            snapshot=self.sampler.graph.digest,
            paths=self.sampler.listed.name,
            path=self.walk.path.name,
            type=self.walk.path.type,
            rows=list(self.walk.rows),
            seeds=list(self.walk.seeds),
            cells=cells,
            holes=list(self.holes),
            resolution=self.resolution,
            instruction=self.prompt,
        )

    def _row(self, row: int) -> list[Node]:
        return [self._node(row, kind) for kind in self.walk.kinds]

    def _node(self, row: int, kind: str) -> Node:
        graph, item_ix = self.sampler.graph, self.walk.rows[row]
        varied = not kind_of(kind).is_recipe and self.sampler.variants_of(kind) > 1
        return graph.read(item_ix, kind, self.walk.variants[row] if varied else 0, seed=self.walk.seeds[row])

    def _content(self) -> tuple[str | None, int | None]:
        content = self.walk.path.content
        if content is None or content.source not in self.sampler.graph.head:
            return None, None
        column = self.walk.columns.index(self.walk.path.cells.index(content.of))
        if column not in self.walk.targets:
            return None, None
        try:
            return self.sampler.graph.read(self.walk.rows[-1], content.source).text, column
        except MissingNode:
            return None, None

    def _cell_document(self, node: Node) -> CellDocument:
        return CellDocument(kind=node.kind, variant=node.variant, version=node.version)


def centre_square(picture: Pixels, side: int) -> Pixels:
    """The centre square of a picture, resized to side x side x 3 RGB uint8: by area when it shrinks."""
    import cv2

    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = picture[top : top + edge, left : left + edge]
    method = cv2.INTER_AREA if edge >= side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (side, side), interpolation=method), np.uint8)


def write_tasks(sampler: PathSampler, indices: Iterable[int], resolution: int, out: Path) -> Iterator[Path]:
    """A labelled PNG of each task in the folder `out`, then `walks.jsonl` with their ids; yields their paths. What an
    earlier call drew from the same snapshot and settings is not drawn again."""
    out.mkdir(parents=True, exist_ok=True)
    walks = out / "walks.jsonl"
    drawn = _drawn(walks)
    lines = []
    for index in indices:
        path = sampler.walk(index).path.name
        name = re.sub(r"[^\w.+-]", "_", path)  # a path may be called anything
        picture = out / f"{index:07d}-{name}.png"
        asked = (index, path, *_settings(sampler), resolution)
        if asked not in drawn or not picture.exists():
            task = sampler.task(index, resolution)
            task.image().save(picture)
            drawn[asked] = task.document().model_dump_json()
        lines.append(drawn[asked])
        yield picture
    walks.write_text("\n".join(lines) + "\n")
    yield walks


def _settings(sampler: PathSampler) -> tuple[object, ...]:
    return (sampler.seed, sampler.group, sampler.graph.digest, sampler.listed.name)


def _drawn(walks: Path) -> dict[tuple[object, ...], str]:
    """Task and settings -> line of an existing walks file; a file of another release counts for nothing."""
    try:
        lines = walks.read_text().splitlines()
        found = [WalkDocument.model_validate_json(line) for line in lines]
    except (OSError, ValueError):
        return {}
    keys = [(d.index, d.path, d.seed, d.group, d.snapshot, d.paths, d.resolution) for d in found]
    return dict(zip(keys, lines, strict=True))
