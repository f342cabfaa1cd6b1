"""How the cells of a task are arranged: rows on an axis of their own, one canvas, or a sequence of views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Layout = Literal["rows", "canvas", "views"]
"""`rows`: each row is one strip of cells, rows lie behind each other (VisualCloze). `canvas`: one picture, of which the
holes are a part (ONE-PIC). `views`: a sequence of pictures, what is made first (OneDiffusion)."""

Order = Literal["shuffled", "fixed"]
"""Whether all columns but the last are shuffled from walk to walk."""

Words = Literal["full", "content", "tokens"]
"""`full`: layout, task and content (VisualCloze). `content`: what the picture to be made shows, and nothing else
(ONE-PIC). `tokens`: `[[task]]`, colours of classes and captions (OneDiffusion)."""

Place = tuple[int, int]
"""Row of the task and column, counted from 0."""

Places = tuple[tuple[Place, ...], ...]
"""What a grid shows where: one tuple for each of its lines."""

USUAL_ORDER: dict[Layout, Order] = {"rows": "shuffled", "canvas": "fixed", "views": "fixed"}
USUAL_WORDS: dict[Layout, Words] = {"rows": "full", "canvas": "content", "views": "tokens"}


def places(
    layout: Layout, num_rows: int, num_columns: int, targets: Sequence[int], canvas: Sequence[Sequence[int]] = ()
) -> Places:
    """Where the cells of a task are shown.

    Args:
        targets: columns that come first among the views.
        canvas: columns of one row's part of the canvas, line by line; by default one line of all. Parts of several rows
            lie below each other.
    """
    columns = range(num_columns)
    if layout == "views":
        query = [*targets, *(column for column in columns if column not in targets)]
        others = [(row, column) for row in range(num_rows - 1) for column in columns]
        return ((*((num_rows - 1, column) for column in query), *others),)
    part = canvas or [columns]
    return tuple(tuple((row, column) for column in line) for row in range(num_rows) for line in part)
