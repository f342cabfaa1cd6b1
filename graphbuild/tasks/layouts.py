"""How the cells of a task are sized and put together: rows for VisualCloze, one canvas for ONE-PIC, views for
OneDiffusion; and the one place where bugs of diffusers' VisualCloze pipeline are worked around."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.tasks.cells import Frame, Size, fit_size, part_like, square_part, whole_part
from graphbuild.tasks.config import CellConfig, HoleFill

if TYPE_CHECKING:
    from PIL import Image

CanvasLayout = Literal["2x2", "1x3", "1x2", "2x1"]

FILLS: Mapping[HoleFill, int] = {"black": 0, "grey": 128}
CANVASES: Mapping[CanvasLayout, tuple[int, int, int]] = {
    "2x2": (2, 2, 3),
    "1x3": (1, 3, 1),
    "1x2": (1, 2, 1),
    "2x1": (2, 1, 1),
}
"""Layout -> rows, columns, and the slot of the target in reading order."""


# ---- rows: VisualCloze -------------------------------------------------------------------------------------------


def frames(
    num_rows: int, lead: Callable[[int], Size], resolution: int, cells: CellConfig, *, squares: bool
) -> list[Frame]:
    """The frame of each row, the query row last.

    Args:
        lead: size of the first given picture of a row; asked only where it matters, as it has to be decoded.
        resolution: side of a square cell; an `aspect` cell has about the same area.
        squares: whether `aspect` has to give way to squares.
    """
    frame = partial(Frame, fast=cells.decode == "fast")
    side = (resolution, resolution)
    if cells.cell_fit == "stretch_square":
        return [frame(side, None)] * num_rows
    if cells.cell_fit == "crop_square" or squares:
        return [frame(side, square_part)] * num_rows
    if cells.row_sizes == "own":
        return [frame(fit_size(lead(row), resolution), whole_part) for row in range(num_rows)]
    shape = lead(num_rows - 1)
    shared = fit_size(shape, resolution)
    alike = partial(part_like, shape=shape, resolution=resolution)
    return [frame(shared, alike, keeps=False)] * (num_rows - 1) + [frame(shared, whole_part)]


class Box(NamedTuple):
    """Where a cell lies on a sheet, in pixels."""

    top: int
    left: int
    height: int
    width: int


def boxes(sizes: Sequence[Size], num_columns: int) -> list[list[Box]]:
    """A box a cell: rows of these cell sizes below each other, the cells of a row side by side."""
    tops = accumulate((height for _, height in sizes), initial=0)
    return [
        [Box(top, column * width, height, width) for column in range(num_columns)]
        for top, (width, height) in zip(tops, sizes, strict=False)
    ]


# ---- diffusers' VisualCloze pipeline -----------------------------------------------------------------------------

LAST_BROKEN = (0, 42, 1)
"""The newest diffusers known to have the bugs that `generate` works around; docs/tasks.md lists them."""


def generate(pipe: Any, arguments: Mapping[str, Any], *, generator: Any, **options: Any) -> list[Image.Image]:
    """Run a `VisualClozePipeline` or `VisualClozeGenerationPipeline` on one task, around its known bugs.

    Args:
        pipe: its layout prompt is mended in place.
        arguments: `GridTask.pipeline_kwargs()`.
        generator: a `torch.Generator`; the pipeline crashes without.
        options: further arguments of the pipeline, such as `num_inference_steps`.

    Returns:
        one picture a hole, in the order of the columns.

    Raises:
        ValueError: no generator.
    """
    if generator is None:
        raise ValueError("generator: None; allowed: a torch.Generator (diffusers' pipeline crashes without)")
    # return_dict=False with upsampling_strength=0 would nest one output in another
    images = mend(pipe)(**arguments, generator=generator, output_type="pil", return_dict=True, **options).images
    return list(images[0])


def mend(pipe: Any) -> Any:
    """The same pipeline, whose layout prompt is a sentence again and not a tuple that holds one."""
    if is_broken():
        processor = getattr(pipe, "generation_pipe", pipe).image_processor
        broken = type(processor).get_layout_prompt
        processor.get_layout_prompt = lambda size: "".join(broken(processor, size))
    return pipe


def is_broken() -> bool:
    """Whether the installed diffusers is one whose pipeline is known to need mending."""
    return tuple(int(part) for part in re.findall(r"\d+", version("diffusers"))[:3]) <= LAST_BROKEN


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
