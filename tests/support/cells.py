"""The plain rule of a square cell, for tests that compare with it."""

from __future__ import annotations

from graphbuild.images.codecs import Pixels
from graphbuild.tasks.cells import Frame, square_part


def centre_square(picture: Pixels, side: int) -> Pixels:
    """The centre square of a picture, resized to side x side x 3 RGB uint8."""
    return Frame((side, side), square_part).cell(picture)
