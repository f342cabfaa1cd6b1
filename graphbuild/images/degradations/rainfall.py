"""Falling water: rain."""

import cv2
import numpy as np

from graphbuild.images.degradations.kernels import convolve_plane, line
from graphbuild.images.degradations.pixels import REFERENCE_SIDE, Floats, Pixels, as_floats, draw_one, to_pixels

_TILT_DEGREES = 45.0
_STREAK_PX = (30, 40)
_DENSITY = (40.0, 200.0)
_WIDTH_WINDOWS = (3, 5, 7, 9, 11)
_OPACITY = 0.8
_WATER_LEVEL = 235.0
_HAZE = 0.12


def rain(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Streaks of one direction, within 45 degrees of the vertical, over a thin haze.

    uint8 0..255, H x W x 3 RGB or H x W grey -> same shape. Source: VisualCloze `Rain`: a drop on
    U(40, 200) / 100 of 256 pixels, streaks of 30..40 px, drawn soft through a window of 3..11 px. The streaks are
    our own: drawn at a long side of 512 and brought to the picture's size, so they look alike at every size.
    """
    height, width = pixels.shape[:2]
    unit = REFERENCE_SIDE / max(height, width)
    streaks = _streaks((max(1, round(height * unit)), max(1, round(width * unit))), rng)
    smaller = unit > 1
    cover = cv2.resize(streaks, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    share = as_floats(cover) * np.float32(_OPACITY - _HAZE) + np.float32(_HAZE)
    if pixels.ndim == 3:
        share = share[..., np.newaxis]
    return to_pixels(pixels + (np.float32(_WATER_LEVEL) - pixels) * share)


def _streaks(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """How much water is before each pixel, float32 0..1, shape `size`."""
    chance = rng.uniform(*_DENSITY) * 0.01 / 256
    drops = np.zeros(size, np.float32)
    count = rng.binomial(drops.size, chance)
    drops.flat[rng.integers(0, drops.size, count)] = rng.uniform(0.3, 1.0, count)
    length = int(rng.integers(_STREAK_PX[0], _STREAK_PX[1] + 1))
    angle = np.deg2rad(90 + rng.uniform(-_TILT_DEGREES, _TILT_DEGREES))
    taper = np.sin(np.pi * (np.arange(length) + 0.5) / length)
    streaks = convolve_plane(drops, line(as_floats(taper), angle))
    window = draw_one(rng, _WIDTH_WINDOWS)
    soft = as_floats(cv2.GaussianBlur(streaks, (window, window), 0))
    return as_floats(np.clip(soft / max(float(soft.max()), 1e-6), 0, 1))
