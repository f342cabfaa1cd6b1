"""Grid tasks from rows of pictures, without a graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from graphbuild.contracts import Live
from graphbuild.errors import MissingNode, UnusableImage
from graphbuild.hashing import checksum, digest_of
from graphbuild.images.codecs import Pixels, check_image
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS, Kind, kind_of
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.counter_rng import hash64
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.instruction import KEEP_ALL
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.walk import Drawing, Walk

Picture = Pixels | bytes | str | os.PathLike[str]
"""H x W x 3 RGB uint8, the bytes of an image file, or its name."""

_NAME = "pictures"
_CELLS = CellConfig()
_WORDS = SamplerConfig(keep=KEEP_ALL)


class PictureRows:
    """Rows of pictures to make a grid task from, in place of a graph.

    >>> rows = PictureRows([["a-canny.png", "a.jpg"], ["b-canny.png", None]], ["canny", "image"])  # doctest: +SKIP
    >>> rows.task(384).pipeline_kwargs()                                                          # doctest: +SKIP

    Args:
        rows: one picture per kind, the query row last. None, in the query row only, is a picture to be generated;
            where the truth is shown it is black.
        kinds: what the columns show, by name or declaration, a kind may come twice; or a path whose cells they are.
        caption: what the last picture to be generated shows, or what the content of the path is; empty for none.

    Raises:
        ValueError: a row has another number of pictures than there are kinds, a picture is missing or cannot be read,
            or a kind is unknown; the message names row and kind.
    """

    def __init__(
        self, rows: Sequence[Sequence[Picture | None]], kinds: Sequence[str | Kind] | TaskPath, *, caption: str = ""
    ) -> None:
        self.path = kinds if isinstance(kinds, TaskPath) else _path_of(kinds)
        self._given = isinstance(kinds, TaskPath)
        names, self.cells, self.own = self.path.kinds, self.path.cells, self.path.own
        self.variants = tuple(names[:at].count(name) for at, name in enumerate(names))
        self._text = self.path.content.source if self.path.content else "caption"
        self.excluded: dict[str, str] = {}
        self.caption, self.num_rows = caption, len(rows)
        if not rows:
            raise ValueError("rows: none; allowed: at least the query row")
        self.missing = tuple(column for column, picture in enumerate(rows[-1]) if picture is None)
        self._pixels: dict[tuple[int, str, int], Pixels] = {}
        for row, pictures in enumerate(rows):
            if len(pictures) != len(names):
                raise ValueError(f"row {row}: {len(pictures)} pictures; allowed: {len(names)} ({', '.join(names)})")
            for name, number, picture in zip(names, self.variants, pictures, strict=True):
                if picture is None and row < len(rows) - 1:
                    raise ValueError(f"row {row}, {name}: no picture; allowed: None in the last row only")
                self._pixels[row, name, number] = _pixels(picture, f"row {row}, {name}")
        self.digest = digest_of([caption, [(key, checksum(pixels.tobytes())) for key, pixels in self._pixels.items()]])
        live = Live(annotator=_NAME, version=f"v{self.digest[:12]}")
        self.head = dict.fromkeys([*names, *([self._text] if caption else [])], live)

    def read(self, item_ix: int, kind: str, variant: int = 0, version: str | None = None, *, seed: int = 0) -> Node:
        """One picture, or the caption of the query row; `item_ix` is its row.

        Raises:
            MissingNode: there is none.
        """
        if kind == self._text and self.caption:
            return Node(item_ix, kind, 0, "", self.caption.encode(), "text", "text")
        if (pixels := self._pixels.get((item_ix, kind, variant))) is None:
            raise MissingNode(f"row {item_ix} has no {kind} {variant}")
        node = Node.computed(item_ix, kind, pixels)
        node.variant = variant
        return node

    def task(
        self, resolution: int = 384, *, holes: Sequence[int] | None = None, seed: int = 0, cells: CellConfig = _CELLS
    ) -> GridTask:
        """The grid task of these rows; its instruction keeps all parts.

        Args:
            resolution: side of a cell in pixels.
            holes: columns of the query row to be generated, by default those that are None, or else the last.
            seed: chooses among the phrases of the instruction.
            cells: how cells are made.

        Raises:
            ValueError: a picture that is None is not among the holes, or a hole is no column.
        """
        columns = tuple(range(len(self.cells)))
        hidden = tuple(sorted({*(holes if holes is not None else self.missing or self.path.targets)}))
        if not hidden or not {*self.missing} <= {*hidden} <= {*columns}:
            raise ValueError(
                f"holes: {list(hidden)}; allowed: columns 0..{columns[-1]}, those without a picture "
                f"({list(self.missing)}) among them"
            )
        path = self.path if self._given else replace(self.path, targets=hidden)
        if self.caption and (path.content is None or path.content.of not in [path.cells[at] for at in path.targets]):
            path = replace(path, content=Content(source=self._text, of=path.cells[path.targets[-1]]))
        walk = Walk(
            index=0, path=path, rows=tuple(range(self.num_rows)), variants=(self.variants,) * self.num_rows,
            columns=columns, holes=hidden, seeds=(0,) * self.num_rows,
        )  # fmt: skip
        listed, key = PathSet(name=_NAME, paths=(path,)), hash64(f"{_NAME}:{seed}")
        return GridTask(walk, Drawing(self, listed, seed, 1, _WORDS, key), resolution, cells=cells)


def _path_of(kinds: Sequence[str | Kind]) -> TaskPath:
    """A path with these kinds as cells, the last its target."""
    names = [kind_of(kind).name for kind in kinds]
    numbers = [names[:at].count(name) for at, name in enumerate(names)]
    cells = tuple(f"{name}:{number + 1}" if number else name for name, number in zip(names, numbers, strict=True))
    own = tuple(kind for kind in dict.fromkeys(kinds) if isinstance(kind, Kind) and KINDS.get(kind.name) != kind)
    return TaskPath(name=_NAME, cells=cells, targets=(len(cells) - 1,), own=own)


def _pixels(picture: Picture | None, where: str) -> Pixels:
    if picture is None:
        return np.zeros((16, 16, 3), np.uint8)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"{where}: {picture.dtype} of shape {picture.shape}; allowed: H x W x 3 uint8")
        return picture
    try:
        return check_image(picture if isinstance(picture, bytes) else Path(picture).read_bytes())[1]
    except (OSError, UnusableImage) as error:
        name = "" if isinstance(picture, bytes) else f" {os.fspath(picture)}:"
        raise ValueError(f"{where}:{name} {error}") from error
