"""How a value becomes stored bytes and pictures again. The codec of a kind is named in `kinds.py`."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import MAX_BYTES, MAX_PIXELS
from graphbuild.errors import CorruptNode, UnusableImage
from graphbuild.images import jpeg
from graphbuild.images import rendering as drawings

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Value = NDArray[Any] | bytes | str | Mapping[str, Any]
"""What an annotator returns for one kind: an array, already encoded image bytes (`source` only), text, or JSON."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow readers used on untrusted files; the others (EPS runs an interpreter) stay off."""


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


def check_image(data: bytes, *, grey: bool = False) -> tuple[Encoded, Pixels]:
    """Header checks, then a full decode, of one untrusted image file; its bytes are kept.

    Args:
        grey: of a JPEG return the luma alone (H x W). Every byte is read all the same, at 60 % of the time.

    Returns:
        the same bytes with their format and upright size, and the picture.

    Raises:
        UnusableImage: `empty_file, too_large, undecodable` or `unsupported_mode`.
    """
    if not data:
        raise UnusableImage("empty_file")
    if len(data) > MAX_BYTES:
        raise UnusableImage("too_large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    form = _header(data)
    picture = _cv2_decode(data, "GRAY") if grey and form == "jpeg" else None
    picture = decode_image(data, form) if picture is None else picture
    return _sized(data, form, picture), picture


def decode_image(data: bytes, form: str) -> Pixels:
    """Any supported image file as H x W x 3 RGB uint8: EXIF applied, alpha over white, first frame, 16 bits scaled."""
    if form == "jpeg":
        # OpenCV turns the picture as EXIF says, and makes something of files that stricter readers refuse.
        pixels = _decode(data, "RGB", strict=jpeg.is_upright(data))
        if pixels is not None:
            return pixels
    try:
        with _open(data) as image:
            return _rgb(image)
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, UnusableImage):
            raise
        raise UnusableImage("undecodable", f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, space: str, *, strict: bool) -> Pixels | None:
    """What OpenCV makes of a file, found by a stricter reader where that can."""
    pixels = jpeg.decode(data, space) if strict else None
    return _cv2_decode(data, space) if pixels is None else pixels


def _cv2_decode(data: bytes, space: str) -> Pixels | None:
    import cv2

    flag = cv2.IMREAD_GRAYSCALE if space == "GRAY" else cv2.IMREAD_COLOR_RGB
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)  # type: ignore[return-value]


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    with warnings.catch_warnings():
        # Our own limit, checked right after on the header, replaces Pillow's warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=_readers())


@lru_cache(maxsize=1)
def _readers() -> tuple[str, ...]:
    from PIL import Image

    Image.init()  # an optional reader (AVIF) may be missing from this Pillow
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _header(data: bytes) -> str:
    from PIL import Image

    try:
        with _open(data) as image:
            (width, height), name, mode = image.size, (image.format or "").lower(), image.mode
    except Image.DecompressionBombError as error:
        raise UnusableImage("too_large", f"more than {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, TypeError) as error:
        raise UnusableImage("undecodable", f"{type(error).__name__}") from error
    if width * height > MAX_PIXELS:
        raise UnusableImage("too_large", f"{width} x {height}, the limit is {MAX_PIXELS} pixels")
    return name if mode in ("RGB", "L") else f"{name}-{mode.lower()}"


def _rgb(image: Image.Image) -> Pixels:
    from PIL import Image, ImageOps

    image.seek(0)
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _from_16_bit(np.asarray(upright))
    if upright.mode in ("F", "LAB", "HSV"):
        raise UnusableImage("unsupported_mode", f"mode {upright.mode}")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB"))


def _from_16_bit(values: NDArray[Any]) -> Pixels:
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImage("unsupported_mode", f"integers from {values.min()} to {values.max()}, not 16 bits")
    grey = np.round(values / 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


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
        pixels = _decode(data, space, strict=form == "jpeg")
        if pixels is None:
            raise CorruptNode(f"a stored {form} does not decode")
        return pixels

    return values


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
}
