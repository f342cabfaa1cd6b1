"""How a picture becomes a cell: the part of it that is shown, resized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphbuild.images.codecs import Pixels
from graphbuild.images.node import Node

Size = tuple[int, int]
"""Width and height in pixels."""

Region = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

DIVISOR = 16
"""Sides of an `aspect` cell are multiples of it: a latent pixel is 8 px wide, and a token is 2 x 2 of them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How the pictures of one row become cells.

    Attributes:
        size: of every cell in the row.
        part: the size of a picture -> that of the part in its middle that is shown; None squeezes the whole picture.
        keeps: whether a picture of the size of a cell is the cell.
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
        part = self.part(whole := _size(picture))
        return _centre(picture, part) if _holds(whole, part) else cover(picture, part)

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
            cell = picture if self.keeps and _size(picture) == self.size else self.cell(picture)
        if cell.ndim == 3:
            place[:] = cell
        else:
            import cv2

            cv2.cvtColor(cell, cv2.COLOR_GRAY2RGB, dst=place)

    def _reduced(self, node: Node) -> Pixels | None:
        """The cell of a JPEG decoded at as few eighths of its size as it takes; None where that is no fraction."""
        whole = node.jpeg_size()
        if whole is None:
            return None
        part = whole if self.part is None else self.part(whole)
        eighths = max(-(-8 * side // of) for side, of in zip(self.size, part, strict=True))
        if eighths >= 8 or not _holds(whole, part) or (picture := node.at_eighths(eighths)) is None:
            return None
        # The decoder rounds the reduced sides up: the part lies where it lay, not where these sides would have it.
        left, top = _corner(whole, part)
        scale = eighths / 8
        box = scale * left, scale * top, scale * (left + part[0]), scale * (top + part[1])
        if all(map(float.is_integer, box)):  # cut, it need not be resized where it has the size of the cell
            left, top, right, bottom = map(int, box)
            picture = picture[top:bottom, left:right]
            return stretch(picture, self.size) if self.part is None else cover(picture, self.size)
        return stretch(picture, self.size, box) if self.part is None else _covering(picture, self.size, part, box)


def fit_size(size: Size, resolution: int) -> Size:
    """Width and height of the cells in a row whose first picture has `size`, by the rule of diffusers' pipeline."""
    ratio = size[0] / size[1]
    height = int((resolution * resolution / ratio) ** 0.5)
    width = int(height * ratio)
    return max(width // DIVISOR, 1) * DIVISOR, max(height // DIVISOR, 1) * DIVISOR


def cover(picture: Pixels, size: Size) -> Pixels:
    """The picture resized (Pillow, Lanczos) until it covers `size`, and cut around its middle; equal to diffusers'
    `VaeImageProcessor` in every bit."""
    return picture if size == _size(picture) else _covering(picture, size, _size(picture))


def _covering(picture: Pixels, size: Size, part: Size, box: Region | None = None) -> Pixels:
    """`cover` for a part of this size that lies at `box` of a reduced picture."""
    from PIL import Image

    (width, height), (from_width, from_height) = size, part
    wide = width / height <= from_width / from_height
    full = (from_width * height // from_height, height) if wide else (width, from_height * width // from_width)
    resized = Image.fromarray(picture).resize(full, Image.Resampling.LANCZOS, box)
    left, top = full[0] // 2 - width // 2, full[1] // 2 - height // 2
    return np.array(resized.crop((left, top, left + width, top + height)))


def stretch(picture: Pixels, size: Size, box: Region | None = None) -> Pixels:
    """The whole picture, or a box of it, resized (Pillow, Lanczos) to `size`, its shape not kept."""
    from PIL import Image

    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box))


def square(picture: Pixels) -> Pixels:
    """The centre square of a picture, not resized."""
    return _centre(picture, square_part(_size(picture)))


def centre_square(picture: Pixels, side: int) -> Pixels:
    """The centre square of a picture, resized to side x side x 3 RGB uint8."""
    return cover(square(picture), (side, side))


def square_part(size: Size) -> Size:
    return min(size), min(size)


def whole_part(size: Size) -> Size:
    return size


def part_like(size: Size, shape: Size, resolution: int) -> Size:
    """The largest part shaped like `shape`, and so sized like it by `fit_size`; `shape` itself where the picture has so
    few pixels that none is."""
    (width, height), ratio = size, shape[0] / shape[1]
    wide = width / height > ratio
    for change in (0, 1, -1, 2, -2):
        part = (round(height * ratio) + change, height) if wide else (width, round(width / ratio) + change)
        if min(part) > 0 and _holds(size, part) and _alike(part, shape, resolution):
            return part
    return shape


def _holds(whole: Size, part: Size) -> bool:
    return part[0] <= whole[0] and part[1] <= whole[1]


def _corner(whole: Size, part: Size) -> Size:
    """Left and top of a part in the middle."""
    return (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2


def _alike(one: Size, other: Size, resolution: int) -> bool:
    return fit_size(one, resolution) == fit_size(other, resolution)


def _centre(picture: Pixels, size: Size) -> Pixels:
    left, top = _corner(_size(picture), size)
    return picture[top : top + size[1], left : left + size[0]]


def _size(picture: Pixels) -> Size:
    return picture.shape[1], picture.shape[0]
