"""Colour: saturate_strengthen, saturate_weaken, gray, color_distortion. Parameters: VisualCloze (arXiv 2504.07960)."""

from collections.abc import Callable
from functools import partial
from itertools import permutations

import cv2
import numpy as np

from graphbuild.images.degradations.pixels import (
    Pixels,
    apply_curve,
    as_floats,
    as_pixels,
    draw_level,
    draw_one,
    in_rgb,
    levels,
    to_pixels,
)

_STRENGTHEN_SATURATION = (3.0, 6.0, 12.0, 20.0, 64.0)
_STRENGTHEN_CHROMA = (2.0, 3.0, 5.0, 8.0, 16.0)
_WEAKEN_SATURATION = (0.7, 0.55, 0.4, 0.2, 0.0)
_WEAKEN_CHROMA = (0.6, 0.4, 0.2, 0.1, 0.0)
_VISIBLE_CHANGE = 4.0
"""Mean change in levels below which a colour distortion of a nearly grey photo passes unseen."""


@in_rgb
def saturate_strengthen(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaudy colours: the HSV saturation times 3 ... 64, or the YCrCb chroma times 2 ... 16, at one of five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey (unchanged) -> same shape. Source: VisualCloze `saturate_strengthen`.
    """
    return _resaturated(pixels, _STRENGTHEN_SATURATION, _STRENGTHEN_CHROMA, rng)


@in_rgb
def saturate_weaken(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Pale colours: the HSV saturation times 0.7 ... 0, or the YCrCb chroma times 0.6 ... 0, at one of five severities.

    uint8 0..255, H x W x 3 RGB or H x W grey (unchanged) -> same shape. Source: VisualCloze `saturate_weaken`.
    """
    return _resaturated(pixels, _WEAKEN_SATURATION, _WEAKEN_CHROMA, rng)


@in_rgb
def gray(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Three equal channels of luma (0.299 R + 0.587 G + 0.114 B), the same each time.

    uint8 0..255, H x W x 3 RGB or H x W grey (unchanged) -> same shape. Source: VisualCloze `gray`.
    """
    return as_pixels(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def color_distortion(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Wrong channels: swapped (half of the draws), or one of them all 0 or all 255. Never the same picture.

    uint8 0..255, H x W x 3 RGB or H x W grey (one channel of three lost, as luma) -> same shape.
    Source: VisualCloze `ColorDistortion`, without its identity. A draw that does not show (a swap of equal
    channels) gives way to the next one.
    """
    swaps = [partial(_swap, order=order) for order in permutations(range(3)) if order != (0, 1, 2)]
    fills = [partial(_fill, channel=channel, level=level) for channel in range(3) for level in (0, 255)]
    groups = [rng.permutation(len(swaps)), len(swaps) + rng.permutation(len(fills))]
    changes: list[Callable[[Pixels, np.random.Generator], Pixels]] = [*swaps, *fills]
    best, most = pixels, -1.0
    for index in np.concatenate(groups if draw_one(rng, (True, False)) else groups[::-1]):
        changed = in_rgb(changes[index])(pixels, rng)
        change = float(cv2.absdiff(changed, pixels).mean())
        if change > most:
            best, most = changed, change
        if most >= _VISIBLE_CHANGE:
            break
    return best


def _resaturated(
    pixels: Pixels, saturations: tuple[float, ...], chromas: tuple[float, ...], rng: np.random.Generator
) -> Pixels:
    level = draw_level(rng)
    if draw_one(rng, (False, True)):
        return _scale_chroma(pixels, chromas[level])
    return _scale_saturation(pixels, saturations[level])


def _scale_saturation(pixels: Pixels, scale: float) -> Pixels:
    """HSV saturation times `scale`, at most full: channels move away from the value, without a trip through HSV."""
    red, green, blue = (as_floats(channel) for channel in cv2.split(pixels))
    value = as_floats(cv2.max(cv2.max(red, green), blue))
    spread = value - as_floats(cv2.min(cv2.min(red, green), blue))
    stretch = np.minimum(np.float32(scale), value / np.maximum(spread, 1))
    return to_pixels(cv2.merge([value - (value - channel) * stretch for channel in (red, green, blue)]))


def _scale_chroma(pixels: Pixels, scale: float) -> Pixels:
    moved = 128 + scale * (levels() - 128)
    toned = apply_curve(as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)), np.stack([levels(), moved, moved]))
    return as_pixels(cv2.cvtColor(toned, cv2.COLOR_YCrCb2RGB))


def _swap(pixels: Pixels, rng: np.random.Generator, *, order: tuple[int, ...]) -> Pixels:
    return np.ascontiguousarray(pixels[..., order])


def _fill(pixels: Pixels, rng: np.random.Generator, *, channel: int, level: int) -> Pixels:
    filled = pixels.copy()
    filled[..., channel] = level
    return filled
