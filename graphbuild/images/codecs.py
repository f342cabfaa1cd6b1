"""Codecs: how values are encoded to stored bytes and decoded again. `kinds/registry.py` names those of the kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.config.lookup import find
from graphbuild.errors import CorruptNode
from graphbuild.images import jpeg
from graphbuild.images import rendering as drawings
from graphbuild.images.cameras import check_camera, draw_rays
from graphbuild.images.decode import check_file, check_pixels, decode_image

Pixels = NDArray[np.uint8]
Value = NDArray[Any] | bytes | str | Mapping[str, Any]
"""What an annotator returns for one kind: an array, already encoded image bytes (`source` only), text, or JSON."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value ready to be stored: bytes, their format, size of the picture in pixels (None for what has none) and
    attributes."""

    data: bytes
    format: str
    width: int | None = None
    height: int | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Codec:
    """`encode(value) -> Encoded`, its inverse `values(bytes, format)`, and how values that are not pixels are drawn."""

    encode: Callable[[Any], Encoded]
    values: Callable[[bytes, str], Any]
    draw: Callable[[Any], Pixels] | None = None


def check_image(data: bytes, *, grey: bool = False, convert: bool = True) -> tuple[Encoded, Pixels]:
    """Header checks, then a full decode, of one untrusted image file; its bytes are kept.

    Args:
        grey: of a JPEG, decode only the luma (H x W): checks every byte, too, in 60 % of the time.
        convert: whether readers convert its colours to sRGB from an ICC profile; recorded as attribute `colours`.

    Returns:
        the same bytes with their format, upright size and attributes, and the picture.

    Raises:
        UnusableImage: `empty_file, too_large, undecodable, damaged, too_many_scans` or `unsupported_mode`.
    """
    header = check_file(data)
    picture = check_pixels(data, header.format, grey=grey, convert=convert)
    return replace(_sized(data, header.format, picture), attrs=header.attrs(convert=convert)), picture


def _cv2_encode(extension: str, array: Pixels, *options: int) -> bytes:
    import cv2

    ok, data = cv2.imencode(extension, array, options)
    if not ok:
        raise ValueError(f"could not encode a {array.shape} array as {extension}")
    return data.tobytes()


def _picture(value: Any, channels: int) -> Pixels:
    array = np.asarray(value)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8 or array.ndim != (3 if channels == 3 else 2) or 0 in array.shape:
        shape = "H x W x 3" if channels == 3 else "H x W"
        raise ValueError(f"expected a {shape} uint8 array, got {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(array)


def _jpeg(sampling: str, channels: int) -> Callable[[Any], Encoded]:
    def encode(value: Any) -> Encoded:
        import cv2

        array = _picture(value, channels)
        factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
        options = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)
        return _sized(_cv2_encode(".jpg", array[:, :, ::-1] if channels == 3 else array, *options), "jpeg", array)

    return encode


def _png(channels: int, *, bilevel: bool = False) -> Callable[[Any], Encoded]:
    def encode(value: Any) -> Encoded:
        import cv2

        array = _picture(value, channels)
        # One more than 0 or 255 is 1 or, around the end of a byte, 0. np.isin takes forty times as long.
        if bilevel and (array + np.uint8(1)).max() > 1:
            raise ValueError("a 1-bit kind holds only 0 and 255 (or booleans)")
        options = (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_BILEVEL, int(bilevel))
        return _sized(_cv2_encode(".png", array[:, :, ::-1] if channels == 3 else array, *options), "png", array)

    return encode


def _sized(data: bytes, form: str, array: Pixels) -> Encoded:
    return Encoded(data, form, array.shape[1], array.shape[0])


def _stored(space: str) -> Callable[[bytes, str], Pixels]:
    def values(data: bytes, form: str) -> Pixels:
        pixels = jpeg.decode(data, space) if form == "jpeg" else None
        pixels = _cv2_decode(data, space) if pixels is None else pixels
        if pixels is None:
            raise CorruptNode(f"a stored {form} does not decode")
        return pixels

    return values


def _cv2_decode(data: bytes, space: str) -> Pixels | None:
    import cv2

    flag = cv2.IMREAD_GRAYSCALE if space == "GRAY" else cv2.IMREAD_COLOR_RGB
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)  # type: ignore[return-value]


def _source(value: Any) -> Encoded:
    return check_image(value)[0] if isinstance(value, bytes) else _jpeg("444", 3)(value)


def _text(value: Any) -> Encoded:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    return Encoded(value.encode(), "text")


def _json(value: Any) -> Encoded:
    return Encoded(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode(), "json")


def _drawn(check: Callable[[Any], None]) -> Callable[[Any], Encoded]:
    def encode(value: Any) -> Encoded:
        check(value)
        return replace(_json(value), width=value["width"], height=value["height"])

    return encode


def _json_values(data: bytes, form: str) -> Any:
    return json.loads(data)


CODECS: Mapping[str, Codec] = {
    "source": Codec(_source, decode_image),
    "jpeg": Codec(_jpeg("420", 3), _stored("RGB")),
    "jpeg444": Codec(_jpeg("444", 3), _stored("RGB")),
    "jpeg_gray": Codec(_jpeg("420", 1), _stored("GRAY")),
    "png": Codec(_png(3), _stored("RGB")),
    "png1": Codec(_png(1, bilevel=True), _stored("GRAY")),
    "png8": Codec(_png(1), _stored("GRAY")),
    "labels": Codec(_png(1), _stored("GRAY")),
    "text": Codec(_text, lambda data, form: data.decode()),
    "json": Codec(_json, _json_values),
    "pose": Codec(_drawn(drawings.check_pose), _json_values, drawings.draw_pose),
    "boxes": Codec(_drawn(drawings.check_boxes), _json_values, drawings.draw_boxes),
    "rays": Codec(_drawn(check_camera), _json_values, draw_rays),
}

DRAWN = tuple(name for name, codec in CODECS.items() if codec.draw is not None)
"""Codecs of documents that have a picture."""


@cache
def is_codec(name: str) -> bool:
    """Whether `codec_of` knows the name. No package is imported for that."""
    return name in CODECS or name in entry_points(group="graphbuild.codecs").names


def codec_of(name: str) -> Codec:
    """The codec of that name: one of `CODECS`, or an entry point of the group `graphbuild.codecs`. The name may come
    from an untrusted graph, so `module:attribute` is not accepted.

    Raises:
        ValueError: no installed package has it.
    """
    if ":" in name:
        raise ValueError(f"codec {name!r}: allowed: {', '.join(CODECS)}, or an entry point of graphbuild.codecs")
    found: Codec = CODECS.get(name) or find("codec", name, {}, "graphbuild.codecs", also=CODECS)
    return found
