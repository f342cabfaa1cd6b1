"""Grid tasks: a walk with its pictures and words, and the labelled picture people look at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import CellDocument, WalkDocument
from graphbuild.errors import MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.tasks import layouts
from graphbuild.tasks.cells import DIVISOR, Frame, Size
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.instruction import KEEP_ALL, Instruction, Keep, Layout, compose, legend, phrase_of
from graphbuild.tasks.layouts import Box, Canvas, CanvasLayout, View
from graphbuild.tasks.walk import Drawing, Walk

if TYPE_CHECKING:
    from PIL import Image

_MARGIN = 12
_LABEL = 28
_HOLE = (214, 39, 40)
_INK = (20, 20, 20)
_CELLS = CellConfig()

Colour = tuple[int, int, int]
COLOURS: Mapping[str, Colour] = {
    "black": (0, 0, 0),
    "dark grey": (80, 80, 80),
    "grey": (128, 128, 128),
    "light grey": (200, 200, 200),
    "white": (255, 255, 255),
    "maroon": (128, 0, 0),
    "red": (230, 20, 20),
    "pink": (255, 160, 190),
    "brown": (130, 75, 35),
    "orange": (255, 140, 0),
    "beige": (235, 215, 175),
    "yellow": (255, 230, 20),
    "olive": (128, 128, 0),
    "green": (30, 160, 40),
    "lime": (60, 255, 30),
    "teal": (0, 128, 128),
    "cyan": (0, 230, 255),
    "navy": (0, 0, 128),
    "blue": (20, 60, 240),
    "purple": (130, 20, 150),
    "magenta": (255, 0, 230),
    "lavender": (190, 170, 240),
}
"""Names of colours in an instruction."""


class GridTask:
    """(C+1) x L cells, of which the holes of the last row are to be generated, and the instruction for them.

    Args:
        walk: the ids behind it.
        drawing: what it was drawn from and with.
        resolution: side of a square cell in pixels; other cells have about its area.
        cells: how cells are made.
    """

    def __init__(self, walk: Walk, drawing: Drawing, resolution: int, *, cells: CellConfig = _CELLS) -> None:
        self.walk, self.drawing, self.resolution, self.cell_config = walk, drawing, resolution, cells
        self._kinds = walk.kinds
        self._declared = [walk.path.declared(kind) for kind in walk.kinds]
        self._nodes: dict[tuple[int, int], Node] = {}

    @property
    def holes(self) -> tuple[int, ...]:
        """Columns of the last row that are to be generated."""
        return self.walk.holes

    @cached_property
    def rows(self) -> list[list[Node]]:
        """The nodes, row by row in shown order; the query row is last and holds its targets too."""
        columns = range(len(self.walk.columns))
        return [[self.node(row, column) for column in columns] for row in range(len(self.walk.rows))]

    def node(self, row: int, column: int) -> Node:
        """The node behind one cell; no other is read."""
        row %= len(self.walk.rows)
        if (row, column) not in self._nodes:
            self._nodes[row, column] = self._node(row, column)
        return self._nodes[row, column]

    # ---- words -----------------------------------------------------------------------------------------------------

    @cached_property
    def instruction(self) -> Instruction:
        """Its parts as the trainer sees them, some left out by the configuration's `keep`; the content is the
        query row's caption, for paths that generate what it describes."""
        return self.words(self.drawing.config.layout, self.drawing.config.keep)

    @cached_property
    def evaluation(self) -> Instruction:
        """The words at inference: nothing left out, in the sentences of diffusers' pipeline."""
        return self.words("pipeline", KEEP_ALL)

    @property
    def prompt(self) -> str:
        """The text of `instruction`; it may be empty."""
        return self.instruction.text

    # ---- cells -----------------------------------------------------------------------------------------------------

    @property
    def hole_mask(self) -> NDArray[np.bool_]:
        """Rows x columns, true for a cell that is to be generated; such a cell is masked as a whole."""
        mask = np.zeros((len(self.walk.rows), len(self._kinds)), bool)
        mask[-1, list(self.holes)] = True
        return mask

    def cells(self, *, filled: bool = False) -> list[list[Pixels]]:
        """The grid as a model gets it: rows of height x width x 3 RGB uint8, all cells of a row of one size.

        Args:
            filled: show the truth in the holes; otherwise they hold `hole_fill`: 0, or 128 for grey.
        """
        hidden = self.hole_mask & (not filled)
        return [
            [self._empty(row) if hole else self.cell(row, column) for column, hole in enumerate(holes)]
            for row, holes in enumerate(hidden)
        ]

    def cell(self, row: int, column: int) -> Pixels:
        """One cell, the truth if it is a hole: height x width x 3 RGB uint8."""
        width, height = self._frames[row].size
        place = np.empty((height, width, 3), np.uint8)
        self.paint(row, column, place)
        return place

    @cached_property
    def boxes(self) -> list[list[Box]]:
        """Where each cell lies on a sheet: rows below each other, the cells of a row side by side."""
        return layouts.boxes([frame.size for frame in self._frames], len(self._kinds))

    def paint(self, row: int, column: int, place: Pixels) -> None:
        """Put one cell, the truth if it is a hole, into `place`, height x width x 3 uint8."""
        frame = self._frames[row]
        if self.cell_config.degrade_at == "cell" and self._degraded(column):
            frame = replace(frame, keeps=True)  # a cell was degraded, so there is nothing to cut
        frame.paint(self.node(row, column), place)

    def pipeline_kwargs(self) -> dict[str, Any]:
        """The arguments of diffusers' `VisualClozePipeline.__call__` that give these cells, holes black, at inference.

        Returns:
            `task_prompt`, `content_prompt` (None without content), and `image`: rows of RGB PIL pictures, cut to shape
            and not resized, None for holes. They are the words of `evaluation`.

        Raises:
            ValueError: the pipeline cannot make such cells.
        """
        self._check_for_pipeline()
        words = self.evaluation
        image = [
            [None if hole else _pil(frame.cut(node.array())) for node, hole in zip(nodes, holes, strict=True)]
            for frame, nodes, holes in zip(self._frames, self.rows, self.hole_mask, strict=True)
        ]
        content, column = self._content
        if content and column != len(self._kinds) - 1:  # the pipeline would say that it describes the last image
            return {"task_prompt": f"{words.task} {words.content}", "content_prompt": None, "image": image}
        return {"task_prompt": words.task, "content_prompt": content or None, "image": image}

    def canvas(self, layout: CanvasLayout = "2x2") -> Canvas:
        """One picture with the hole in a fixed place, bottom right or (`1x3`) in the middle, and its mask: ONE-PIC.

        Raises:
            ValueError: no such layout, not exactly one hole, or more or fewer pictures than it holds.
        """
        if len(self.holes) != 1:
            raise ValueError(f"a canvas has one target; this task has holes {list(self.holes)}")
        return layouts.canvas(self.cells(filled=True), self.holes[0], layout)

    def views(self) -> list[View]:
        """The query row as views, the described picture first, task tokens before its caption: OneDiffusion.

        Context rows have no place in it. Captions joined by spaces are the prompt.
        """
        order = layouts.view_order(self._declared, self.walk.targets)
        tokens = layouts.task_tokens([self._declared[column] for column in order])
        captions = [f"[[img{at}]] {self._view_words(column)}" for at, column in enumerate(order)]
        captions[0] = f"{tokens} {captions[0]}"
        return [
            View(self.cell(-1, column), "generate" if column in self.holes else "given", caption)
            for column, caption in zip(order, captions, strict=True)
        ]

    def words(self, layout: Layout, keep: Keep) -> Instruction:
        """The instruction with this layout sentence, each part kept with its chance."""
        content, at = self._content
        return compose(
            self._declared,
            self.walk.targets,
            rows=len(self.walk.rows),
            pick=self.drawing.pick(self.walk.index),
            content=content,
            content_at=at,
            notes=[legend([(name, colour_name(rgb)) for name, rgb in labels]) for labels in self._labels],
            layout=layout,
            keep=keep,
        )

    def image(self) -> Image.Image:
        """The grid as a picture to look at: kinds above, holes framed in red and shown filled, all words below."""
        from PIL import Image, ImageDraw, ImageFont

        cells = self.cells(filled=True)
        across = max(row[0].shape[1] for row in cells) + _MARGIN
        down = max(row[0].shape[0] for row in cells) + _MARGIN
        num_rows, num_columns = len(cells), len(self._kinds)
        font = ImageFont.load_default(size=15)
        words = self.words(self.drawing.config.layout, KEEP_ALL).text
        lines = textwrap.wrap(f"{self.walk.index}: {words}", max(40, (num_columns * across) // 8))
        height = _LABEL + num_rows * down + 20 * len(lines) + _MARGIN
        width = max(num_columns * across, _MARGIN + round(max(map(font.getlength, lines)))) + _MARGIN
        sheet = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(sheet)
        for column, kind in enumerate(self._kinds):
            draw.text((_MARGIN + column * across, 3), kind, _INK, font)
            for row in range(num_rows):
                at = (_MARGIN + column * across, _LABEL + row * down)
                sheet.paste(cell := _pil(cells[row][column]), at)
                if row == num_rows - 1 and column in self.holes:
                    right, bottom = at[0] + cell.width, at[1] + cell.height
                    draw.rectangle((at[0] - 4, at[1] - 4, right + 3, bottom + 3), outline=_HOLE, width=4)
        draw.multiline_text((_MARGIN, _LABEL + num_rows * down), "\n".join(lines), _INK, font)
        return sheet

    def document(self) -> WalkDocument:
        """The walk as one JSON line: enough to find every cell again."""
        cells = [[self._cell_document(node) for node in row] for row in self.rows]
        return WalkDocument(
            index=self.walk.index,
            seed=self.drawing.seed,
            group=self.drawing.group,
            snapshot=self.drawing.graph.digest,
            paths=self.drawing.paths.name,
            paths_digest=self.drawing.paths.digest,
            path=self.walk.path.name,
            type=self.walk.path.type,
            rows=list(self.walk.rows),
            seeds=list(self.walk.seeds),
            cells=cells,
            holes=list(self.holes),
            resolution=self.resolution,
            switches={**self.drawing.config.changed(), **asdict(self.cell_config)},
            instruction=self.prompt,
        )

    @cached_property
    def _frames(self) -> list[Frame]:
        squares = len(self.holes) > 1
        return layouts.frames(len(self.walk.rows), self._lead, self.resolution, self.cell_config, squares=squares)

    def _lead(self, row: int) -> Size:
        """Size of the first given picture of a row, before a degradation that acts on the cell; a square if all are to
        be generated."""
        given = [column for column, hole in enumerate(self.hole_mask[row]) if not hole]
        if not given:
            return self.resolution, self.resolution
        of_cell = self.cell_config.degrade_at == "cell" and self._degraded(given[0])
        height, width = (self._image(row) if of_cell else self.node(row, given[0]).array()).shape[:2]
        return width, height

    def _empty(self, row: int) -> Pixels:
        width, height = self._frames[row].size
        return np.full((height, width, 3), layouts.FILLS[self.cell_config.hole_fill], np.uint8)

    def _check_for_pipeline(self) -> None:
        squares = self.cell_config.cell_fit != "aspect" or len(self.holes) > 1
        all_holes = len(self.holes) == len(self._kinds)
        if (squares or all_holes) and self.resolution % DIVISOR:
            raise ValueError(f"resolution: {self.resolution}; allowed for the pipeline: multiples of {DIVISOR}")
        if self.cell_config.decode != "exact":
            raise ValueError(f"decode: {self.cell_config.decode!r}; allowed for the pipeline: exact")
        if not squares and self.cell_config.degrade_at == "cell" and any(map(self._degraded, range(len(self._kinds)))):
            raise ValueError("degrade_at: 'cell'; allowed for the pipeline with cells that are no squares: 512, source")
        if all_holes and len(self.holes) > 1:
            raise ValueError("every picture of the query row is a hole; the pipeline needs one that is given")

    def _node(self, row: int, column: int) -> Node:
        item_ix, kind, seed = self.walk.rows[row], self._kinds[column], self.walk.seeds[row]
        if self.cell_config.degrade_at == "512" or not self._degraded(column):
            return self.drawing.graph.read(item_ix, kind, self.walk.variants[row][column], seed=seed)
        from graphbuild.images import degradations

        image = self._image(row)
        shown = image if self.cell_config.degrade_at == "source" else self._frames[row].cell(image)
        return Node.computed(item_ix, kind, degradations.apply(kind, shown, seed))

    def _image(self, row: int) -> Pixels:
        """What is degraded in a row."""
        return self.drawing.graph.read(self.walk.rows[row], "image").array()

    def _degraded(self, column: int) -> bool:
        """Whether a degradation is computed for this column, and not stored."""
        kind = self._declared[column]
        return kind.group == "degradation" and kind.is_computed and kind.name not in self.drawing.graph.head

    @cached_property
    def _labels(self) -> list[list[tuple[str, Colour]]]:
        """Names and colours in the query row, one list a column; only kinds that can have them are read."""
        named = [kind.codec in ("labels", "boxes") for kind in self._declared]
        last = len(self.walk.rows) - 1
        return [labels_of(self.node(last, column)) if can else [] for column, can in enumerate(named)]

    def _view_words(self, column: int) -> str:
        content, at = self._content
        if content and at == column:
            return content
        phrase = phrase_of(self._declared[column], column, self.drawing.pick(self.walk.index))
        tags = [f"<#{bytes(rgb).hex()} {colour_name(rgb)} mask: {name}>" for name, rgb in self._labels[column]]
        return " ".join([phrase, *tags])

    @cached_property
    def _content(self) -> tuple[str | None, int | None]:
        """The query row's caption and the column it describes, if that is a target."""
        content = self.walk.path.content
        if content is None or content.source not in self.drawing.graph.head:
            return None, None
        column = self.walk.columns.index(self.walk.path.cells.index(content.of))
        if column not in self.walk.targets:
            return None, None
        try:
            return self.drawing.graph.read(self.walk.rows[-1], content.source, self.walk.text_variant).text, column
        except MissingNode:
            return None, None

    def _cell_document(self, node: Node) -> CellDocument:
        return CellDocument(kind=node.kind, variant=node.variant, version=node.version)


def labels_of(node: Node) -> list[tuple[str, Colour]]:
    """Names and RGB colours of what a node shows, largest area first for label maps; empty if it names nothing.

    A label map has attrs `labels` (a name for each label, "" for none) and `palette`; boxes have both themselves.
    """
    if node.codec == "labels":
        return _map_labels(node.values(), node.attrs)
    if node.codec == "boxes":
        found = [(each["label"], _rgb(each["colour"])) for each in node.values()["boxes"]]
        return list(dict.fromkeys(found))
    return []


def colour_name(rgb: Sequence[int]) -> str:
    """The name in `COLOURS` nearest to an RGB colour of 0..255, green counting most and blue least, as to the eye."""
    weights = (2, 4, 3)

    def distance(name: str) -> int:
        return sum(w * (int(a) - b) ** 2 for w, a, b in zip(weights, rgb, COLOURS[name], strict=True))

    return min(COLOURS, key=distance)


def _map_labels(values: NDArray[np.uint8], attrs: Mapping[str, Any]) -> list[tuple[str, Colour]]:
    names, palette = attrs.get("labels") or [], attrs.get("palette") or []
    areas = np.bincount(values.ravel(), minlength=1)
    shown = [int(label) for label in np.argsort(-areas, kind="stable") if areas[label]]
    known = [label for label in shown if label < min(len(names), len(palette))]
    named = [label for label in known if names[label] not in ("", None, "background")]
    return [(str(names[label]), _rgb(palette[label])) for label in named]


def _rgb(colour: Sequence[int]) -> Colour:
    red, green, blue = colour
    return int(red), int(green), int(blue)


def _pil(picture: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(picture)
