"""What every degradation family shares: array types, the reference scale, draws and tone curves."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
T = TypeVar("T")
Degradation: TypeAlias = Callable[[Pixels, np.random.Generator], Pixels]

REFERENCE_SIDE = 512
"""Long side in px that every radius, length and thickness given in pixels refers to."""


def to_pixels(values: NDArray[Any]) -> Pixels:
    """Round values of any real dtype to uint8, clipped to 0..255; same shape."""
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


def as_pixels(values: NDArray[Any]) -> Pixels:
    """Narrow the type of an OpenCV result that already is uint8; copies nothing."""
    return np.asarray(values, dtype=np.uint8)


def as_floats(values: NDArray[Any]) -> Floats:
    """The values as float32; copies only when they have another dtype."""
    return np.asarray(values, dtype=np.float32)


def relative_scale(pixels: Pixels) -> float:
    """Long side over 512: what a length in pixels is multiplied by to look alike at every size."""
    return float(max(pixels.shape[:2]) / REFERENCE_SIDE)


def scaled(length: float, pixels: Pixels, *, floor: float) -> float:
    """A length in px at 512, brought to the size of `pixels`.

    On smaller pictures it shrinks towards `floor` and no further (or stays, if it starts below): a quarter of a
    pixel of blur on a 128 px photo would leave nothing to restore. The floor is added as variances add, so that
    a stronger draw stays the stronger one.
    """
    scale = relative_scale(pixels)
    kept = min(length, floor) ** 2 * max(1 - scale**2, 0.0)
    return float(np.sqrt((length * scale) ** 2 + kept))


def draw_level(rng: np.random.Generator, *, cap: int = 5) -> int:
    """Index 0..cap-1 of a severity drawn uniformly from 1..5 and then capped, so the cap takes what lies above."""
    return min(int(rng.integers(1, 6)), cap) - 1


def draw_one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def apply_curve(pixels: Pixels, curve: NDArray[Any]) -> Pixels:
    """Send every level through a tone curve.

    Args:
        pixels: uint8, H x W or H x W x C.
        curve: the 256 new levels, shape (256,) for all channels or (C, 256) for each; rounded and clipped.
    """
    table = to_pixels(curve)
    if table.ndim == 2:
        table = np.ascontiguousarray(table.T)[:, np.newaxis, :]
    return as_pixels(cv2.LUT(pixels, table))


def levels() -> NDArray[np.float64]:
    """The 256 levels 0..255, to build tone curves from."""
    return np.arange(256, dtype=np.float64)


def histograms(pixels: Pixels) -> NDArray[np.float64]:
    """Counts of the 256 levels in each channel, shape (C, 256); grey counts as one channel."""
    channels = [pixels] if pixels.ndim == 2 else cv2.split(pixels)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels]).astype(np.float64)


def in_rgb(degradation: Degradation) -> Degradation:
    """Let a degradation that is written for H x W x 3 take H x W grey too, through three equal channels and luma."""

    @wraps(degradation)
    def either(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if pixels.ndim == 3:
            return degradation(pixels, rng)
        colour = as_pixels(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
        return as_pixels(cv2.cvtColor(degradation(colour, rng), cv2.COLOR_RGB2GRAY))

    return either
