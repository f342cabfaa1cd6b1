"""Colours of image files: ICC profiles, converted to sRGB with Little CMS (perceptual intent)."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

UNUSABLE = "unusable"
"""Recorded as the name of a broken profile, or of one for another kind of pixels: viewers ignore it, and so do we."""

_ALIKE = 3
"""Profiles that move no colour by more levels than this are sRGB under another name."""


class _Conversion(NamedTuple):
    name: str
    space: str
    transform: Any


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of an opened image if its colours need conversion; None without one, or if it is sRGB under any
    name."""
    profile = _embedded(image)
    return profile if profile is not None and profile_name(image) not in (None, UNUSABLE) else None


def profile_name(image: Image.Image) -> str | None:
    """The description inside its profile, or `UNUSABLE`; None for none and for sRGB."""
    profile = _embedded(image)
    if profile is None or (found := _conversion(profile)) == _SRGB:
        return None
    return found.name if found is not None and _fits(found, image.mode) else UNUSABLE


def to_srgb(pixels: Pixels, profile: bytes) -> Pixels:
    """H x W x 3 RGB uint8 converted to sRGB from a profile that `profile_of` gave."""
    from PIL import Image, ImageCms

    found = _conversion(profile)
    assert found is not None
    shown = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]) if found.space == "GRAY" else pixels)
    return np.array(ImageCms.applyTransform(shown, found.transform))


def cmyk_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A CMYK image converted to sRGB from a profile that `profile_of` gave, or by Pillow's formula without one."""
    from PIL import ImageCms

    found = None if profile is None else _conversion(profile)
    converted = None if found is None else ImageCms.applyTransform(image, found.transform)
    return image.convert("RGB") if converted is None else converted


def _embedded(image: Image.Image) -> bytes | None:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile else None


def _fits(found: _Conversion, mode: str) -> bool:
    grey = mode in ("1", "L", "LA", "La")
    return {"RGB": mode != "CMYK", "GRAY": grey, "CMYK": mode == "CMYK"}[found.space]


_SRGB = _Conversion("sRGB", "RGB", None)
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@lru_cache(maxsize=32)
def _conversion(profile: bytes) -> _Conversion | None:
    """How to convert from a profile: `_SRGB` if that does nothing, None if it is broken."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), _MODES[space], "RGB")
        if space == "RGB" and _changes_nothing(transform):
            return _SRGB
        return _Conversion(ImageCms.getProfileDescription(opened).strip() or space, space, transform)
    except Exception:
        return None  # viewers ignore a broken profile too


def _changes_nothing(transform: Any) -> bool:
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(lattice), transform)).astype(int)
    return bool(np.abs(moved - lattice).max() <= _ALIKE)
