"""Grid tasks: a walk with its pictures and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import CellDocument, WalkDocument
from graphbuild.errors import MissingNode
from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.images.notebook import png_file
from graphbuild.kinds.registry import INSTRUCTIONS
from graphbuild.store.facts import facts_of
from graphbuild.store.graph import Graph
from graphbuild.tasks import tokens, visualcloze
from graphbuild.tasks.cells import FILLS, Frame, Size, frames
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.instruction import KEEP_ALL, Instruction, Keep, Layout, compose, legend, of_parts
from graphbuild.tasks.labels import LABELLED, Colour, colour_name, labels_of, recoloured
from graphbuild.tasks.paths import Places
from graphbuild.tasks.walk import Drawing, Walk

if TYPE_CHECKING:
    from PIL import Image

MAX_RESOLUTION = 8192
_CELLS = CellConfig()


class GridTask:
    """(C+1) x L cells, of which the holes of the last row are to be generated, and the instruction for them.

    Args:
        walk: the ids behind it.
        drawing: what it was drawn from and with.
        resolution: side of a square cell in pixels, 1..8192; other cells have about its area.
        cells: how cells are made.

    Attributes:
        holes: columns of the last row that are to be generated.
        kinds: what each column shows.

    Raises:
        ValueError: `resolution` is out of range.
    """

    def __init__(self, walk: Walk, drawing: Drawing, resolution: int = 384, *, cells: CellConfig = _CELLS) -> None:
        if not 0 < resolution <= MAX_RESOLUTION:
            gib = max(resolution, 0) ** 2 * 3 / 2**30
            raise ValueError(f"resolution: {resolution}: a cell takes {gib:.1f} GiB; allowed: 1..{MAX_RESOLUTION}")
        self.walk, self.drawing, self.resolution, self.cell_config = walk, drawing, resolution, cells
        self.holes = walk.holes
        self.kinds = tuple(map(walk.path.declared.__getitem__, walk.columns))
        self._nodes: dict[tuple[int, int], Node] = {}

    @property
    def rows(self) -> list[list[Node]]:
        """The nodes, row by row in shown order; the query row is last and holds its targets too."""
        return [[self.node(row, column) for column in range(len(self.kinds))] for row in range(len(self.walk.rows))]

    def node(self, row: int, column: int) -> Node:
        """The node behind one cell. Reads no other node, except the image if `degrade_at` needs it.

        Raises:
            MissingNode: it is not stored.
            CorruptNode: its stored bytes changed.
        """
        row %= len(self.walk.rows)
        if (row, column) not in self._nodes:
            if self.cell_config.degrade_at != "512" and self._is_degraded(column):
                node = self._degraded(row, column)
            else:
                kind, variant = self.kinds[column].name, self.walk.variants[row][column]
                node = self.drawing.graph.read(self.walk.rows[row], kind, variant, seed=self.walk.seeds[row])
            if self.walk.path.said == "tokens" and self.draws_colours(column):
                node = self._recoloured(node, row, column)
            self._nodes[row, column] = node
        return self._nodes[row, column]

    def _degraded(self, row: int, column: int) -> Node:
        """A degradation of the source, or of the cell."""
        from graphbuild.images import degradations

        kind, item_ix, seed = self.kinds[column].name, self.walk.rows[row], self.walk.seeds[row]
        image = self.drawing.graph.read(item_ix, "image").array()
        shown = image if self.cell_config.degrade_at == "source" else self.frames[row].cell(image)
        return Node.computed(item_ix, kind, degradations.apply(kind, shown, seed))

    def draws_colours(self, column: int) -> bool:
        """Whether the colours of this column are drawn for each task, and not those that are stored."""
        return self.kinds[column].codec in LABELLED and self.walk.path.said == "tokens"

    def _recoloured(self, node: Node, row: int, column: int) -> Node:
        """A label map or boxes in the colours drawn for the names in the query row, if it names something."""
        colours = self._colours(node, row, column)
        return recoloured(node, colours) if colours else node

    def _colours(self, node: Node, row: int, column: int) -> dict[str, Colour]:
        """The colours of the names in the query row; empty if it names nothing."""
        last, kind = len(self.walk.rows) - 1, self.kinds[column].name
        if row != last:
            node = self.drawing.graph.read(self.walk.rows[last], kind, self.walk.variants[last][column])
        names = [name for name, _ in labels_of(node)]
        return tokens.drawn_colours(names, column, self.drawing.pick(self.walk.index))

    def _is_degraded(self, column: int) -> bool:
        """Whether a degradation is computed for this column, and not stored."""
        kind = self.kinds[column]
        return kind.family == "degradation" and kind.is_computed and kind.name not in self.drawing.graph.head

    # ---- words -----------------------------------------------------------------------------------------------------

    @cached_property
    def instruction(self) -> Instruction:
        """The instruction in training, by parts, some left out by the configuration's `keep`; the content is the
        query row's caption, for paths that generate what it describes."""
        return self.words(self.drawing.config.layout, self.drawing.config.keep)

    @cached_property
    def instruction_full(self) -> Instruction:
        """`instruction` with nothing left out."""
        return self.words(self.drawing.config.layout, KEEP_ALL)

    @cached_property
    def evaluation(self) -> Instruction:
        """The words at inference: nothing left out, in the sentences of diffusers' pipeline."""
        return self.words("pipeline", KEEP_ALL)

    @property
    def prompt(self) -> str:
        """The text of `instruction`; it may be empty."""
        return self.instruction.text

    def words(self, layout: Layout, keep: Keep) -> Instruction:
        """The instruction with this layout sentence, each part kept with its chance. Only label maps and boxes that the
        query row shows are read."""
        if self.walk.path.said == "tokens":
            return of_parts(*self._tokens(), keep=keep, pick=self.drawing.pick(self.walk.index))
        content, content_at = self._content
        path = self.walk.path
        lines = self.places if path.layout == "canvas" else None
        return compose(
            self.kinds,
            self.walk.targets,
            rows=len(self.walk.rows),
            pick=self.drawing.pick(self.walk.index),
            content=content,
            content_at=content_at,
            instructs=bool(content) and self._instructs,
            notes=self._notes,
            layout=layout,
            keep=keep,
            words=path.said,
            shape=(len(lines), len(lines[0])) if lines else None,
        )

    @property
    def caption(self) -> str:
        """What the target of the query row shows; empty if nothing says so."""
        return self._content[0] or ""

    def _tokens(self) -> tuple[str, str]:
        """Task and captions in the words of `graphbuild.tasks.tokens`."""
        query, one_group = len(self.walk.rows) - 1, self.walk.path.views is not None
        places = enumerate(chain(*self.places))
        views = [self._view(number, *place) for number, place in places if one_group or place[0] == query]
        subject = self._facts(query).get("subject")
        path = self.walk.path
        return tokens.compose(views, type_name=path.type, item=str(subject or ""), token=path.token)

    def _view(self, number: int, row: int, column: int) -> tokens.View:
        kind = self.kinds[column]
        names = labels_of(self.node(row, column)) if kind.codec in LABELLED and row == len(self.walk.rows) - 1 else []
        known = [(name, rgb) for name, rgb in names if rgb in tokens.COLOURS.values()]
        return tokens.View(kind=kind, number=number, caption=self._caption(row, column), labels=known)

    def _caption(self, row: int, column: int) -> str:
        """What one picture shows, as far as the graph says it."""
        walk, graph, kind = self.walk, self.drawing.graph, self.kinds[column].name
        content, variant = walk.path.content, walk.variants[row][column]
        described = content is not None and walk.path.cells[walk.columns[column]] == content.of
        if described and row == len(walk.rows) - 1:
            return self._content[0] or ""
        source, number = (content.source, 0) if content is not None and described else (f"{kind}.caption", variant)
        if source in graph.head:
            try:
                return graph.read(walk.rows[row], source, number).text
            except MissingNode:
                return ""
        return str(self._facts(row).get("reference_caption") or "") if (kind, variant) == ("reference", 0) else ""

    def _facts(self, row: int) -> Mapping[str, Any]:
        graph = self.drawing.graph
        return facts_of(graph, self.walk.rows[row]) if isinstance(graph, Graph) else {}

    @cached_property
    def _content(self) -> tuple[str | None, int | None]:
        """The query row's caption and the column it describes, if that is a target."""
        walk, content = self.walk, self.walk.path.content
        if content is None or content.source not in self.drawing.graph.head:
            return None, None
        column = walk.columns.index(walk.path.cells.index(content.of))
        if column not in walk.targets:
            return None, None
        try:
            return self.drawing.graph.read(walk.rows[-1], content.source, walk.text_variant).text, column
        except MissingNode:
            return None, None

    @property
    def _instructs(self) -> bool:
        """Whether the content says what to do instead of what is to be seen."""
        content = self.walk.path.content
        return content is not None and content.source in INSTRUCTIONS

    @cached_property
    def _notes(self) -> list[str]:
        """Names and colours in each column of the query row; only kinds that can have them are read."""
        notes = [""] * len(self.kinds)
        for column, kind in enumerate(self.kinds):
            if kind.codec in LABELLED:
                labels = labels_of(self.node(-1, column))
                notes[column] = legend([(name, colour_name(rgb)) for name, rgb in labels])
        return notes

    # ---- cells -----------------------------------------------------------------------------------------------------

    @cached_property
    def places(self) -> Places:
        """What is shown where, line by line, as (row, column): the rows themselves, the lines of a canvas, on which a
        cell may come several times, or one line of views."""
        column = self.walk.columns.index
        lines = self.walk.path.places(len(self.walk.rows))
        if self.walk.path.layout in (None, "rows"):  # in shown order
            return lines
        return tuple(tuple((row, column(cell)) for row, cell in line) for line in lines)

    @property
    def hole_mask(self) -> NDArray[np.bool_]:
        """Rows x columns, true for a cell that is to be generated; such a cell is masked as a whole."""
        mask = np.zeros((len(self.walk.rows), len(self.kinds)), bool)
        mask[-1, list(self.holes)] = True
        return mask

    @cached_property
    def frames(self) -> list[Frame]:
        """How the pictures of each row become cells, and their size."""
        squares = len(self.holes) > 1
        return frames(len(self.walk.rows), self._lead, self.resolution, self.cell_config, squares=squares)

    def _lead(self, row: int) -> Size:
        """Size of the first given picture of a row, before a degradation that acts on the cell; a square if all are to
        be generated."""
        given = [column for column, hole in enumerate(self.hole_mask[row]) if not hole]
        if not given:
            return self.resolution, self.resolution
        if self.cell_config.degrade_at == "cell" and self._is_degraded(given[0]):
            picture = self.drawing.graph.read(self.walk.rows[row], "image").array()
        else:
            picture = self.node(row, given[0]).array()
        return picture.shape[1], picture.shape[0]

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
        width, height = self.frames[row].size
        place = np.empty((height, width, 3), np.uint8)
        self.frame(row, column).paint(self.node(row, column), place)
        return place

    def frame(self, row: int, column: int) -> Frame:
        """How the picture of one node becomes a cell."""
        frame = self.frames[row]
        if self.cell_config.degrade_at == "cell" and self._is_degraded(column):
            frame = replace(frame, keeps=True)  # a cell was degraded, so there is nothing to cut
        return frame

    def _empty(self, row: int) -> Pixels:
        width, height = self.frames[row].size
        return np.full((height, width, 3), FILLS[self.cell_config.hole_fill], np.uint8)

    # ---- other forms -------------------------------------------------------------------------------------------------

    def pipeline_kwargs(self) -> dict[str, Any]:
        """The arguments of diffusers' `VisualClozePipeline.__call__` that give these cells, holes black, at inference.

        Returns:
            `task_prompt`, `content_prompt` (None without content), and `image`: rows of RGB PIL pictures, cut to shape
            and not resized, None for holes. They are the words of `evaluation`.

        Raises:
            ValueError: the pipeline cannot make such cells.
        """
        from PIL import Image

        path = self.walk.path
        if path.layout not in (None, "rows") or path.said != "full":
            raise ValueError(
                f"path {path.name!r}: layout {path.layout or 'rows'}, words {path.said}; allowed for the pipeline: "
                "layout rows, words full"
            )
        columns = range(len(self.kinds))
        visualcloze.check(
            self.cell_config, self.resolution, columns=len(columns), holes=len(self.holes),
            degraded=any(map(self._is_degraded, columns)),
        )  # fmt: skip
        image = [
            [None if hole else Image.fromarray(self.frames[row].cut(self.node(row, column).array()))
             for column, hole in enumerate(holes)]
            for row, holes in enumerate(self.hole_mask)
        ]  # fmt: skip
        words, (content, column) = self.evaluation, self._content
        if content and (column != columns[-1] or self._instructs):  # the pipeline says "the last image depicts"
            return {"task_prompt": f"{words.task} {words.content}", "content_prompt": None, "image": image}
        return {"task_prompt": words.task, "content_prompt": content or None, "image": image}

    def image(self) -> Image.Image:
        """The task as a picture to look at: its cells where they are shown, kinds above, holes framed in red and shown
        filled, below them all words and which of them training leaves out."""
        kept, full = self.instruction, self.instruction_full
        if kept == full:
            note = "Training keeps all words."
        elif not kept.text:
            note = "Training leaves out all words."
        else:
            parts = [part for part in ("layout", "task", "content") if getattr(kept, part) != getattr(full, part)]
            note = f"Training leaves out: {', '.join(parts)}."
        return self.sheet([f"{self.walk.index}: {full.text}", f"({note})"])

    def _repr_png_(self) -> bytes:
        return png_file(self.image())

    def sheet(self, words: Sequence[str], made: Sequence[Pixels] | None = None) -> Image.Image:
        """All cells where they are shown, named, holes framed in red.

        Args:
            words: paragraphs below them.
            made: pictures for the holes, by default the truth.
        """
        from graphbuild.tasks import sheet

        cells, lines = self.cells(filled=made is None), self.places
        for column, picture in zip(self.holes, made or (), strict=made is not None):
            cells[-1][column] = picture
        return sheet.draw(
            [[cells[row][column] for row, column in line] for line in lines],
            [[self.kinds[column].name for _, column in line] for line in lines],
            {(y, x) for y, line in enumerate(lines) for x, place in enumerate(line) if self.hole_mask[place]},
            words,
            joined=self.walk.path.layout == "canvas",
        )

    def document(self) -> WalkDocument:
        """The walk as one JSON line, enough to find every cell again. No node is read but label maps and boxes that the
        words name."""
        walk, drawing = self.walk, self.drawing
        head = drawing.graph.head
        versions = [head[kind].version if kind in head else "" for kind in walk.kinds]
        cells = [
            [CellDocument(kind=kind, variant=variant, version=version)
             for kind, variant, version in zip(walk.kinds, variants, versions, strict=True)]
            for variants in walk.variants
        ]  # fmt: skip
        return WalkDocument(
            index=walk.index,
            seed=drawing.seed,
            path_repeat=drawing.path_repeat,
            snapshot=drawing.graph.digest,
            paths=drawing.paths.name,
            paths_digest=drawing.paths.digest,
            path=walk.path.name,
            type=walk.path.type,
            rows=list(walk.rows),
            seeds=list(walk.seeds),
            cells=cells,
            holes=list(walk.holes),
            resolution=self.resolution,
            switches={**drawing.switches, **asdict(self.cell_config)},
            instruction=self.prompt,
            instruction_full=self.instruction_full.text,
        )
