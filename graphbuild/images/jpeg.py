"""JPEG files with the pixels that OpenCV gives them, decoded in place or at a fraction of their size."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def decode(data: bytes, space: str = "RGB", eighths: int = 8) -> Pixels | None:
    """A JPEG as it is stored, not turned; None for a damaged or unusual one, of which OpenCV may make something.

    Args:
        space: `RGB` for H x W x 3, `GRAY` for H x W.
        eighths: 1 to 8; H and W are so many eighths of the picture's, rounded up.
    """
    import simplejpeg

    try:
        height, width = (0, 0) if eighths == 8 else (-(-eighths * side // 8) for side in _sides(data))
        pixels: Pixels = simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels[:, :, 0] if space == "GRAY" else pixels


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header; None for a damaged or unusual file."""
    try:
        height, width = _sides(data)
    except ValueError:
        return None
    return width, height


def _sides(data: bytes) -> tuple[int, int]:
    import simplejpeg

    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    return height, width


def fill(room: Pixels, data: bytes) -> bool:
    """Decode into H x W x 3 contiguous uint8; False if the picture has another size, or is damaged or unusual."""
    import simplejpeg

    try:
        fits = _sides(data) == room.shape[:2]
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
