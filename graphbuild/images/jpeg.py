"""JPEG files decoded by libjpeg-turbo: in place, at a fraction of their size, and strictly."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import MAX_PIXELS
from graphbuild.errors import UnusableImage

Pixels = NDArray[np.uint8]

MAX_SCANS = 100
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""Each scan costs a pass over the whole picture, whatever its bytes; encoders write up to about 20. Half a megabyte of
scans of the largest picture would take minutes."""

_SIGNATURE = b"\xff\xd8\xff"
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Within a scan, 0xFF is followed by 0 or is a restart marker."""

_METADATA = {b"\xe1": (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"), b"\xe2": (b"ICC_PROFILE\0",)}
"""Segments that turn a picture or say how its colours are meant."""

_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
"""Complaints of libjpeg-turbo after which pixels are wrong; others leave it to other readers."""


def is_jpeg(data: bytes) -> bool:
    return data.startswith(_SIGNATURE)


def decode(data: bytes, space: str = "RGB", eighths: int = 8) -> Pixels | None:
    """A JPEG as stored, before orientation; None for a damaged or unusual one, which OpenCV may be able to read.

    Args:
        space: `RGB` for H x W x 3, `GRAY` for H x W.
        eighths: scale in eighths, 1 to 8; H and W are rounded up.
    """
    try:
        return _decode(data, space, eighths)
    except ValueError:
        return None


def check(data: bytes, space: str = "RGB") -> Pixels | None:
    """As `decode`, for an untrusted file; None for an unusual one.

    Raises:
        UnusableImage: `damaged`: parts of the picture are missing or wrong; `too_many_scans`.
    """
    width, height = size(data) or (1, 1)
    limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // (width * height))
    if data.count(b"\xff\xda") > limit and (scans := _scans(data)) > limit:
        message = f"{scans} scans of {width} x {height} pixels, the limit is {limit}; save the picture anew"
        raise UnusableImage("too_many_scans", message)
    try:
        return _decode(data, space, 8)
    except ValueError as error:
        said = str(error)
    if said.startswith(_DAMAGE):
        raise UnusableImage("damaged", f"{said}; part of the picture is missing or wrong")
    return None


def _decode(data: bytes, space: str, eighths: int) -> Pixels:
    import simplejpeg

    height, width = (0, 0) if eighths == 8 else (-(-eighths * side // 8) for side in _sides(data))
    pixels: Pixels = simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width)
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
        fits = simplejpeg.decode_jpeg_header(data)[:2] == room.shape[:2]
        if fits:
            simplejpeg.decode_jpeg(data, "RGB", buffer=room)
    except ValueError:
        return False
    return bool(fits)


def has_metadata(data: bytes) -> bool:
    """Whether the file may be turned or have a colour profile: has EXIF, XMP or ICC segments, or cannot be parsed."""
    at = 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]) != b"\xda":
        if data.startswith(_METADATA.get(marker, ()), at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[at : at + 2] != b"\xff\xda"


def _scans(data: bytes) -> int:
    """The number of scans; what looks like one inside a segment, or after the end, does not count."""
    at = count = 0
    while (found := _MARKER.search(data, at)) is not None and (marker := data[found.end() - 1]) != _END_OF_IMAGE:
        count += marker == _START_OF_SCAN
        alone = marker in (0x01, _START_OF_IMAGE)
        at = found.end() + (0 if alone else int.from_bytes(data[found.end() : found.end() + 2]))
    return count
