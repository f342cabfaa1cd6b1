"""Cells: the region of a picture that is shown, resized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node
from graphbuild.tasks.config import CellConfig, HoleFill

Size = tuple[int, int]
"""Width and height in pixels."""

Region = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

DIVISOR = 16
"""Sides of an `aspect` cell are multiples of it: a latent pixel is 8 px wide, and a token is 2 x 2 of them."""

MAX_ASPECT = 8
"""The longer side of an `aspect` cell is at most about this many times the shorter one."""

FILLS: Mapping[HoleFill, int] = {"black": 0, "grey": 128}


@dataclass(frozen=True, slots=True)
class Frame:
    """How the pictures of one row become cells.

    Attributes:
        size: of every cell in the row.
        part: the size of a picture -> that of the part in its middle that is shown; None squeezes the whole picture.
        keeps: whether a picture that already has the size of a cell is used as it is.
        fast: whether pictures larger than a cell may be decoded at a fraction of their size.
    """

    size: Size
    part: Callable[[Size], Size] | None
    keeps: bool = True
    fast: bool = False

    def cut(self, picture: Pixels) -> Pixels:
        """The part that is shown, H x W x 3 RGB uint8 and not resized, unless the picture is too small to have it or is
        squeezed; diffusers' pipeline makes the cells of this row from such parts. Of a grey picture, H x W."""
        if self.part is None:
            return stretch(picture, self.size)
        whole = picture.shape[1], picture.shape[0]
        width, height = part = self.part(whole)
        if width > whole[0] or height > whole[1]:
            return stretch(picture, part, _middle(whole, part))
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        return picture[top : top + height, left : left + width]

    def cell(self, picture: Pixels) -> Pixels:
        """A cell, height x width x 3 RGB uint8; of a grey picture, height x width."""
        return cover(self.cut(picture), self.size)

    def paint(self, node: Node, place: Pixels) -> None:
        """Put the cell of a node's picture into `place`, height x width x 3 uint8."""
        cell = self._reduced(node) if self.fast else None
        if cell is None:
            picture = node.decoded(place if self.keeps else None)
            if picture is place:
                return
            kept = self.keeps and picture.shape[:2] == place.shape[:2]
            cell = picture if kept else cover(self.cut(picture), self.size)
        if cell.ndim == 3:
            place[:] = cell
        else:
            import cv2

            cv2.cvtColor(cell, cv2.COLOR_GRAY2RGB, dst=place)

    def _reduced(self, node: Node) -> Pixels | None:
        """The cell of a JPEG decoded at the smallest sufficient eighths of its size; None if that is the whole size."""
        whole = node.jpeg_size()
        if whole is None:
            return None
        part = whole if self.part is None else self.part(whole)
        eighths = max(-(-8 * side // of) for side, of in zip(self.size, part, strict=True))
        if eighths >= 8 or not _holds(whole, part) or (picture := node.at_eighths(eighths)) is None:
            return None
        # The decoder rounds the reduced sides up: the part lies where it lay, not where these sides would have it.
        left, top = (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2
        scale = eighths / 8
        box = scale * left, scale * top, scale * (left + part[0]), scale * (top + part[1])
        if all(map(float.is_integer, box)):  # cut, it need not be resized where it has the size of the cell
            left, top, right, bottom = map(int, box)
            picture = picture[top:bottom, left:right]
            return stretch(picture, self.size) if self.part is None else cover(picture, self.size)
        return stretch(picture, self.size, box) if self.part is None else cover(picture, self.size, part, box)


def frames(
    num_rows: int, lead: Callable[[int], Size], resolution: int, cells: CellConfig, *, squares: bool
) -> list[Frame]:
    """The frame of each row, the query row last.

    Args:
        lead: size of the first given picture of a row; asked only where it matters, as it has to be decoded.
        resolution: side of a square cell; an `aspect` cell has about the same area.
        squares: whether `aspect` has to give way to squares.
    """
    fast, side = cells.decode == "fast", (resolution, resolution)
    if cells.cell_fit == "stretch_square":
        return [Frame(side, None, fast=fast)] * num_rows
    if cells.cell_fit == "crop_square" or squares:
        return [Frame(side, square_part, fast=fast)] * num_rows
    if cells.row_sizes == "own":
        sizes = [fit_size(capped_part(lead(row)), resolution) for row in range(num_rows)]
        return [Frame(size, capped_part, fast=fast) for size in sizes]
    shape = capped_part(lead(num_rows - 1))
    shared = fit_size(shape, resolution)
    alike = partial(part_like, shape=shape, resolution=resolution)
    return [Frame(shared, alike, False, fast)] * (num_rows - 1) + [Frame(shared, capped_part, fast=fast)]


def fit_size(size: Size, resolution: int) -> Size:
    """Width and height of the cells in a row whose first picture has `size`, by the rule of diffusers' pipeline."""
    ratio = size[0] / size[1]
    height = int((resolution * resolution / ratio) ** 0.5)
    width = int(height * ratio)
    return max(width // DIVISOR, 1) * DIVISOR, max(height // DIVISOR, 1) * DIVISOR


def cover(picture: Pixels, size: Size, part: Size | None = None, box: Region | None = None) -> Pixels:
    """The picture resized (Pillow, Lanczos) until it covers `size`, and cut around its middle; equal to diffusers'
    `VaeImageProcessor` in every bit.

    Args:
        part, box: the size of a part in the picture as it was, and where that lies in this reduced one.
    """
    from PIL import Image

    (width, height), (from_width, from_height) = size, part or (picture.shape[1], picture.shape[0])
    if box is None and size == (from_width, from_height):
        return picture
    wide = width / height <= from_width / from_height
    full = (from_width * height // from_height, height) if wide else (width, from_height * width // from_width)
    resized = Image.fromarray(picture).resize(full, Image.Resampling.LANCZOS, box)
    left, top = full[0] // 2 - width // 2, full[1] // 2 - height // 2
    return np.array(resized.crop((left, top, left + width, top + height)))


def stretch(picture: Pixels, size: Size, box: Region | None = None) -> Pixels:
    """The whole picture, or a box of it, resized (Pillow, Lanczos) to `size`, its shape not kept."""
    from PIL import Image

    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box))


def square_part(size: Size) -> Size:
    """The largest square."""
    return min(size), min(size)


def capped_part(size: Size) -> Size:
    """The whole picture; of one longer than `MAX_ASPECT` allows, as much as it allows."""
    width, height = size
    return min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)


def part_like(size: Size, shape: Size, resolution: int) -> Size:
    """The largest part shaped like `shape`, and so sized like it by `fit_size`; a size beyond the picture's, about that
    of the cell, where the picture has so few pixels that none is."""
    (width, height), ratio = size, shape[0] / shape[1]
    wide = width / height > ratio
    cell = fit_size(shape, resolution)
    for change in (0, 1, -1, 2, -2):
        part = (round(height * ratio) + change, height) if wide else (width, round(width / ratio) + change)
        if min(part) > 0 and _holds(size, part) and fit_size(part, resolution) == cell:
            return part
    part = round(cell[1] * ratio), cell[1]
    while max(part) < max(shape):
        if min(part) > 0 and not _holds(size, part) and fit_size(part, resolution) == cell:
            return part
        part = round(2 * part[1] * ratio), 2 * part[1]
    return shape


def _holds(whole: Size, part: Size) -> bool:
    return part[0] <= whole[0] and part[1] <= whole[1]


def _middle(whole: Size, shape: Size) -> Region:
    """The largest region of this shape in the middle of a picture."""
    scale = min(whole[0] / shape[0], whole[1] / shape[1])
    width, height = shape[0] * scale, shape[1] * scale
    left, top = (whole[0] - width) / 2, (whole[1] - height) / 2
    return left, top, left + width, top + height
