"""Which way up a picture is: the EXIF or XMP orientation of a file, as Pillow and `datasets` read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

UPRIGHT = 1

_TURNS: Mapping[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image; 1 where there is none, or it cannot be read.

    Pillow may have to decode the picture first: in a PNG the EXIF block may come last, a TIFF is turned on loading.
    """
    from PIL import ExifTags

    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return next((number for number in _TURNS if number == found), UPRIGHT)
    except Exception:
        return UPRIGHT  # an unreadable EXIF block is not an unreadable picture


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """H x W or H x W x 3 pixels as stored, turned so that they are upright; contiguous."""
    turned = _TURNS[orientation](pixels) if orientation in _TURNS else pixels
    return np.ascontiguousarray(turned)
