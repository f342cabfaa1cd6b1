"""A grid task in other forms: one canvas for ONE-PIC, views for OneDiffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import Kind, kind_of

CanvasLayout = Literal["2x2", "1x3", "1x2", "2x1"]

CANVASES: Mapping[CanvasLayout, tuple[int, int, int]] = {
    "2x2": (2, 2, 3),
    "1x3": (1, 3, 1),
    "1x2": (1, 2, 1),
    "2x1": (2, 1, 1),
}
"""Layout -> rows, columns, and the slot of the target in reading order."""


# ---- one canvas: ONE-PIC -----------------------------------------------------------------------------------------


class Canvas(NamedTuple):
    """`pixels`: H x W x 3 RGB uint8, the target shown. `mask`: H x W bool, true where it is to be generated."""

    pixels: Pixels
    mask: NDArray[np.bool_]


def canvas(cells: Sequence[Sequence[Pixels]], hole: int, layout: CanvasLayout) -> Canvas:
    """One picture of the query row, after as many context rows as the layout has room for.

    Args:
        cells: rows of pictures of one size, the query row last, its hole shown.
        hole: its column. It comes last in its row, in context rows too, but for `1x3`, where it is in the middle.

    Raises:
        ValueError: no such layout, or the task does not fill it.
    """
    if layout not in CANVASES:
        raise ValueError(f"layout: {layout!r}; allowed: {', '.join(CANVASES)}")
    down, across, slot = CANVASES[layout]
    columns = [column for column in range(len(cells[-1])) if column != hole]
    taken, rest = divmod(down * across, len(cells[-1]))
    if rest or not 0 < taken <= len(cells):
        raise ValueError(
            f"layout: {layout!r} holds {down * across} pictures; {len(cells)} rows of {len(cells[-1])} do not fill it"
        )
    pictures = [row[column] for row in cells[len(cells) - taken :] for column in (*columns, hole)]
    pictures.insert(slot, pictures.pop())
    return _tiled(pictures, across, slot)


def _tiled(pictures: Sequence[Pixels], across: int, slot: int) -> Canvas:
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("cells differ in size; a canvas needs row_sizes='shared' or squares")
    masks = [np.full(picture.shape[:2], at == slot) for at, picture in enumerate(pictures)]
    starts = range(0, len(pictures), across)
    pixels = np.vstack([np.hstack(pictures[start : start + across]) for start in starts])
    return Canvas(pixels, np.vstack([np.hstack(masks[start : start + across]) for start in starts]))


# ---- views: OneDiffusion -----------------------------------------------------------------------------------------


class View(NamedTuple):
    """`pixels`: H x W x 3 RGB uint8, the truth. `role`: whether it is a condition or to be made. `caption`: its words,
    task tokens before those of view 0; joined by spaces, captions are the prompt."""

    pixels: Pixels
    role: Literal["given", "generate"]
    caption: str


_TOKENS = {
    "canny": "canny2image",
    "hed": "hed2img",
    "depth": "depth2image",
    "pose": "pose2image",
    "semantic": "semanticmap2image",
    "segments": "semanticmap2image",
    "mask": "semanticmap2image",
    "boxes": "boundingbox2image",
    "reference": "subject_driven",
    "inpainting": "image_inpainting",
}
_GROUP_TOKENS = {
    "image": "image_editing",
    "edit": "image_editing",
    "style": "image_editing",
    "degradation": "deblurring",
}


def view_order(kinds: Sequence[str | Kind], targets: Sequence[int]) -> list[int]:
    """Columns in the order of views: first the picture that the others describe, wherever the hole is."""
    pictures = [column for column in targets if kind_of(kinds[column]).group in ("image", "style", "edit")]
    images = [column for column, kind in enumerate(kinds) if kind_of(kind).name == "image"]
    first = [*pictures, *images, *targets][0]
    return [first, *(column for column in range(len(kinds)) if column != first)]


def task_tokens(kinds: Sequence[str | Kind]) -> str:
    """The task tokens of views of these kinds, in their order and each once: "[[canny2image]]".

    A kind OneDiffusion has no token for gets one on the pattern of its others, such as `[[normal2image]]`.
    """
    names = [_token(kind_of(kind)) for kind in kinds[1:]] or ["text2image"]
    return " ".join(f"[[{name}]]" for name in dict.fromkeys(names))


def _token(kind: Kind) -> str:
    name = kind.name.rpartition(".")[2]
    return _TOKENS.get(name) or _GROUP_TOKENS.get(kind.group) or f"{name}2image"
