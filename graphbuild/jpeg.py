"""JPEG files with the pixels that OpenCV gives them, decoded in place or at a fraction of their size."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def decode(data: bytes, space: str = "RGB", at_least: int = 0) -> Pixels | None:
    """A JPEG as it is stored, not turned; None for a damaged or unusual one, of which OpenCV may make something.

    Args:
        space: `RGB` for H x W x 3, `GRAY` for H x W.
        at_least: the picture may be reduced to some eighths of its size, no side under this; 0 for never.
    """
    import simplejpeg

    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, space, min_height=at_least, min_width=at_least)
    except ValueError:
        return None
    return pixels[:, :, 0] if space == "GRAY" else pixels


def fill(room: Pixels, data: bytes) -> bool:
    """Decode into H x W x 3 contiguous uint8; False if the picture has another size, or is damaged or unusual."""
    import simplejpeg

    try:
        fits = simplejpeg.decode_jpeg_header(data)[:2] == room.shape[:2]
        if fits:
            simplejpeg.decode_jpeg(data, "RGB", buffer=room)
    except ValueError:
        return False
    return bool(fits)


def is_upright(data: bytes) -> bool:
    """False if EXIF asks to turn the picture, or the segments make no sense."""
    at = 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]) != b"\xda":
        length = int.from_bytes(data[at + 2 : at + 4])
        if marker == b"\xe1" and data[at + 4 : at + 9] == b"Exif\0":
            return _orientation(data[at + 4 : at + 2 + length]) == 1
        at += 2 + length
    return data[at : at + 2] == b"\xff\xda"


def _orientation(segment: bytes) -> int | None:
    """What an EXIF segment says, 1 for upright; None where it cannot be read."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    try:
        exif.load(segment)
        found = exif.get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, TypeError, KeyError, struct.error):
        return None
    return found if isinstance(found, int) else None
