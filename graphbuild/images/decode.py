"""Decode untrusted image files: readers, limits, orientation, colours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.contracts import MAX_BYTES, MAX_PIXELS
from graphbuild.errors import UnusableImage
from graphbuild.images import jpeg
from graphbuild.images.colour import UNUSABLE, cmyk_to_srgb, profile_name, profile_of, to_srgb
from graphbuild.images.orientation import UPRIGHT, orientation_of, turn

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO", "HEIF", "JXL")
"""Pillow readers used on untrusted files, where this Pillow has them; the others (EPS runs an interpreter) stay off."""

_DETAIL = 200


@dataclass(frozen=True, slots=True)
class Meant:
    """How to show the pixels of a file: EXIF orientation 1..8, and the ICC profile of their colours if not sRGB."""

    orientation: int = UPRIGHT
    profile: bytes | None = None


AS_STORED = Meant()


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file: its format (lower case, with Pillow's mode where that is not RGB or L), and
    the name of a colour profile other than sRGB."""

    format: str
    profile: str | None

    def attrs(self, *, convert: bool) -> dict[str, str]:
        """What an edge records of the colours: `profile`, and whether readers see them as `srgb` or as `stored`."""
        if self.profile is None:
            return {}
        return {"profile": self.profile, "colours": "srgb" if convert and self.profile != UNUSABLE else "stored"}


def check_file(data: bytes) -> Header:
    """The checks that come before decoding an untrusted file.

    Raises:
        UnusableImage: `empty_file, too_large` or `undecodable`.
    """
    if not data:
        raise UnusableImage("empty_file")
    if len(data) > MAX_BYTES:
        raise UnusableImage("too_large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    with refusals(), _open(data) as image:
        (width, height), name, mode = image.size, (image.format or "").lower(), image.mode
        profile = profile_name(image)
    if width * height > MAX_PIXELS:
        raise UnusableImage("too_large", f"{width} x {height}, the limit is {MAX_PIXELS} pixels")
    return Header(name if mode in ("RGB", "L") else f"{name}-{mode.lower()}", profile)


def check_pixels(data: bytes, form: str, *, grey: bool = False, convert: bool = True) -> Pixels:
    """Decode every byte of an untrusted file that passed `check_file`: H x W x 3 RGB uint8, or with `grey` the luma of
    a JPEG, H x W, in the file's own colours.

    Raises:
        UnusableImage: `undecodable, damaged, too_many_scans, unsupported_mode` or `too_large`.
    """
    with refusals():
        if jpeg.is_jpeg(data):
            pixels = _checked_jpeg(data, "GRAY" if grey else "RGB")
            if pixels is not None and form == "jpeg":
                return _finished(pixels, meant(data), convert=convert)
    return decode_image(data, form, convert=convert)


def decode_image(data: bytes, form: str, *, convert: bool = True) -> Pixels:
    """A checked image file as H x W x 3 RGB uint8: upright, colours converted to sRGB from an ICC profile (unless told
    not to), alpha over white, first frame, 16 bits scaled.

    Raises:
        UnusableImage: as `check_pixels`.
    """
    with refusals():
        if form == "jpeg":
            pixels = jpeg.decode(data)
            if pixels is None:  # graphs of earlier versions hold damaged ones
                pixels = _leniently(data)
            if pixels is not None:
                return _finished(pixels, meant(data), convert=convert)
        with _open(data) as image:
            return _rgb(image, convert=convert)


def meant(data: bytes) -> Meant:
    """Orientation and profile of a JPEG, from its header."""
    if not jpeg.has_metadata(data):
        return AS_STORED
    with refusals(), _open(data) as image:
        return Meant(orientation_of(image), profile_of(image))


def suffixes() -> frozenset[str]:
    """Suffixes of readable files, in lower case: `.jpg`, `.png`, ... and `.heic` with pillow-heif."""
    from PIL import Image

    readers = {*_readers(), "MPO"}  # which the JPEG reader opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readers)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn whatever a decoder raises into a refusal of the file.

    Raises:
        UnusableImage: `too_large` where memory does not suffice, else `undecodable`, with what was raised.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of many pixels; our own limit is checked on the header.
            warnings.simplefilter("ignore")
            yield
    except UnusableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage("too_large", f"more than {MAX_PIXELS} pixels") from error
    except MemoryError as error:
        raise UnusableImage("too_large", "not enough memory to decode it") from error
    except UnidentifiedImageError as error:
        raise UnusableImage("undecodable", "not an image, or of a format that Pillow cannot read here") from error
    except Exception as error:
        raise UnusableImage("undecodable", f"{type(error).__name__}: {error}"[:_DETAIL]) from error


def _finished(pixels: Pixels, how: Meant, *, convert: bool) -> Pixels:
    if convert and how.profile is not None and pixels.ndim == 3:
        pixels = to_srgb(pixels, how.profile)
    return pixels if how.orientation == UPRIGHT else turn(pixels, how.orientation)


def _checked_jpeg(data: bytes, space: str) -> Pixels | None:
    """Decode a JPEG strictly, before orientation; None for an unusual one. What Pillow refuses is refused, too: other
    readers of a graph use it."""
    try:
        if (pixels := jpeg.check(data, space)) is not None:
            return pixels
    except UnusableImage as error:
        if error.reason == "damaged":
            _load(data)
        raise
    _load(data)
    return None


def _leniently(data: bytes) -> Pixels | None:
    """A damaged JPEG as far as it can be decoded, before orientation."""
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # type: ignore[return-value]


def _load(data: bytes) -> None:
    with _open(data) as image:
        image.load()


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=_readers())


@lru_cache(maxsize=1)
def _readers() -> tuple[str, ...]:
    from PIL import Image

    Image.init()  # an optional reader (AVIF) may be missing from this Pillow
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        import_module("pillow_jxl")  # registers itself
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image, *, convert: bool) -> Pixels:
    image.seek(0)
    image.load()
    orientation = orientation_of(image)
    return turn(_unturned(image, profile_of(image) if convert else None), orientation)


def _unturned(image: Image.Image, profile: bytes | None) -> Pixels:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _from_16_bit(np.asarray(image))
    if image.mode in ("F", "LAB", "HSV"):
        raise UnusableImage("unsupported_mode", f"mode {image.mode}")
    if image.mode == "CMYK":
        return np.array(cmyk_to_srgb(image, profile))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    pixels = np.array(image.convert("RGB") if alpha is None else image.convert("RGBA").convert("RGB"))
    pixels = pixels if profile is None else to_srgb(pixels, profile)
    return pixels if alpha is None else _over_white(pixels, alpha)


def _over_white(pixels: Pixels, alpha: Image.Image) -> Pixels:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.putalpha(alpha)
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _from_16_bit(values: NDArray[Any]) -> Pixels:
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImage("unsupported_mode", f"integers from {values.min()} to {values.max()}, not 16 bits")
    grey = np.round(values / 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
